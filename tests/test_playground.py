"The painting, its painters and the playground as plain Python: no browser, no kernel."
import io
from typing import Annotated, Literal

import ipywidgets
import numpy as np
import PIL.Image
import pytest
import torch

from semsynth.configs import MODELS
from semsynth.labels import CITYSCAPES, FACADES, IGNORE_INDEX, InputError
from semsynth.painter import Easel, FormPainter, LabelPainter, PaletteLegend, labels_as_bytes
from semsynth.painting import TOOLS, Painting, disc, line, load_png, to_png, touched
from semsynth.playground import OFF, Playground, StyleMixer, controls
from semsynth.synthesizer import Synthesizer
from semsynth.viewers import CompareSlider, DenoisingExplorer, SampleBrowser
from semsynth.widgets import WIDGET_VIEW

WINDOW, DOOR = FACADES.names.index("window"), FACADES.names.index("door")


class Hues(Synthesizer):
    "Paints each class in a grey of its own, with noise that the seed fixes."

    trained, num_classes = (), FACADES.num_classes

    def __init__(self, fails: bool = False):
        super().__init__()
        self.fails, self.calls = fails, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_losses(self, batch, step):
        yield from ()

    def sample(self, label_map, instance_map=None, *, rng=None, strength: float = 0.1,
               style_image: torch.Tensor | None = None):
        self.calls += 1
        if self.fails:
            raise RuntimeError("not enough memory")
        grey = (label_map[:, None].float() / 6 - 1).clamp(-1, 1).expand(-1, 3, -1, -1)
        noise = torch.rand(label_map.shape, generator=rng)[:, None] - 0.5
        image = grey + strength * noise
        return image if style_image is None else (image + style_image.mean()).clamp(-1, 1)


class Slow(Hues):
    "Walks through many steps, as diffusion models do."

    def sample(self, label_map, instance_map=None, *, rng=None, num_steps: int = 50):
        return super().sample(label_map, instance_map, rng=rng)


class FewSteps(Hues):
    "Walks through steps as well, but through few."

    def sample(self, label_map, instance_map=None, *, rng=None, num_steps: int = 4):
        return super().sample(label_map, instance_map, rng=rng)


def easel(size: int | tuple[int, int] = 64) -> Easel:
    return Easel(Painting(FACADES, size, stuff=["background", "facade"]))


# --- the painting

@pytest.mark.parametrize("brush", [1, 2, 3, 7, 16, 64])
def test_a_brush_is_a_disc(brush: int):
    rows, columns = disc(brush).T
    assert len(set(rows)) == len(set(columns)) == brush  # as wide as it says
    middle = (brush - 1) / 2 - (brush - 1) // 2
    far = np.hypot(rows - middle, columns - middle)
    assert far.max() <= brush / 2
    assert abs(len(rows) - np.pi * brush**2 / 4) <= 0.35 * brush + 2


@pytest.mark.parametrize("end", [(9, 3), (-7, 2), (4, 9), (-3, -8), (0, 0), (5, 5)])
def test_a_line_has_no_gap(end: tuple[int, int]):
    places = line((0, 0), end)
    assert places[0].tolist() == [0, 0] and places[-1].tolist() == [end[1], end[0]]
    assert np.abs(np.diff(places, axis=0)).max(initial=0) <= 1


def test_a_stroke_outside_is_cut():
    assert touched([(-40, -40), (-30, -20)], 8, (64, 64)).sum() == 0
    assert touched([(-5, 10), (70, 10)], 1, (64, 64)).sum() == 64


def test_every_tool_can_be_taken_back_and_made_again():
    subject = easel()
    subject.use("rectangle", start=(4, 4), end=(60, 60), class_id=1)
    subject.use("rectangle", start=(20, 20), end=(29, 29), class_id=WINDOW)
    arguments = {
        "stroke": {"points": [[2, 2], [50, 9]], "class_id": DOOR, "brush": 5},
        "rectangle": {"start": [40, 40], "end": [35, 50], "class_id": 4},
        "fill": {"point": [0, 0], "class_id": 0}, "move": {"start": [22, 22], "end": [12, 50]},
        "mirror": {}, "clear": {},
    }
    assert set(arguments) | {"undo", "redo"} == set(TOOLS)
    for tool, values in arguments.items():
        before = subject.label_map, subject.instance_map
        copies = [ids.clone() for ids in before]
        assert subject.use(tool, **values), tool
        after = subject.label_map, subject.instance_map
        assert any((a != b).any() for a, b in zip(after, before, strict=True)), tool
        assert all(map(torch.equal, before, copies)), f"{tool} wrote into a map it had given away"
        subject.use("undo")
        assert torch.equal(subject.label_map, before[0]), tool
        assert torch.equal(subject.instance_map, before[1]), tool
        subject.use("redo")
        assert torch.equal(subject.label_map, after[0]), tool
        assert torch.equal(subject.instance_map, after[1]), tool
        subject.use("undo")


