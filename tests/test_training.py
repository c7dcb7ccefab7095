"Training holds what it promises: on resuming, on a full disk, over processes, and in closed form."
import contextlib
import csv
import errno
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch
from blocks import Blocks, Breaks, Duel, PowerCut, assert_equal, assert_equal_runs, optim, same
from train_blocks import OPTIONS

from semsynth import training
from semsynth.labels import InputError
from semsynth.training import (
    EMA,
    FORMAT,
    Devices,
    Run,
    SynthesisData,
    TrainOptions,
    check_run_dir,
    fit,
    learning_rate_factor,
    make_optimizers,
    read_checkpoint,
)

DATASET = Blocks(resolution=16)
OPTIMIZER = {"discriminator": {"lr": 1.0e-3}, "generator": {"lr": 1.0e-3}}


def changed(options: TrainOptions = OPTIONS, **changes) -> TrainOptions:
    return TrainOptions(**{**vars(options), **changes})


def duel(seed: int = 0, **arguments) -> Duel:
    torch.manual_seed(seed)
    return Duel(**arguments)


def train(model, folder, options=OPTIONS, transform=same, examples=None, **arguments) -> Run:
    data = SynthesisData(DATASET, transform, options, examples)
    return fit(
        model, data, optim(model), options, folder, progress=False, config={"made": "by tests"},
        **arguments,
    )


def weights(model: torch.nn.Module) -> dict:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "A run that nothing disturbed."
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run = train(duel(), folder)
    assert run.finished and run.step == OPTIONS.num_steps
    return folder


# Resuming


@pytest.mark.parametrize("step", [0, 1, 3, 4, 7, 9])
def test_after_a_power_cut_at_any_step(whole, tmp_path, step):
    with pytest.raises(PowerCut):
        train(duel(), tmp_path / "run", transform=Breaks(step * OPTIONS.batch_size + 1))
    run = train(duel(seed=7), tmp_path / "run", resume=True)
    assert run.finished
    assert_equal_runs(whole, tmp_path / "run")
    assert run.history.rows == training.History.read(whole / "metrics.csv").rows


def test_after_many_power_cuts(whole, tmp_path):
    with pytest.raises(PowerCut):
        train(duel(), tmp_path / "run", transform=Breaks(22))
    for cut in (5, 19):
        with pytest.raises(PowerCut):
            train(duel(seed=7), tmp_path / "run", transform=Breaks(cut), resume=True)
    train(duel(seed=7), tmp_path / "run", resume=True)
    assert_equal_runs(whole, tmp_path / "run")


@pytest.fixture
def start():
    "Starts a training as a process; at the end of the test it is gone, and so are its children."
    processes = []

    def start(folder: Path, *arguments: str) -> subprocess.Popen:
        script = Path(__file__).with_name("train_blocks.py")
        processes.append(subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments], start_new_session=True,
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        ))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_rows(folder: Path, rows: int, process: subprocess.Popen) -> None:
    "Until metrics.csv has so many rows, or the process is over."
    metrics = folder / "metrics.csv"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > rows:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[1])


def test_ctrl_c_saves_and_says_how_to_go_on(start, whole, tmp_path):
    process = start(tmp_path / "run")
    wait_for_rows(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=900)[1]
    assert process.returncode == 130
    assert f"semsynth train --resume {tmp_path / 'run'}" in message
    assert "Traceback" not in message
    assert 3 <= read_checkpoint(tmp_path / "run")["step"] < OPTIONS.num_steps
    train(duel(seed=7), tmp_path / "run", resume=True)
    assert_equal_runs(whole, tmp_path / "run")


def test_kill_9(start, whole, tmp_path):
    process = start(tmp_path / "run")
    wait_for_rows(tmp_path / "run", 2, process)
    process.kill()
    process.communicate(timeout=900)
    train(duel(seed=7), tmp_path / "run", resume=True)
    assert_equal_runs(whole, tmp_path / "run")


def test_a_finished_run_has_nothing_left_to_do(whole):
    before = (whole / "checkpoint.pt").read_bytes()
    model = duel(seed=7)
    run = train(model, whole, resume=True)
    assert run.finished and len(run.history) == 4
    assert_equal(weights(model), dict(read_checkpoint(whole)["model"]))
    assert (whole / "checkpoint.pt").read_bytes() == before


