"Live curves: a view of a history that draws in a notebook, and only there."
import io
import subprocess
import sys

import PIL.Image
import pytest

import semsynth.widgets as widgets
from semsynth.plots import show_curves
from semsynth.synthesizer import History
from semsynth.widgets import LiveCurves, Pace


class Page:
    "Stands for a notebook: remembers what was displayed and how often it was replaced."

    def __init__(self):
        self.displayed, self.updates = [], []

    def display(self, picture, display_id: bool):
        self.displayed.append(picture)
        return self

    def update(self, picture):
        self.updates.append(picture)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", page.display)
    return page


def rows(number: int) -> list[dict[str, float]]:
    return [{"generator/l1": 1 / (step + 1), "step": step + 1} for step in range(number)]


def test_pauses_are_half_a_second_or_twenty_times_the_drawing():
    pace = Pace()
    assert pace.is_due(0.0)
    pace.drew(0.0, 0.01)
    assert not pace.is_due(0.5) and pace.is_due(0.52)
    pace.drew(1.0, 1.2)
    assert not pace.is_due(5.1) and pace.is_due(5.3)


def test_one_output_whose_picture_is_replaced(page: Page):
    history = History()
    with LiveCurves(history, pace=Pace(0.0, 1e9)) as curves:
        for row in rows(5):
            history.append(row)
            curves.update()
    assert len(page.displayed) == 1
    assert len(page.updates) == 5  # four while it ran, one at the end
    assert page.updates[-1] is curves.picture
    assert "5 steps" in curves.picture.alt


def test_the_pace_holds_back_all_but_the_first_and_the_last(page: Page):
    history = History()
    with LiveCurves(history, pace=Pace(seconds=1000.0)) as curves:
        for row in rows(20):
            history.append(row)
            curves.update()
    assert len(page.displayed) == 1 and len(page.updates) == 1


def test_the_picture_is_a_small_png_with_a_sentence(page: Page):
    with LiveCurves(History(rows(50)), title="A line") as curves:
        pass
    kind, content = curves.picture.encode()
    assert kind == "image/png" and len(content) < 60_000
    assert PIL.Image.open(io.BytesIO(content)).width > 300
    assert "generator/l1" in curves.picture.alt


def test_an_interruption_ends_the_loop_and_keeps_the_rows(page: Page, capsys):
    history = History()
    with LiveCurves(history):
        for row in rows(3):
            history.append(row)
        raise KeyboardInterrupt
    assert len(history) == 3 and len(page.displayed) == 1
    assert "3 rows are kept" in capsys.readouterr().out


def test_any_other_error_passes_and_the_curves_stay(page: Page):
    with pytest.raises(ZeroDivisionError), LiveCurves(History(rows(2))):
        raise ZeroDivisionError
    assert len(page.displayed) == 1


def test_nothing_to_draw_is_not_an_error(page: Page):
    with LiveCurves(History()) as curves:
        curves.update()
    assert curves.finish() is None and not page.displayed


def test_outside_a_notebook_nothing_is_drawn_until_the_end(monkeypatch: pytest.MonkeyPatch):
    drawn = []

    def drawing(history: History, **options):
        drawn.append(len(history))
        return show_curves(history, **options)

    monkeypatch.setattr(widgets, "show_curves", drawing)
    history = History()
    with LiveCurves(history) as curves:
        for row in rows(4):
            history.append(row)
            curves.update()
    assert not widgets.in_notebook() and drawn == [4]


def test_importing_widgets_loads_neither_matplotlib_nor_ipywidgets():
    heavy = {"matplotlib", "ipywidgets", "IPython"}
    code = f"import sys, semsynth.widgets; print({heavy} & {{*sys.modules}})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