def test_objects_are_kept_apart_and_grow():
    subject = easel()
    subject.use("rectangle", start=(0, 0), end=(63, 63), class_id=1)
    for left in (10, 20):
        subject.use("rectangle", start=(left, 10), end=(left + 9, 30), class_id=WINDOW)
    subject.use("stroke", points=[(12, 12), (12, 40)], class_id=WINDOW, brush=3)
    assert subject.instance_map.unique().tolist() == [1, 2001, 2002]
    assert subject.instance_map[40, 12] == 2001  # the stroke began on the first window
    subject.use("fill", point=(22, 12), class_id=DOOR)
    assert subject.instance_map[30, 29] == 3001 and subject.instance_map[30, 19] == 2001


def test_moving_closes_the_gap_and_cuts_at_the_edge():
    subject = easel()
    subject.use("rectangle", start=(0, 0), end=(63, 63), class_id=1)
    subject.use("rectangle", start=(10, 10), end=(19, 19), class_id=WINDOW)
    subject.use("move", start=(15, 15), end=(62, 40))
    assert (subject.label_map[10:20, 10:20] == 1).all()
    assert (subject.label_map == WINDOW).sum() == 10 * 7  # columns 57 to 63 of 57 to 66
    assert (subject.instance_map == 2001).sum() == 70


def test_two_hundred_changes_are_kept_and_no_more():
    subject = easel()
    for step in range(250):
        subject.use("rectangle", start=(0, 0), end=(63, 63), class_id=step % 2)
    assert len(subject.painting.done) == 200
    for _ in range(300):
        subject.use("undo")
    assert subject.label_map.unique().tolist() == [1]


@pytest.mark.parametrize(("tool", "arguments", "sentence"), [
    ("spray", {}, "there is no tool 'spray'"),
    ("fill", {"point": (64, 0), "class_id": 1}, "is not in a painting of 64 x 64"),
    ("stroke", {"points": [], "class_id": 1}, "a stroke needs a point"),
    ("stroke", {"points": [(1, 1)], "class_id": 12}, "the brush holds id 12"),
    ("move", {"start": (1, 1), "end": (2, 2)}, "nowhere to move it"),
])
def test_a_mistake_is_a_sentence_and_the_painting_stays(tool, arguments, sentence):
    subject = easel()
    subject.use("clear")
    before = subject.label_map
    assert not subject.use(tool, **arguments)
    assert sentence in subject.status and torch.equal(subject.label_map, before)
    assert subject.use("rectangle", start=(0, 0), end=(9, 9), class_id=1) and not subject.status


@pytest.mark.parametrize("size", [32, 63, 513, (64, 1024)])
def test_a_painting_has_64_to_512_pixels_a_side(size):
    with pytest.raises(InputError, match="each side has 64 to 512"):
        Painting(FACADES, size)


@pytest.mark.parametrize("size", [64, 512, (64, 128)])
def test_files_come_back_exactly(size):
    subject = easel(size)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(12, subject.painting.size, generator=rng)
    subject.load(ids, ids * 1000 + torch.randint(900, ids.shape, generator=rng))
    copy = Painting(FACADES, size)
    load_png(copy, to_png(subject.painting), "a.png")
    load_png(copy, to_png(subject.painting, instances=True), "b.png", instances=True)
    assert torch.equal(copy.label_map, subject.label_map)
    assert torch.equal(copy.instance_map, subject.instance_map)


def test_a_file_of_another_size_is_resized_and_a_foreign_one_refused():
    large, small = Painting(FACADES, 128), easel()
    large.label_map[:, 64:] = 3
    assert small.load_file(to_png(large), "large.png")
    assert (small.label_map[:, 32:] == 3).all() and (small.label_map[:, :32] == 255).all()
    content = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), (1, 2, 3)).save(content, "PNG")
    assert not small.load_file(content.getvalue(), "../../photo.png")
    assert small.status.startswith("photo.png") and (small.label_map[:, 32:] == 3).all()


