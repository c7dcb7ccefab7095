"Evaluation: nothing depends on batches, judges are fair, weights draw what they drew."
import numpy as np
import PIL.Image
import pytest
import torch

from semsynth import evaluation
from semsynth.configs import load_weights, shipped_weights, trained_resolution
from semsynth.datasets import Facades, Resize, SyntheticFacades, evaluation_batches
from semsynth.evaluation import (
    ClassMean,
    Judges,
    Measurements,
    Plan,
    another_look,
    drawing,
    evaluate,
    find_judges,
    peak_memory,
    photographs,
    preview,
    protocol_of,
    table_of,
)
from semsynth.labels import InputError, resize_label_map
from semsynth.metrics import LayoutAgreement, Report
from semsynth.segmenter import load_segmenter, real_scores, shipped_segmenters

pytestmark = pytest.mark.filterwarnings("ignore:a Fréchet distance from")
HOUSES = SyntheticFacades("test", num_images=10, resolution=64)
PLAN = Plan((64, 64), num_images=10)


@pytest.fixture(scope="module")
def judges() -> Judges:
    return find_judges(HOUSES)


def measured(judges: Judges, plan: Plan = PLAN) -> Measurements:
    measurements = Measurements(judges, 12)
    list(evaluate(another_look(HOUSES), HOUSES, measurements, plan))
    return measurements


def assert_close(first: Measurements, second: Measurements) -> None:
    one, other = first.scores(), second.scores()
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-4, abs=1e-6), name
    assert first.images.keys() == second.images.keys()


# --- nothing depends on how the work is divided

def test_batches_change_nothing(judges: Judges, monkeypatch: pytest.MonkeyPatch):
    whole = measured(judges)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 3)
    assert_close(whole, measured(judges))


def test_processes_change_nothing(judges: Judges):
    parts = [Measurements(judges, 12) for _ in range(2)]
    for number, batch in enumerate(evaluation_batches(HOUSES, Resize(64), batch_size=5)):
        indices = torch.arange(5 * number, 5 * number + 5)
        looks = torch.cat([another_look(HOUSES)(batch, int(index)) for index in indices])
        parts[1 - number].update(looks[None], batch.image, batch.label_map, indices)
    parts[0].merge(parts[1])
    assert_close(measured(judges), parts[0])


def test_every_image_has_its_own_generator():
    class Noisy(ClassMean):
        def sample(self, label_map, instance_map=None, *, rng=None):
            shape = (len(label_map), 3, *label_map.shape[1:])
            return torch.rand(shape, generator=rng) * 2 - 1

    draw = drawing(Noisy(torch.zeros(12, 3)))
    nobody = Judges()
    few, many = Measurements(nobody, 12), Measurements(nobody, 12)
    list(evaluate(draw, HOUSES, few, Plan((64, 64), num_images=2, num_samples=2)))
    list(evaluate(draw, HOUSES, many, Plan((64, 64), num_images=5)))
    assert few.images[1]["L1"] == many.images[1]["L1"] != many.images[0]["L1"]


def test_a_model_draws_at_its_own_size_and_is_compared_at_another():
    "Class means at 32 px, enlarged: equal to enlarging them by hand, and one table with the rest."
    batch = next(iter(evaluation_batches(HOUSES, Resize(64), batch_size=1)))
    mean = ClassMean(torch.linspace(-1, 1, 36).view(12, 3))
    small = mean.sample(resize_label_map(batch.label_map, (32, 32)))
    by_hand = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(drawing(mean, size=(32, 32))(batch, 0), by_hand)
    assert torch.equal(drawing(mean)(batch, 0), drawing(mean, size=(64, 64))(batch, 0))

    scores = measured(Judges()).scores()
    plans = PLAN, PLAN._replace(drawn_at=(32, 32))
    both = [Report(str(n), protocol_of(HOUSES, Judges(), plan), scores)
            for n, plan in enumerate(plans)]
    assert both[1].protocol.drawn_at == (32, 32)
    assert len(table_of(both)) == 3