def test_drawing_logging_and_saving_do_not_disturb_training(whole, tmp_path):
    options = changed(log_every=1, checkpoint_every=1, sample_every=2)
    train(duel(), tmp_path / "run", options, examples=DATASET.batch(2))
    first, second = read_checkpoint(whole), read_checkpoint(tmp_path / "run")
    for key in ("model", "ema", "optimizers", "schedules"):
        assert_equal(first[key], second[key], key)
    assert torch.equal(first["rng"][0]["torch"], second["rng"][0]["torch"])


def test_workers_do_not_change_the_run(whole, tmp_path):
    train(duel(), tmp_path / "run", changed(num_workers=2))
    assert_equal_runs(whole, tmp_path / "run")


# What is written


def test_logs_have_exact_columns(whole):
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "step", "discriminator/real", "discriminator/fake", "generator/adversarial",
        "generator/l1", "discriminator/lr", "generator/lr", "discriminator/late",
    ]
    assert [row["step"] for row in rows] == ["3", "6", "9", "10"]
    assert [bool(row["discriminator/late"]) for row in rows] == [False, True, True, False]
    for row in rows:
        step = int(row["step"])
        expected = 2.0e-3 * learning_rate_factor(step - 1, OPTIONS)
        assert float(row["generator/lr"]) == pytest.approx(expected, rel=1e-12)
    assert list((whole / "tensorboard").glob("events.*"))


def test_a_row_is_the_mean_since_the_last_one(whole, tmp_path):
    fine = train(duel(), tmp_path / "run", changed(log_every=1)).history["generator/l1"]
    coarse = training.History.read(whole / "metrics.csv")["generator/l1"]
    means = [sum(part) / len(part) for part in (fine[:3], fine[3:6], fine[6:9], fine[9:])]
    assert coarse == pytest.approx(means, rel=1e-5)


def test_sample_grids_show_the_averaged_weights(tmp_path):
    model, examples = duel(), DATASET.batch(2)
    train(model, tmp_path / "run", changed(sample_every=5), examples=examples)
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert [grid.name for grid in grids] == ["0000005.png", "0000010.png"]

    before = weights(model)
    ema = EMA(model, 0.9)
    averages = read_checkpoint(tmp_path / "run")["ema"]
    ema.averages = {key: value.clone() for key, value in averages.items()}
    with ema.applied():
        rng = torch.Generator().manual_seed(OPTIONS.seed)
        sample = model.eval().sample(examples.label_map, examples.instance_map, rng=rng)
    assert_equal(before, weights(model))
    columns = {"label map": examples.label_map, "sample": sample, "real": examples.image}
    expected = training.grid_image(columns, DATASET.label_space)
    with PIL.Image.open(grids[-1]) as image:
        assert image.tobytes() == expected.tobytes()


def test_the_gallery_shows_the_samples_of_the_last_grid(tmp_path):
    examples, folder = DATASET.batch(2), tmp_path / "run"
    data = SynthesisData(DATASET, same, OPTIONS, examples, ["door", "<shop>"])
    model = duel()
    fit(model, data, optim(model), OPTIONS, folder, progress=False)
    page = (folder / "gallery.html").read_text()
    assert "<h1>Duel on blocks</h1>" in page and "10 of 10" in page and "EMA 0.9" in page
    assert "door" in page and "&lt;shop&gt;" in page and "<shop>" not in page

    with PIL.Image.open(folder / "samples" / "0000010.png") as grid:
        side, top = 16, grid.height - (2 * 16 + 4)  # of the panels; of the headings
        sample = grid.crop((side + 4, top, 2 * side + 4, top + side)).tobytes()
    with PIL.Image.open(folder / "gallery" / "0000-door-sample.png") as image:
        assert image.convert("RGB").tobytes() == sample


def test_an_interrupted_run_has_a_gallery_and_resuming_writes_it_anew(tmp_path):
    class Interrupts:
        "A transform that presses Ctrl-C at the first image of step 4."

        images = 0

        def __call__(self, batch):
            self.images += 1
            if self.images == 4 * OPTIONS.batch_size + 1:
                signal.raise_signal(signal.SIGINT)
            return batch

    examples, folder = DATASET.batch(2), tmp_path / "run"
    run = train(duel(), folder, transform=Interrupts(), examples=examples)
    assert not run.finished
    page = folder / "gallery.html"
    assert f"{run.step} of 10" in page.read_text() and "00001" in page.read_text()

    assert train(duel(seed=7), folder, examples=examples, resume=True).finished
    assert "10 of 10" in page.read_text()
    images = {path.name for path in (folder / "gallery").iterdir()}
    kinds = ("label", "sample", "real")
    assert images == {f"000{n}-0000{n}-{kind}.png" for n in (0, 1) for kind in kinds}


