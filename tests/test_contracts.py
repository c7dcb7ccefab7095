"What every family promises, whatever it is made of; a new family is one line in MODELS."
import copy
import inspect
import io

import pytest
import torch
from blocks import (
    Blocks,
    Breaks,
    PowerCut,
    assert_equal,
    assert_equal_runs,
    optim,
    same,
)

from semsynth.configs import MODELS
from semsynth.datasets import training_batches
from semsynth.labels import IGNORE_INDEX, Batch, InputError, null_label_map
from semsynth.synthesizer import Synthesizer, training_loop
from semsynth.training import (
    SynthesisData,
    TrainOptions,
    fit,
    make_optimizers,
)

DATASET = Blocks(num_images=8, resolution=64)
CLASSES = DATASET.label_space.num_classes


def build(name: str, seed: int = 0) -> Synthesizer:
    torch.manual_seed(seed)
    family = MODELS[name]
    return family.builder(num_classes=CLASSES, **family.presets["mini"])


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


@pytest.fixture
def batch() -> Batch:
    return DATASET.batch()


def test_exactly_what_is_trained_moves_and_all_of_it_gets_gradients(name, batch):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    (log,) = training_loop(model, [batch], make_optimizers(model, optim(model)))

    for key, value in model.state_dict().items():
        if not key.startswith(tuple(f"{part}." for part in model.trained)):
            assert torch.equal(value, before[key]), f"{key} is frozen, but it moved"
    for part in model.trained:
        for key, weight in model.get_submodule(part).named_parameters():
            assert not weight.requires_grad or weight.grad is not None, f"{part}.{key}: no gradient"
        moved = [
            not torch.equal(weight, before[f"{part}.{key}"])
            for key, weight in model.get_submodule(part).named_parameters()
        ]
        assert any(moved), f"{part} is trained, but it did not move"
    assert {key.split("/")[0] for key in log} == set(model.trained)


def test_losses_are_finite_and_named(name, batch):
    model = build(name)
    logs = list(training_loop(model, [batch] * 3, make_optimizers(model, optim(model))))
    assert len(logs) == 3
    assert all(torch.tensor(list(log.values())).isfinite().all() for log in logs), logs


def test_frozen_parts_stay_in_eval_mode(name):
    model = build(name).train()
    for part in model.trained:
        assert model.get_submodule(part).training
    inside = tuple(f"{part}." for part in model.trained)
    for key, module in model.named_modules():
        holds = any(part.startswith(f"{key}.") for part in inside)
        if key and not holds and not f"{key}.".startswith(inside):
            assert not module.training, f"{key} is frozen, but not in eval mode"
    assert not any(module.training for module in model.eval().modules())


def test_a_sample_is_an_image_that_the_rng_alone_decides(name, batch):
    model = build(name).eval()
    state, source = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (
        model.sample(batch.label_map, batch.instance_map, rng=rng()) for _ in range(2)
    )
    assert first.shape == batch.image.shape and first.dtype == torch.float32
    assert first.abs().max() <= 1 and first.isfinite().all()
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(source, torch.get_rng_state()), "sample drew from the global source"
    assert_equal(dict(model.state_dict()), dict(state))


def test_sampling_needs_neither_rng_nor_instances(name, batch):
    image = build(name).eval().sample(batch.label_map)
    assert image.shape == batch.image.shape


def test_maps_need_not_be_square(name):
    wide = Blocks(resolution=128).batch(1).label_map[:, :64]
    assert build(name).eval().sample(wide, rng=rng()).shape == (1, 3, 64, 128)


def test_sampling_options_can_be_read_from_the_signature(name):
    parameters = inspect.signature(MODELS[name].builder).parameters
    assert list(parameters)[0] == "num_classes"
    sample = inspect.signature(type(build(name)).sample).parameters
    assert list(sample)[:3] == ["self", "label_map", "instance_map"]
    assert sample["rng"].kind is inspect.Parameter.KEYWORD_ONLY
    options = [*list(parameters.values())[1:], *list(sample.values())[2:]]
    for option in options:
        assert option.default is not inspect.Parameter.empty, f"{option.name} has no default"
        assert option.annotation is not inspect.Parameter.empty, f"{option.name} has no annotation"
        assert option.kind is not inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("painted", ["nothing", "half"])
def test_unlabelled_pixels_are_welcome(name, batch, painted):
    label_map = null_label_map(batch.label_map)
    if painted == "half":
        label_map = batch.label_map.clone()
        label_map[:, :32] = IGNORE_INDEX
    model = build(name)
    image = model.eval().sample(label_map, rng=rng())
    assert image.isfinite().all()
    unlabelled = batch._replace(label_map=label_map, instance_map=label_map)
    (log,) = training_loop(model, [unlabelled], make_optimizers(model, optim(model)))
    assert torch.tensor(list(log.values())).isfinite().all()


def test_an_id_out_of_range_is_a_sentence(name, batch):
    model = build(name).eval()
    wrong = batch.label_map.clone()
    wrong[0, 0, 0] = CLASSES
    with pytest.raises(InputError, match=f"holds id {CLASSES}"):
        model.sample(wrong)
    with pytest.raises(InputError, match=f"holds id {CLASSES}"):
        next(model.train().training_losses(batch._replace(label_map=wrong), 0))


def test_saving_and_loading_weights_is_exact(name, batch):
    model, other = build(name, seed=0).eval(), build(name, seed=1).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_equal(dict(model.state_dict()), dict(other.state_dict()))
    images = [m.sample(batch.label_map, rng=rng()) for m in (model, other)]
    assert torch.equal(*images)


def options(**changes) -> TrainOptions:
    return TrainOptions(**{
        "num_steps": 4, "batch_size": 2, "lr_schedule": "constant", "log_every": 1,
        "checkpoint_every": 2, "sample_every": 0, "ema_decay": 0.9, **changes,
    })


def run(model: Synthesizer, folder, transform=same, resume=False):
    data = SynthesisData(DATASET, transform, options())
    return fit(model, data, optim(model), options(), folder, resume=resume, progress=False)


def test_lightning_adds_nothing_to_the_mathematics(name, tmp_path):
    plain, lightning = build(name), build(name)
    batches = training_batches(DATASET, same, batch_size=2, num_steps=4, seed=0)
    torch.manual_seed(options().seed)
    logs = list(training_loop(plain, batches, make_optimizers(plain, optim(plain))))

    history = run(lightning, tmp_path / "run").history
    assert_equal(dict(plain.state_dict()), dict(lightning.state_dict()))
    for row, log in zip(history.rows, logs, strict=True):
        assert {key: row[key] for key in log} == log


def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    whole = build(name)
    run(whole, tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(build(name), tmp_path / "broken", Breaks(7))
    resumed = build(name, seed=5)
    run(resumed, tmp_path / "broken", resume=True)

    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")