def test_diversity_needs_two_samples_and_a_distance(judges: Judges):
    def looks(batch, number):
        return HOUSES.with_look(number % 10, look=number // 10).image[None]

    both, same = Measurements(judges, 12), Measurements(judges, 12)
    list(evaluate(looks, HOUSES, both, Plan((64, 64), num_images=4, num_samples=2)))
    flat = drawing(ClassMean(torch.zeros(12, 3)))
    list(evaluate(flat, HOUSES, same, Plan((64, 64), num_images=4, num_samples=2)))
    assert both.scores()["diversity-PD-synthetic"].value > 0.1
    assert same.scores()["diversity-PD-synthetic"].value == 0
    assert "diversity-PD-synthetic" not in measured(judges).scores()


def test_memory_is_counted_while_it_is_alive():
    def views_and_copies():
        first = torch.zeros(1000, 1000)
        first.view(-1)[:10].add_(1)
        second = first.clone()
        del first, second
        torch.zeros(500)

    assert peak_memory(views_and_copies, torch.device("cpu")) == 8_000_000


# --- tables

def test_different_protocols_refuse_one_table(judges: Judges):
    scores = measured(judges).scores()
    first = Report("first", protocol_of(HOUSES, judges, PLAN), scores)
    second = Report("second", protocol_of(HOUSES, judges, PLAN, {"dropout": True}), scores)
    assert len(table_of([first, second])) == 3
    third = Report("third", protocol_of(HOUSES, judges, PLAN._replace(seed=1)), scores)
    with pytest.raises(InputError, match="seeds is"):
        table_of([first, third])


def test_photographs_are_judged_on_their_own_maps(judges: Judges):
    report = Report("look", protocol_of(HOUSES, judges, PLAN), measured(judges).scores())
    train = SyntheticFacades("train", num_images=10, resolution=64)
    row = photographs(report, train, HOUSES, judges)
    assert row.scores["mIoU"] == report.scores["mIoU of the real images"]
    assert "L1" not in row.scores and "FD-segmenter-synthetic-strict" in row.scores


# --- judges

def test_the_judges_that_ship_say_what_they_are_worth():
    names = ["perceptual-facades", "perceptual-synthetic", "segmenter-facades"]
    both = ["segmenter-synthetic-strict", "segmenter-synthetic"]
    assert list(shipped_segmenters()) == [*names, *both]
    for path in shipped_segmenters().values():
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        assert path.stat().st_size < 3e6
        for fact in ("test photographs at 128 px", "seed", "minutes", "commit", "command"):
            assert fact in card, (path, fact)
    judge, loss = (load_segmenter(f"{kind}-facades") for kind in ("segmenter", "perceptual"))
    assert judge.hash != loss.hash


def test_the_strict_judge_reads_new_houses_and_is_harder_to_please():
    houses = SyntheticFacades("test", num_images=24, resolution=128)
    cut_outs = ClassMean.of(SyntheticFacades("train", num_images=100, resolution=128), 128)
    read = {}
    for kind in ("segmenter-synthetic", "segmenter-synthetic-strict"):
        judge = load_segmenter(kind)
        scores = real_scores(judge, houses, 128)
        assert scores["mIoU"].value > 0.8 and scores["pixel accuracy"].value > 0.95
        layout, batch = LayoutAgreement(judge, 12), next(
            iter(evaluation_batches(houses, Resize(128), batch_size=24)))
        drawn = cut_outs.sample(batch.label_map)
        layout.update(drawn, batch.image, batch.label_map, torch.arange(24))
        read[kind] = layout.scores()["mIoU"].value
    assert read["segmenter-synthetic-strict"] < read["segmenter-synthetic"] - 0.05


def test_the_strict_judge_is_asked_where_there_is_one(facades_folder):
    houses = SyntheticFacades("test", num_images=2, resolution=64)
    assert find_judges(houses).segmenter.name == "segmenter-synthetic-strict"
    assert find_judges(Facades(facades_folder, "test")).segmenter.name == "segmenter-facades"
    assert find_judges(houses, segmenter="segmenter-synthetic").segmenter.name == (
        "segmenter-synthetic")
    assert find_judges(houses, segmenter="none").segmenter is None


def test_the_judge_of_real_facades_knows_whose_map_it_is(facades_folder):
    judge, test = load_segmenter("segmenter-facades"), Facades(facades_folder, "test")
    batch = next(iter(evaluation_batches(test, Resize(128), batch_size=40)))

    def agreement(image: torch.Tensor) -> float:
        layout = LayoutAgreement(judge, 12, num_resamples=2)
        layout.update(image, batch.image, batch.label_map, torch.arange(len(image)))
        return layout.scores()["mIoU"].value

    own, shuffled = agreement(batch.image), agreement(batch.image.roll(1, 0))
    assert own > 0.28
    assert shuffled < 0.4 * own


@pytest.mark.parametrize(("asked", "says"), [
    ({"features": ["inceptoin"]}, "there are segmenter, squeezenet"),
    ({"segmenter": "segmenter-facade.safetensors"}, "did you mean segmenter-facades"),
    ({"segmenter": "none", "features": ["squeezenet=nowhere.pt"]}, "no weights file nowhere.pt"),
])
def test_judges_that_are_not_there_are_a_sentence(asked: dict, says: str):
    with pytest.raises(InputError, match=says):
        find_judges(HOUSES, **asked)


def test_a_damaged_judge_is_a_sentence(tmp_path):
    file = tmp_path / "judge.safetensors"
    file.write_bytes(shipped_segmenters()["segmenter-facades"].read_bytes()[:5000])
    with pytest.raises(InputError, match="no segmenter of semsynth, or damaged"):
        load_segmenter(file)


# --- weights

LIMITS = {"synthetic": 3e6, "facades": 6e6}  # Bytes: they stay in the history for ever


@pytest.mark.parametrize("name", shipped_weights() or [
    pytest.param("none", marks=pytest.mark.skip(reason="no weights ship"))
])
def test_shipped_weights_draw_what_they_drew(name: str):
    path = shipped_weights()[name]
    weights = load_weights(path)
    data = weights.config.data["name"]
    assert path.stat().st_size < LIMITS[data]
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for fact in ("step", "minutes", "machine", "commit", "terms of the data", "mIoU of the real"):
        assert f"| {fact}" in card, fact
    kept = np.asarray(PIL.Image.open(path.with_suffix(".png"))).astype(int)
    drawn = np.asarray(preview(weights)).astype(int)
    assert drawn.shape == kept.shape == (*trained_resolution(weights.config), 3)
    assert np.abs(drawn - kept).mean() < 0.5 and drawn.std() > 20
