"From a painted map to a drawn image, and how smoothly the painter paints."
import sys
import tempfile
from pathlib import Path

import torch

from semsynth.configs import MODELS
from semsynth.labels import FACADES
from semsynth.painter import Easel
from semsynth.painting import Painting
from semsynth.playground import Playground

from .rows import ROOT, Row, best_of

SIDES = (64, 128)
ROUNDS = 5
MILLISECONDS = {False: 150, True: 1000}  # For one pass of a network, for a sampler of few steps
STEPS = 4                                # What "few" means
PAINTED = 256                            # Side of the painting in which frames are counted

CELL = f"""
from semsynth.labels import FACADES
from semsynth.painter import Easel, LabelPainter
from semsynth.painting import Painting
painter = LabelPainter(Easel(Painting(FACADES, {PAINTED})), class_id=2, brush=24)
painter
"""
# One stroke of 180 moves, one a frame, made in the page itself.
PAINT = """async () => {
  const canvas = [...document.querySelectorAll(".easel canvas")].at(-1);
  const box = canvas.getBoundingClientRect();
  const send = (type, n) => canvas.dispatchEvent(new PointerEvent(type, {
    pointerId: 1, isPrimary: true, button: 0, bubbles: true,
    clientX: box.left + box.width * (0.5 + 0.45 * Math.cos(n / 9)),
    clientY: box.top + box.height * (0.5 + 0.45 * Math.sin(n / 7)) }));
  canvas.setPointerCapture = () => {};
  const frame = () => new Promise(requestAnimationFrame);
  send("pointerdown", 0);
  await frame();
  const start = performance.now(), frames = 180;
  let busy = 0;
  for (let n = 1; n <= frames; n++) {
    const before = performance.now();
    send("pointermove", n);
    busy += performance.now() - before;
    await frame();
  }
  const seconds = (performance.now() - start) / 1000;
  send("pointerup", frames);
  return [frames / seconds, busy / frames];
}"""


def drawing() -> list[Row]:
    "A stroke's whole way in Python, for the small preset of every family, weights untrained."
    rows = []
    for name, family in MODELS.items():
        torch.manual_seed(0)
        model = family.builder(FACADES.num_classes, **family.presets["mini"]).eval()
        for side in SIDES:
            rows.append(answer(name, model, side))
    return rows


def answer(name: str, model, side: int) -> Row:
    "Rectangle, message to the painter, drawing, and the picture for the page."
    easel = Easel(Painting(FACADES, side, stuff=["background", "facade"]))
    board = Playground({name: model}, easel, limit=float("inf"))
    card = board.cards[name]
    many = "num_steps" in card.controls
    if many:
        card.controls["num_steps"].value = STEPS
    board.draw_all()
    colours = iter(range(ROUNDS + 1))

    def stroke() -> None:
        easel.use("rectangle", start=(8, 8), end=(40, 40), class_id=next(colours))

    milliseconds = 1000 * best_of(ROUNDS, stroke)[0]
    board.close()
    limit = MILLISECONDS[many]
    what = f"{name} mini, {side} px: stroke to image" + (f", {STEPS} steps" if many else "")
    return Row(what, f"{milliseconds:.0f} ms", f"<= {limit} ms", milliseconds <= limit)


def painting() -> list[Row]:
    "Frames a second while a stroke runs, in a real JupyterLab; without chromium, nothing."
    sys.path.insert(0, str(ROOT / "tests"))
    from lab import CHROMIUM, FLAGS, running_lab
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        return [Row("painting in a browser", "no chromium here")]
    with (
        tempfile.TemporaryDirectory() as place,
        running_lab(Path(place)) as lab,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(lab.write("frames.ipynb", [CELL]))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".easel canvas")
        found = [page.evaluate(PAINT)]
        page.get_by_label("Patterns").check()
        found.append(page.evaluate(PAINT))
        browser.close()
    kinds = ("plain", "with patterns")
    return [
        Row(f"painting at {PAINTED} px, brush 24, {kind}",
            f"{frames:.0f} frames/s, {busy:.1f} ms of work each", "> 30 frames/s", frames > 30)
        for kind, (frames, busy) in zip(kinds, found, strict=True)
    ]


def measure() -> list[Row]:
    "Both."
    return [*drawing(), *painting()]