# --- painters

def test_traits_are_binary_both_ways():
    painter = LabelPainter(easel())
    state = painter.get_state(["labels", "objects"])
    assert [len(state[name]) for name in ("labels", "objects")] == [64 * 64, 2 * 64 * 64]
    file = to_png(Painting(FACADES, 64))
    painter.easel.use("rectangle", start=(0, 0), end=(63, 63), class_id=1)
    painter.set_state({"file_name": "a.png", "file": memoryview(file)})
    assert painter.label_map.unique().tolist() == [IGNORE_INDEX] and painter.file == b""


def test_a_message_is_answered_in_one_message(monkeypatch: pytest.MonkeyPatch):
    painter, sent = LabelPainter(easel()), []
    monkeypatch.setattr(painter, "send_state", lambda key=None: sent.append(set(key)))
    content = {"tool": "fill", "point": [3, 3], "class_id": 1, "number": 1_700_000_000_000}
    painter._handle_custom_msg(content, [])
    assert len(sent) == 1 and {"labels", "echo", "version"} <= set(sent[0])
    assert painter.echo == 1_700_000_000_000 and (painter.label_map == 1).all()


def test_saving_offers_the_file_in_bytes(monkeypatch: pytest.MonkeyPatch):
    painter, sent = LabelPainter(easel()), []
    monkeypatch.setattr(painter, "send", lambda content, buffers=None: sent.append(
        (content, buffers)))
    for what in ("labels", "objects"):
        painter._handle_custom_msg({"save": what}, [])
    names = [content["file"] for content, _ in sent]
    assert names == ["painting.png", "painting_objects.png"]
    assert all(type(file) is bytes and file.startswith(b"\x89PNG") for _, (file,) in sent)


def test_what_cannot_be_saved_is_said():
    subject = Easel(Painting(FACADES, 64))
    subject.load(subject.label_map, torch.full((64, 64), 70_000))
    painter = LabelPainter(subject)
    painter._handle_custom_msg({"save": "objects"}, [])
    assert "70000 does not fit into the 16 bits" in painter.status


@pytest.mark.parametrize("choose", [LabelPainter, FormPainter, PaletteLegend])
def test_closed_widgets_are_called_no_more(choose):
    subject = easel()
    widget = choose(subject)
    assert len(subject.followers) == 1
    widget.close()
    widget.close()  # twice is no mistake
    assert subject.followers == []


def test_the_form_does_what_the_pointer_does():
    subject = easel()
    form, painter = FormPainter(subject), LabelPainter(subject)
    form.class_id.value = 1
    form.numbers["To column"].value = form.numbers["To row"].value = 63
    form.paint.click()
    form.tool.value, form.class_id.value = "fill", DOOR
    form.paint.click()
    assert (painter.label_map == DOOR).all()
    form.changes["undo"].click()
    assert (painter.label_map == 1).all()
    assert painter.labels == labels_as_bytes(subject.label_map)
    form.tool.value = "move"
    form.paint.click()
    assert "nowhere to move it" in form.status.value and "nowhere" in painter.status


def test_a_widget_shows_itself_and_a_picture_but_in_tests_the_picture_alone(
    monkeypatch: pytest.MonkeyPatch
):
    subject = easel()
    image = torch.zeros(1, 3, 64, 64)
    widgets = [
        LabelPainter(subject), FormPainter(subject), PaletteLegend(subject),
        Playground({"hues": Hues()}, subject), CompareSlider({"a": image, "b": image}),
        DenoisingExplorer([image, image]), StyleMixer(Hues(), subject.label_map[None], image,
                                                      image, option="style_image"),
    ]
    for name in ("IN_TEST", "SEMSYNTH_STILL"):
        monkeypatch.delenv(name, raising=False)
    for widget in widgets:
        contents, _ = widget._repr_mimebundle_()
        assert WIDGET_VIEW in contents and {"image/png", "image/jpeg"} & set(contents)
        assert 'alt="' in contents["text/html"]
    monkeypatch.setenv("IN_TEST", "1")
    for widget in widgets:
        assert WIDGET_VIEW not in widget._repr_mimebundle_()[0]


