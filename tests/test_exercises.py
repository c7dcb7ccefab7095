"Every exercise has a question on some level, a solution that passes, and mistakes that are named."
import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import semsynth.exercises as exercises
from semsynth.exercises import Exercise, Mistake, chapters, check, difference
from semsynth.labels import InputError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "nbs"
ASKED = re.compile(r"""\bcheck\(\s*["'](\w+\.\w+)["']""")


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def asked_in(notebook: Path) -> list[str]:
    return [key for cell in code_cells(notebook) for key in ASKED.findall(cell)]


def exercises_of(chapter: str) -> dict[str, Exercise]:
    return importlib.import_module(f"semsynth.answers.{chapter}").EXERCISES


CHAPTERS = chapters()
EXERCISES = [(f"{chapter}.{name}", exercise) for chapter in CHAPTERS
             for name, exercise in exercises_of(chapter).items()]
KEYS = [key for key, _ in EXERCISES]
every_exercise = pytest.mark.parametrize("key, exercise", EXERCISES, ids=KEYS)
chapter_notebooks = pytest.mark.parametrize(
    "notebook", sorted(NOTEBOOKS.glob("[1-4][0-9]_*.ipynb")), ids=lambda path: path.stem
)


# --- the exercises of the course

@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_check_of_a_notebook_has_an_exercise(notebook: Path):
    for key in asked_in(notebook):
        exercises.find_exercise(key)


