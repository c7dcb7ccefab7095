"The widgets in a real JupyterLab: hands in chromium, and Python asked what it saw."
import base64
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import numpy as np
import PIL.Image
import pytest
from lab import CHROMIUM, FLAGS, Kernel, Lab, running_lab

from semsynth.painting import touched

CELLS = {
    "imports": """
import time
import torch
from semsynth.cgan import PRESETS, cgan
from semsynth.datasets import SyntheticFacades
from semsynth.labels import FACADES
from semsynth.painter import Easel, FormPainter, LabelPainter
from semsynth.painting import Painting
from semsynth.playground import Playground
from semsynth.plots import show_curves
from semsynth.synthesizer import History
from semsynth.viewers import CompareSlider, DenoisingExplorer
from semsynth.widgets import LiveCurves, Pace

torch.manual_seed(0)
show_curves(History([{"loss": 1.0}]))  # the first picture waits for matplotlib
facades = SyntheticFacades(resolution=64)

def easel_with(index):
    easel = Easel(Painting(FACADES, 64, stuff=["background", "facade"]))
    easel.load(*facades[index][1:])
    return easel
""",
    "painter": "painter = LabelPainter(easel_with(3), class_id=2)\npainter",
    "playground": """
model = cgan(12, **PRESETS["mini"]).eval()
for name, weight in model.named_parameters():
    weight.data *= 3  # untrained weights are small, and so are their images
first, second = (Playground({"cGAN": model}, easel_with(n), limit=5000.0) for n in (3, 5))
first
""",
    "second": "second",
    "explorer": """
noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
image = facades[3].image[None]
explorer = DenoisingExplorer([(1 - n / 8) * noise + n / 8 * image for n in range(9)], index=0)
explorer
""",
    "compare": 'compare = CompareSlider({"left": -image, "right": image})\ncompare',
    "form": "form = FormPainter(easel_with(8))\nform",
    "curves": """
history = History()
with LiveCurves(history, pace=Pace(seconds=0.0, share=1e9)) as curves:
    for step in range(30):
        history.append({"loss": 1 / (step + 1)})
        curves.update()
        time.sleep(0.1)
""",
}