def test_the_checkpoint_carries_the_config(whole):
    assert read_checkpoint(whole)["config"] == {"made": "by tests"}


def test_a_folder_that_holds_something_is_never_written_into(whole, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(InputError, match="--resume"):
        train(duel(), whole)
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_run_dir(tmp_path / "file")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "config.yaml").write_text("")
    check_run_dir(tmp_path / "fresh")
    check_run_dir(tmp_path / "absent")


def test_losses_that_break_down_end_the_run_and_keep_the_checkpoint(tmp_path):
    class Diverges(Duel):
        def training_losses(self, batch, step):
            for name, terms in super().training_losses(batch, step):
                factor = math.inf if step == 5 else 1.0
                yield name, {term: factor * value for term, value in terms.items()}

    torch.manual_seed(0)
    with pytest.raises(InputError, match="no longer finite"):
        train(Diverges(), tmp_path / "run", changed(log_every=100))
    assert read_checkpoint(tmp_path / "run")["step"] == 4


# A full disk


def assert_goes_on(whole: Path, folder: Path) -> None:
    assert read_checkpoint(folder)["step"] == 4
    assert not list(folder.glob("*.partial"))
    train(duel(seed=7), folder, resume=True)
    assert_equal_runs(whole, folder)


def test_the_last_checkpoint_survives_a_full_disk(whole, tmp_path):
    class Fills(Breaks):
        "After the checkpoint of step 4, no file may grow beyond 8 KB: the next one does not fit."

        def __call__(self, batch):
            self.n -= 1
            if self.n < 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
            return batch

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert (whole / "checkpoint.pt").stat().st_size > 8192
    try:
        with pytest.raises(InputError, match="cannot write .*checkpoint.pt: File too large"):
            train(duel(), tmp_path / "run", transform=Fills(5 * OPTIONS.batch_size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_goes_on(whole, tmp_path / "run")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_the_last_checkpoint_survives_a_failing_write(whole, tmp_path, monkeypatch, call):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def breaks(batch):
        breaks.images += 1
        if breaks.images == 7 * OPTIONS.batch_size:  # between the logs of steps 6 and 9
            monkeypatch.setattr(training.os, call, fail)
        return batch

    breaks.images = 0
    with pytest.raises(InputError, match="No space left on device"):
        train(duel(), tmp_path / "run", transform=breaks)
    monkeypatch.undo()
    assert_goes_on(whole, tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        train(duel(), tmp_path / "file" / "run")


# Checkpoints of others


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_what_is_no_checkpoint_is_a_sentence_and_never_runs(whole, tmp_path):
    good = (whole / "checkpoint.pt").read_bytes()
    file = tmp_path / "checkpoint.pt"
    for content in (b"", b"not a checkpoint", good[: len(good) // 2], good[:-30], os.urandom(999)):
        file.write_bytes(content)
        with pytest.raises(InputError, match="truncated, or of another program"):
            read_checkpoint(tmp_path)
    for protocol in (pickle.dumps, torch.save):
        evil = Malicious(tmp_path / "was-run")
        file.write_bytes(pickle.dumps(evil)) if protocol is pickle.dumps else torch.save(evil, file)
        with pytest.raises(InputError, match="cannot be read"):
            read_checkpoint(file)
    assert not (tmp_path / "was-run").exists()
    for foreign in ({"state_dict": {}}, [1, 2], {"format": FORMAT.replace("1", "99")}):
        torch.save(foreign, file)
        with pytest.raises(InputError, match="no training checkpoint"):
            read_checkpoint(file)
    with pytest.raises(InputError, match="holds no checkpoint"):
        read_checkpoint(tmp_path / "absent")


def test_a_checkpoint_of_another_model_is_a_sentence(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
    other = duel()
    other.generator[0] = torch.nn.Conv2d(13, 9, 3, padding=1)
    with pytest.raises(InputError, match="does not fit this model: .*generator.0"):
        train(other, run, resume=True)
    with pytest.raises(InputError, match="does not fit this model: .*generator.0"):
        train(other, run, resume=True, options=changed(num_steps=12))


# Several processes


def test_two_processes_equal_one_on_the_same_global_batch(start, tmp_path):
    process = start(tmp_path / "two", "--processes", "2", "--dropout", "0")
    message = process.communicate(timeout=900)[1]
    assert process.returncode == 0, message
    train(duel(dropout=0.0), tmp_path / "one")

    one, two = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "two")
    assert len(two["rng"]) == 2
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, atol=1e-5, rtol=1e-5)
    for key, value in one["ema"].items():
        torch.testing.assert_close(two["ema"][key], value, atol=1e-5, rtol=1e-5)
    one, two = (training.History.read(tmp_path / name / "metrics.csv") for name in ("one", "two"))
    assert one.columns == two.columns
    for column in one.columns:
        assert two[column] == pytest.approx(one[column], abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("devices, sentence", [
    (Devices(gpus=64), "this machine has"),
    (Devices(gpus=-1), "needs at least 0 GPUs"),
    (Devices(num_nodes=0), "needs a node"),
    (Devices(cpu_processes=3), "cannot be shared by 3"),
])
def test_devices_that_are_not_there(devices, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        train(duel(), tmp_path / "run", devices=devices)
    assert not (tmp_path / "run").exists()


# Accumulation, clipping, precision


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    "For one player; of two players each answers the other one batch later than in a large batch."
    small, large = duel(dropout=0.0, players=1), duel(dropout=0.0, players=1)
    accumulated = changed(num_steps=12, batch_size=2, accumulate=4, lr_schedule="constant",
                          warmup_steps=0, clip=0.1)
    train(small, tmp_path / "small", accumulated)
    whole = changed(accumulated, num_steps=3, batch_size=8, accumulate=1)
    train(large, tmp_path / "large", whole)
    for key, value in weights(large).items():
        torch.testing.assert_close(weights(small)[key], value, atol=1e-6, rtol=1e-5)


def test_two_players_accumulate_each_its_own_gradients(tmp_path):
    model, players = duel(dropout=0.0), duel(dropout=0.0)
    options = changed(num_steps=2, batch_size=4, accumulate=2, warmup_steps=0,
                      lr_schedule="constant", checkpoint_every=0)
    train(model, tmp_path / "run", options)
    optimizers = make_optimizers(players, optim(players))
    loader = training.training_batches(DATASET, same, batch_size=4, num_steps=2, seed=0)
    for step, batch in enumerate(loader):
        for name, terms in players.training_losses(batch, step):
            (sum(terms.values()) / 2).backward(inputs=list(getattr(players, name).parameters()))
            if step == 1:
                optimizers[name].step()
    assert_equal(weights(model), weights(players))


def test_a_run_that_accumulates_resumes_bitwise(tmp_path):
    options = changed(num_steps=12, accumulate=2, checkpoint_every=4)
    train(duel(), tmp_path / "whole", options)
    with pytest.raises(PowerCut):
        train(duel(), tmp_path / "run", options, Breaks(27))
    train(duel(seed=7), tmp_path / "run", options, resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_gradients_are_clipped_for_each_player(tmp_path):
    model = duel()
    train(model, tmp_path / "run", changed(clip=0.01))
    for name in model.trained:
        gradients = [weight.grad for weight in model.get_submodule(name).parameters()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        assert 0.009 < float(norm) <= 0.01 + 1e-6


def test_mixed_precision_stays_close_and_resumes_bitwise(whole, tmp_path):
    options = changed(precision="bf16-mixed")
    run = train(duel(), tmp_path / "whole", options)
    exact = training.History.read(whole / "metrics.csv")["generator/l1"]
    assert run.history["generator/l1"] == pytest.approx(exact, rel=0.05)
    assert run.history["generator/l1"] != exact
    with pytest.raises(PowerCut):
        train(duel(), tmp_path / "run", options, Breaks(27))
    train(duel(seed=7), tmp_path / "run", options, resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")
    weights = read_checkpoint(tmp_path / "run")["model"].values()
    assert all(weight.dtype == torch.float32 for weight in weights)


# Closed forms


@pytest.mark.parametrize("schedule, expected", [
    ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
    ("linear", [1, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
    ("cosine", [1, 1, 1, 1, 1, *(0.5 * (1 + math.cos(math.pi * n / 4)) for n in (1, 2, 3))]),
])
def test_learning_rates(schedule, expected):
    options = TrainOptions(num_steps=8, lr_schedule=schedule)
    assert [learning_rate_factor(step, options) for step in range(8)] == pytest.approx(expected)
    warm = TrainOptions(num_steps=8, lr_schedule=schedule, warmup_steps=4)
    factors = [learning_rate_factor(step, warm) for step in range(8)]
    assert factors == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, *expected[4:]])


def test_ema_is_the_weighted_sum_of_all_that_was():
    model = duel(players=1)
    model.generator.register_buffer("seen", torch.tensor(0.0))
    ema = EMA(model, decay=0.5)
    weight = model.generator[0].bias
    values, expected = torch.tensor([3.0, -1.0, 2.0, 5.0]), weight.detach().clone()
    for step, value in enumerate(values):
        weight.data.fill_(value)
        model.generator.seen.fill_(value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.averages["generator.0.bias"], expected)
    assert ema.averages["generator.seen"] == 5.0
    with ema.applied():
        torch.testing.assert_close(weight.detach(), expected)
    assert (weight == 5.0).all()


def test_ema_of_nothing_costs_nothing(tmp_path):
    model = duel()
    train(model, tmp_path / "run", changed(ema_decay=0.0))
    assert read_checkpoint(tmp_path / "run")["ema"] == {}


# Options


@pytest.mark.parametrize("options, sentence", [
    ({"num_steps": 0}, "train.num_steps must be at least 1, not 0"),
    ({"num_steps": 1.5}, "train.num_steps must be a whole number, not 1.5"),
    ({"batch_size": -4}, "train.batch_size must be at least 1, not -4"),
    ({"batch_size": True}, "train.batch_size must be a whole number, not True"),
    ({"seed": -1}, "train.seed must be at least 0"),
    ({"ema_decay": 1.0}, "train.ema_decay must be at least 0 and below 1"),
    ({"ema_decay": "0.999"}, "train.ema_decay must be a number, not '0.999'"),
    ({"clip": math.nan}, "train.clip must be at least 0"),
    ({"precision": "16-mixd"}, "did you mean 16-mixed"),
    ({"lr_schedule": "step"}, "train.lr_schedule cannot be 'step'"),
    ({"class_balanced": 1}, "train.class_balanced must be true or false, not 1"),
    ({"accumulate": 3}, "train.num_steps must be a multiple of train.accumulate, 3"),
    ({"accumulate": 4, "checkpoint_every": 10}, "train.checkpoint_every must be a multiple"),
])
def test_options_that_make_no_sense(options, sentence):
    # Around __init__, where these tests (and no user) have a type checker that would speak first.
    record = object.__new__(TrainOptions)
    for name, value in (vars(TrainOptions()) | options).items():
        object.__setattr__(record, name, value)
    with pytest.raises(InputError, match=sentence):
        record.__post_init__()


def test_half_precision_needs_a_gpu(tmp_path):
    with pytest.raises(InputError, match="needs a GPU"):
        train(duel(), tmp_path / "run", changed(precision="16-mixed"))


@pytest.mark.parametrize("optimizers, sentence", [
    ({"discriminator": {"lr": 1e-3}}, "optim.generator is missing"),
    (OPTIMIZER | {"generatr": {"lr": 1e-3}}, "did you mean generator"),
    (OPTIMIZER | {"generator": {"lr": "1e-3"}}, "optim.generator.lr must be a number"),
    (OPTIMIZER | {"generator": {"lr": -1}}, "optim.generator.lr must be a number of at least 0"),
    (OPTIMIZER | {"generator": {"lr": math.nan}}, "optim.generator.lr must be a number"),
    (OPTIMIZER | {"generator": {}}, "needs a learning rate"),
    (OPTIMIZER | {"generator": {"lr": 1e-3, "beta": [0, 1]}}, "did you mean betas"),
    (OPTIMIZER | {"generator": {"lr": 1e-3, "betas": [0.5]}}, "must be two numbers"),
    (OPTIMIZER | {"generator": {"lr": 1e-3, "betas": [0.5, 1.0]}}, "must be two numbers"),
    (OPTIMIZER | {"generator": {"lr": 1e-3, "name": "adamv"}}, "did you mean adam"),
])
def test_optimizers_that_make_no_sense(optimizers, sentence, tmp_path):
    model = duel()
    with pytest.raises(InputError, match=sentence):
        make_optimizers(model, optimizers)
    with pytest.raises(InputError, match=sentence):
        fit(model, SynthesisData(DATASET, same, OPTIONS), optimizers, OPTIONS, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_optimizers_are_what_the_config_says():
    optimizers = make_optimizers(duel(), {
        "discriminator": {"lr": 4.0e-4, "betas": [0, 0.9]},
        "generator": {"name": "adamw", "lr": 1.0e-4, "weight_decay": 0.01},
    })
    assert type(optimizers["discriminator"]) is torch.optim.Adam
    assert optimizers["discriminator"].defaults["betas"] == (0, 0.9)
    assert type(optimizers["generator"]) is torch.optim.AdamW
    assert optimizers["generator"].defaults["weight_decay"] == 0.01