@chapter_notebooks
def test_a_model_chapter_has_five_exercises_on_three_levels(notebook: Path):
    chapter = notebook.stem.split("_", 1)[1]
    asked = {key for key in asked_in(notebook) if key.startswith(f"{chapter}.")}
    assert len(asked) >= 5
    assert {exercises.find_exercise(key).level for key in asked} == {"check", "build", "explore"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_is_asked_in_its_chapter(chapter: str):
    (notebook,) = NOTEBOOKS.glob(f"[0-9][0-9]_{chapter}.ipynb")
    assert set(asked_in(notebook)) >= {f"{chapter}.{name}" for name in exercises_of(chapter)}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_exercise_has_a_solution_that_passes(chapter: str, monkeypatch: pytest.MonkeyPatch):
    "Runs the solutions notebook as text and listens to what `check` says."
    solved = set()  # a solutions notebook may show a wrong answer as well

    def listening(key: str, answer: object):
        verdict = check(key, answer)
        solved.update({key} if verdict.right else ())
        return verdict

    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.setattr(exercises, "check", listening)
    names = {"__name__": "solutions"}
    for cell in code_cells(NOTEBOOKS / "solutions" / f"{chapter}.ipynb"):
        source = re.sub(r"^\s*%.*$", "", cell, flags=re.M)
        exec(compile(source, chapter, "exec"), names)

    assert solved == {f"{chapter}.{name}" for name in exercises_of(chapter)}


@every_exercise
def test_the_stub_is_not_answered_yet(key: str, exercise: Exercise):
    for stub in (None, ...):
        verdict = check(key, stub)
        assert not verdict.right and not verdict.answered
        assert exercise.question in repr(verdict)


@every_exercise
def test_a_stub_function_is_never_right(key: str, exercise: Exercise):
    assert not check(key, lambda *arguments: None).right


@every_exercise
def test_every_mistake_gets_its_own_sentence(key: str, exercise: Exercise):
    sentences = [mistake.sentence for mistake in exercise.mistakes]
    assert len(set(sentences)) == len(sentences)
    for mistake in exercise.mistakes:
        verdict = check(key, mistake.answer)
        assert not verdict.right
        assert verdict.text == mistake.sentence


@every_exercise
def test_an_odd_answer_gets_a_sentence(key: str, exercise: Exercise):
    odds = ("nonsense", object(), [], math.nan, torch.zeros(2, 3, 5), lambda: 1 / 0, 10**400)
    for odd in odds:
        verdict = check(key, odd)
        assert not verdict.right and len(str(verdict)) > 10


@every_exercise
def test_a_question_is_a_sentence(key: str, exercise: Exercise):
    assert exercise.level in ("check", "build", "explore")
    assert exercise.question.rstrip().endswith((".", "?", ":")) and len(exercise.question) > 20
    assert exercise.mistakes or exercise.level == "explore", "which wrong answer do learners give?"


# --- the machinery

@pytest.mark.parametrize("expected, right, wrong", [
    (7, [7, 7.0, np.int64(7), torch.tensor([7.0], requires_grad=True)], [8, 7.001]),
    (math.log(2), [0.693, 0.69315, torch.tensor(0.693)], [0.69, 0.695, -0.693]),
    (0.0, [0, 1e-4, -0.001], [0.02]),
    (1500.0, [1500, 1509, 1491], [1511]),
    (True, [True], [False, 1]),
    ("zero-conv", ["Zero conv", " zero_conv "], ["conv", 0]),
    ((1, 0.5), [(1, 0.5), [1, 0.5], torch.tensor([1, 0.5])], [(1,), (2, 0.5), 1]),
    (frozenset({2, 3}), [{3, 2}, [2, 3, 3]], [{2}, {2, 3, 4}, 2]),
    (torch.tensor([1.0, 2.0]), [[1, 2], (1.001, 2)], [[1, 2.1], [[1, 2]], "1", [1, math.nan]]),
    (torch.tensor([1, 2]), [[1, 2], np.array([1, 2])], [[1.01, 2.0]]),
])
def test_each_kind_is_compared_in_its_own_way(expected, right, wrong):
    for answer in right:
        assert difference(answer, expected) is None, answer
    for answer in wrong:
        assert isinstance(difference(answer, expected), str), answer


def test_sentences_do_not_give_the_answer_away():
    for wrong in (1, 0.69, "a", [1, 2]):
        sentence = difference(wrong, 0.693147)
        assert "693" not in sentence


def test_a_function_is_judged_on_copies_and_its_errors_are_told():
    case = ([1, 2, 3],)
    careless = lambda xs: xs.pop() and sum(xs)  # noqa: E731
    assert difference(careless, lambda xs: sum(xs[:-1]), cases=(case, case)) is None
    assert case == ([1, 2, 3],)
    assert "ZeroDivisionError" in difference(lambda n: 1 // n, lambda n: 1, cases=((0,),))
    assert "is not" in difference(3, lambda n: 1, cases=((0,),))


def test_a_wrong_function_is_recognised_by_what_it_does():
    exercise = Exercise(
        "Write the square.", "build", expected=lambda x: x * x, cases=((3.0,), (-2.0,)),
        mistakes=(Mistake(lambda x: 2 * x, "That doubles."),),
    )
    assert exercise.check(lambda x: x + x).text == "That doubles."
    assert exercise.check(lambda x: x**2).right
    assert not exercise.check(lambda x: None).answered


def test_a_property_may_stumble_over_an_odd_answer():
    four = lambda answer: None if len(answer) == 4 else "Too few."  # noqa: E731
    exercise = Exercise("Give a shape of four.", "explore", holds=four)
    assert exercise.check((1, 2, 3, 4)).right
    assert exercise.check((1,)).text == "Too few."
    assert "TypeError" in exercise.check(5).text


def test_a_wrong_key_names_the_nearest():
    with pytest.raises(InputError, match='nearest is "metrics"'):
        check("metric.frechet", 1)
    with pytest.raises(InputError, match='nearest is "metrics.frechet"'):
        check("metrics.freche", 1)


def test_the_verdict_is_told_in_words_and_is_safe_html():
    verdict = check("metrics.frechet", "<script>")
    assert "Not yet" in verdict._repr_html_() and "<script>" not in verdict._repr_html_()
    assert "Right." in check("metrics.frechet", 10)._repr_html_()