class Notebook(NamedTuple):
    "A notebook that is open, and what its page complained of or asked for."

    page: object
    kernel: Kernel
    complaints: list[str]
    hosts: set[str]

    def cell(self, name: str):
        "The output of a cell."
        return self.page.locator(".jp-Cell").nth(list(CELLS).index(name)).locator(".jp-OutputArea")

    def until(self, expression: str, value: object, seconds: float = 20) -> None:
        "Waits until Python gives this value."
        deadline = time.monotonic() + seconds
        while (found := self.kernel.value(expression)) != value:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {value}"
            time.sleep(0.05)

    def label_map(self, easel: str) -> np.ndarray:
        return np.array(self.kernel.value(f"{easel}.label_map.tolist()"))

    def at(self, place, column: float, row: float) -> tuple[float, float]:
        "Where the middle of a pixel of a painting is on the page."
        box = place.locator(".easel canvas").last.bounding_box()
        return (box["x"] + box["width"] * (column + 0.5) / 64,
                box["y"] + box["height"] * (row + 0.5) / 64)

    def drag(self, place, points: list[tuple[int, int]]) -> None:
        "Presses the mouse at the first point and lets go at the last."
        place.locator(".easel").scroll_into_view_if_needed()
        self.page.mouse.move(*self.at(place, *points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.at(place, *point))
        self.page.mouse.up()


def chromium_or_skip() -> str:
    if CHROMIUM is None:
        reason = "no chromium is here: install it, or name it in SEMSYNTH_CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return CHROMIUM


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    chromium_or_skip()
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def notebook(lab: Lab) -> Iterator[Notebook]:
    "All cells but the last have run."
    from playwright.sync_api import sync_playwright

    complaints, hosts = [], set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_or_skip(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.on("console", lambda said: complaints.append(said.text)
                if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(urlparse(request.url).hostname))
        page.goto(lab.write("widgets.ipynb", list(CELLS.values())))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
        run_cells(page, range(len(CELLS) - 1))
        page.wait_for_selector(".widget-dropdown")
        kernel = lab.kernel()
        kernel.value("form is not None")
        yield Notebook(page, kernel, complaints, hosts)
        kernel.close()
        browser.close()


def run_cells(page, indices) -> None:
    "Asks for the cells to be run, and does not wait for the last of them."
    page.evaluate("""async (indices) => {
      const { commands, shell } = jupyterapp;
      for (const index of indices) {
        shell.currentWidget.content.activeCellIndex = index;
        await commands.execute("notebook:run-cell");
      }
    }""", list(indices)) if len(indices) > 1 else page.evaluate("""(index) => {
      jupyterapp.shell.currentWidget.content.activeCellIndex = index;
      jupyterapp.commands.execute("notebook:run-cell");
    }""", indices[0])


def shown_pixels(place) -> np.ndarray:
    "The colour in the middle of every pixel of a painting, as the canvas shows it."
    address = place.locator(".easel canvas").first.evaluate("canvas => canvas.toDataURL()")
    image = PIL.Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB")
    scale = image.width // 64
    return np.array(image)[scale // 2 :: scale, scale // 2 :: scale]


def painted(notebook: Notebook, label_map: np.ndarray) -> np.ndarray:
    "The colours that a label map has."
    palette = np.array(notebook.kernel.value("[list(c) for c in FACADES.palette]"))
    return palette[label_map]


def drawn(place) -> np.ndarray:
    "The image on the first card of a playground."
    source = place.locator("img[alt^='drawn by']").first.get_attribute("src")
    image = PIL.Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    return np.array(image.convert("RGB")).astype(int)


def test_a_stroke_of_the_mouse_paints_what_the_arithmetic_says(notebook: Notebook):
    place, before = notebook.cell("painter"), notebook.label_map("painter")
    version = notebook.kernel.value("painter.version")
    points = [(8, 8), (30, 12), (44, 40)]
    notebook.drag(place, points)
    notebook.until("painter.version", version + 1)  # one message, one answer

    expected = np.where(touched(points, 8, (64, 64)), 2, before)
    assert (notebook.label_map("painter") == expected).all()
    assert (expected != before).sum() > 200
    notebook.page.wait_for_function(
        "v => document.querySelector('.semsynth-painter').dataset.version == v", arg=version + 1)
    assert (shown_pixels(place) == painted(notebook, expected)).all()
    root = place.locator(".semsynth-painter")
    assert root.get_attribute("data-corrected") == "0"  # Python's answer changed no pixel


def test_keys_fill_take_back_and_make_again(notebook: Notebook):
    place, page = notebook.cell("painter"), notebook.page
    canvas = place.locator(".easel canvas").last
    before = notebook.label_map("painter")
    top = before == before[0, 0]
    canvas.focus()
    for key in ["f", "5", *["Shift+ArrowUp"] * 4, *["Shift+ArrowLeft"] * 4, "Enter"]:
        page.keyboard.press(key)
    notebook.until("painter.label_map[0, 0].item()", 5)
    filled = notebook.label_map("painter")
    assert (filled[~top] == before[~top]).all() and (filled == 5).sum() > 100

    page.keyboard.press("Control+z")
    notebook.until("painter.label_map[0, 0].item()", int(before[0, 0]))
    assert (notebook.label_map("painter") == before).all()
    page.keyboard.press("Control+y")
    notebook.until("painter.label_map[0, 0].item()", 5)
    assert (notebook.label_map("painter") == filled).all()
    page.keyboard.press("Control+z")
    notebook.until("painter.label_map[0, 0].item()", int(before[0, 0]))


def test_keys_draw_a_line_with_the_brush(notebook: Notebook):
    place, page = notebook.cell("painter"), notebook.page
    before = notebook.label_map("painter")
    place.locator(".easel canvas").last.focus()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("3")
    notebook.until("[painter.tool, painter.class_id, painter.brush]", ["brush", 3, 8])
    for _ in range(8):  # the cursor goes to the corner, wherever it was
        page.keyboard.press("Shift+ArrowUp")
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press(" ")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press(" ")
    notebook.until("painter.label_map[0, 20].item()", 3)
    mask = touched([(0, 0), (24, 0)], 8, (64, 64))
    assert (notebook.label_map("painter") == np.where(mask, 3, before)).all()
    page.keyboard.press("Control+z")
    notebook.until("painter.label_map[0, 20].item()", int(before[0, 20]))


def test_rectangle_pick_and_move(notebook: Notebook):
    place = notebook.cell("painter")
    palette = place.get_by_role("radiogroup")
    palette.get_by_role("radio", name="shop").click()
    place.get_by_role("button", name="Rectangle").click()
    notebook.drag(place, [(50, 4), (57, 10)])
    notebook.until("(painter.label_map == 11)[4:11, 50:58].all().item()", True)

    place.get_by_role("button", name="Pick class").click()
    notebook.drag(place, [(0, 0)])
    notebook.until("painter.class_id", int(notebook.label_map("painter")[0, 0]))
    place.get_by_role("button", name="Move object").click()
    notebook.drag(place, [(52, 6), (12, 20)])
    notebook.until("(painter.label_map == 11)[18:25, 10:18].all().item()", True)
    assert not (notebook.label_map("painter")[4:11, 50:58] == 11).any()


def test_a_file_goes_out_and_comes_back(notebook: Notebook, tmp_path: Path):
    place, page = notebook.cell("painter"), notebook.page
    before = notebook.label_map("painter")
    with page.expect_download() as download:
        place.get_by_role("button", name="Save labels").click()
    download.value.save_as(tmp_path / "mine.png")
    assert (np.array(PIL.Image.open(tmp_path / "mine.png")) == before).all()

    place.get_by_role("button", name="Clear").click()
    notebook.until("painter.label_map.unique().tolist()", [255])
    with page.expect_file_chooser() as chooser:
        place.get_by_role("button", name="Load labels").click()
    chooser.value.set_files(tmp_path / "mine.png")
    notebook.until("painter.label_map[0, 0].item()", int(before[0, 0]))
    assert (notebook.label_map("painter") == before).all()

    (tmp_path / "notes.png").write_text("no picture")
    with page.expect_file_chooser() as chooser:
        place.get_by_role("button", name="Load labels").click()
    chooser.value.set_files(tmp_path / "notes.png")
    place.get_by_role("status").filter(has_text="notes.png cannot be read").wait_for()
    assert (notebook.label_map("painter") == before).all()


def test_a_model_answers_a_stroke_and_its_neighbour_does_not(notebook: Notebook):
    place, other = notebook.cell("playground"), notebook.cell("second")
    image, neighbour = drawn(place), drawn(other)
    place.get_by_role("radio", name="door").click()
    notebook.drag(place, [(32, 30), (40, 30)])
    notebook.until("first.easel.label_map[30, 36].item()", 3)
    notebook.page.wait_for_timeout(500)

    change = np.abs(drawn(place) - image).sum(-1)
    door = change[26:35, 28:45].mean()
    assert door > 20 and door > 4 * change[:, :8].mean()  # where the door is, little far from it
    assert (drawn(other) == neighbour).all()
    assert notebook.kernel.value("second.easel.painting.done.__len__()") == 1  # its sample alone
    assert place.get_by_text(" ms").count() == 1


def test_steps_of_the_explorer_differ(notebook: Notebook):
    place, page = notebook.cell("explorer"), notebook.page
    image, slider = place.locator("img.large"), place.locator("input[type=range]")
    place.scroll_into_view_if_needed()
    seen = [image.get_attribute("src")]
    slider.focus()
    for step in range(1, 9):
        page.keyboard.press("ArrowRight")
        notebook.until("explorer.index", step)
        seen.append(image.get_attribute("src"))
    assert len(set(seen)) == 9
    place.locator(".strip button").first.click()
    notebook.until("explorer.index", 0)
    place.get_by_role("button", name="Play").click()
    notebook.until("explorer.index", 8)


def test_the_line_of_the_comparison_follows(notebook: Notebook):
    place, page = notebook.cell("compare"), notebook.page
    slider = place.locator("input[type=range]")
    slider.scroll_into_view_if_needed()
    slider.focus()
    page.keyboard.press("Home")
    notebook.until("compare.position", 0.0)
    shown = place.locator(".stage").evaluate("stage => stage.style.getPropertyValue('--cut')")
    assert shown == "0%"


def test_the_form_paints_without_a_widget_of_its_own(notebook: Notebook):
    place = notebook.cell("form")
    place.scroll_into_view_if_needed()
    place.locator("select").nth(1).select_option("door")
    place.get_by_role("button", name="Paint").click()
    notebook.until("(form.easel.label_map == 3)[:33, :33].all().item()", True)


def test_curves_grow_while_a_cell_trains(notebook: Notebook):
    page, place = notebook.page, notebook.cell("curves")
    run_cells(page, [len(CELLS) - 1])
    sizes = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (not sizes or sizes[-1] != "30"):
        image = place.locator("img")
        if image.count():
            words = image.first.get_attribute("alt").split(" steps")[0].split()
            if not sizes or sizes[-1] != words[-1]:
                sizes.append(words[-1])
        page.wait_for_timeout(50)
    assert sizes[-1] == "30" and len(sizes) >= 4


def test_nobody_complained_and_nothing_left_the_machine(notebook: Notebook):
    assert notebook.complaints == []
    assert notebook.page.locator(".jp-Cell").count() == len(CELLS)  # no key was JupyterLab's
    assert {host for host in notebook.hosts if host} <= {"127.0.0.1", "localhost"}