# --- the playground

def test_sliders_follow_the_annotations():
    def sample(label_map, *, rng=None, flag: bool = True, way: Literal["a", "b"] = "b",
               num_steps: int = 20, scale: Annotated[float, (0.5, 2.0)] = 1.0,
               top_k: int | None = None, odd: torch.Tensor | None = None, words: str = "x"):
        raise NotImplementedError

    made = controls(sample)
    assert list(made) == ["flag", "way", "num_steps", "scale", "top_k", "words"]
    assert (made["flag"].value, made["way"].value, made["words"].value) == (True, "b", "x")
    assert (made["num_steps"].min, made["num_steps"].max) == (1, 100)
    assert (made["scale"].min, made["scale"].max) == (0.5, 2.0)
    assert made["top_k"].value == OFF


@pytest.mark.parametrize("name", MODELS)
def test_every_family_takes_part_without_a_line_of_its_own(name: str):
    family = MODELS[name]
    model = family.builder(FACADES.num_classes, **family.presets["mini"]).eval()
    subject = easel()
    subject.use("rectangle", start=(0, 0), end=(63, 63), class_id=1)
    board = Playground({name: model}, subject)
    board.draw_all()
    card = board.cards[name]
    assert card.image is not None, card.words.value
    assert card.image.shape == (1, 3, 64, 64) and card.milliseconds > 0
    board.close()


def test_quick_models_draw_at_once_and_slow_ones_when_asked():
    subject, quick, slow, asked = easel(), Hues(), Slow(), Hues()
    board = Playground({"quick": quick, "slow": slow, "asked": asked}, subject, asked=["asked"])
    assert (quick.calls, slow.calls, asked.calls) == (1, 0, 0)
    subject.use("fill", point=(0, 0), class_id=1)
    assert (quick.calls, slow.calls, asked.calls) == (2, 0, 0)
    board.cards["slow"].button.click()
    assert slow.calls == 1
    subject.use("fill", point=(0, 0), class_id=2)
    assert slow.calls == 2  # it was quick after all
    board.limit = 0.0
    subject.use("fill", point=(0, 0), class_id=3)
    assert (quick.calls, slow.calls) == (3, 2)
    assert "The painting has changed" in board.cards["quick"].words.value


def test_few_steps_are_not_waited_for():
    few = FewSteps()
    Playground({"few": few}, easel()).close()
    assert few.calls == 1


def test_the_seed_is_kept_and_another_gives_another_image():
    subject = easel()
    board = Playground({"hues": Hues()}, subject, seed=5)
    first = board.cards["hues"].image
    board.draw_all()
    assert torch.equal(board.cards["hues"].image, first)
    board.seed.value = 6
    assert not torch.equal(board.cards["hues"].image, first)
    board.seed.value = 5
    assert torch.equal(board.cards["hues"].image, first)


def test_a_slider_redraws_its_own_card():
    first, second = Hues(), Hues()
    board = Playground({"first": first, "second": second}, easel())
    board.cards["first"].controls["strength"].value = 0.0
    assert (first.calls, second.calls) == (2, 1)
    assert board.cards["first"].image.unique().numel() == 1


def test_a_model_that_fails_says_so_and_nothing_is_lost():
    subject, model = easel(), Hues()
    board = Playground({"hues": model}, subject)
    kept = board.cards["hues"].image
    model.fails = True
    subject.use("fill", point=(0, 0), class_id=1)
    assert "hues cannot draw this: not enough memory" in board.cards["hues"].words.value
    assert (subject.label_map == 1).all() and board.cards["hues"].image is kept
    model.fails = False
    subject.use("fill", point=(0, 0), class_id=2)
    assert " ms" in board.cards["hues"].words.value


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(InputError, match="hues knows 12 classes, but cityscapes"):
        Playground({"hues": Hues()}, Easel(Painting(CITYSCAPES, 64)))
    with pytest.raises(InputError, match="there is no model 'spadé'"):
        Playground({"hues": Hues()}, easel(), asked=["spadé"])


def test_two_playgrounds_share_nothing():
    model = Hues()
    first, second = Playground({"a": model}, easel()), Playground({"a": model}, easel())
    image, seed = second.cards["a"].image, second.seed.value
    first.easel.use("fill", point=(0, 0), class_id=1)
    first.seed.value = 77
    first.cards["a"].controls["strength"].value = 0.2
    assert second.cards["a"].image is image and second.seed.value == seed
    assert second.cards["a"].controls["strength"].value == 0.1
    assert (second.easel.label_map == IGNORE_INDEX).all()


def test_a_closed_playground_draws_no_more():
    subject, model = easel(), Hues()
    board = Playground({"hues": model}, subject)
    slider, button, seed = board.cards["hues"].controls["strength"], board.all, board.seed
    board.close()
    subject.use("fill", point=(0, 0), class_id=1)
    slider.value, seed.value = 0.2, 9
    button.click()
    assert model.calls == 1 and subject.followers == []
    assert not [w for w in ipywidgets.Widget.widgets.values() if w in board.cards.values()]


def test_the_board_is_one_png(monkeypatch: pytest.MonkeyPatch):
    subject, offered = easel(), []
    board = Playground({"one": Hues(), "two": Hues()}, subject)
    monkeypatch.setattr(board.painter, "offer", lambda *file: offered.append(file))
    board.export.click()
    name, content = offered[0]
    image = PIL.Image.open(io.BytesIO(content))
    assert name == "board.png" and image.format == "PNG"
    assert image.width == 3 * 64 + 2 * 4  # the map and two answers, pixel for pixel


def test_a_form_can_be_the_painter():
    subject = easel()
    board = Playground({"hues": Hues()}, subject, painter=FormPainter(subject))
    board.export.click()
    assert 'download="board.png"' in board.painter.status.value


def test_styles_are_offered_where_a_family_takes_them():
    bright = torch.ones(1, 3, 64, 64)
    board = Playground({"hues": Hues(), "slow": Slow()}, easel(), styles={"bright": bright})
    assert "style_image" not in board.cards["slow"].controls
    before = board.cards["hues"].image
    board.cards["hues"].controls["style_image"].value = "bright"
    assert board.cards["hues"].image.mean() > before.mean()


# --- viewers

def test_the_mixer_ends_where_its_styles_are():
    dark, bright = -0.5 * torch.ones(1, 3, 8, 8), 0.5 * torch.ones(1, 3, 8, 8)
    label_map = torch.full((1, 64, 64), 6)
    mixer = StyleMixer(Hues(), label_map, dark, bright, option="style_image")
    means = [mixer.image(position).mean().item() for position in (0.0, 0.5, 1.0)]
    assert means == pytest.approx([-0.5, 0.0, 0.5], abs=0.02)
    kept = mixer.view.value
    mixer.slider.value = 0.9
    assert mixer.view.value != kept
    mixer.model.fails, kept = True, mixer.view.value
    mixer.slider.value = 0.1
    assert "not enough memory" in mixer.words.value and mixer.view.value == kept


def test_the_explorer_takes_what_a_sampler_yields():
    explorer = DenoisingExplorer(torch.full((1, 3, 8, 8), n / 4) for n in range(5))
    assert len(set(explorer.frames)) == 5 and explorer.index == 4
    assert explorer.captions[-1] == "step 4 of 4"
    with pytest.raises(InputError, match="yielded nothing"):
        DenoisingExplorer(iter(()))
    with pytest.raises(InputError, match="2 captions are given for 1 steps"):
        DenoisingExplorer([torch.zeros(1, 3, 8, 8)], ["a", "b"])


def test_images_of_two_sizes_are_not_compared():
    with pytest.raises(InputError, match="they must be equal"):
        CompareSlider({"a": torch.zeros(1, 3, 8, 8), "b": torch.zeros(1, 3, 16, 16)})


def test_the_browser_filters_and_turns():
    from semsynth.datasets import SyntheticFacades

    dataset = SyntheticFacades(resolution=32, num_images=30)
    browser = SampleBrowser(dataset, {"hues": Hues()}, rows=2)
    assert browser.indices == [0, 1]
    browser.filter.value = 6
    shown = [browser.indices]
    while not browser.later.disabled:
        browser.later.click()
        shown.append(browser.indices)
    found = [index for page in shown for index in page]
    assert found == [n for n in range(30) if (dataset.label_map(n) == 6).any()]
    browser.earlier.click()
    assert browser.indices == shown[-2]
    browser.models["hues"].fails = True
    browser.filter.value = None
    assert "not enough memory" in browser.status.value
