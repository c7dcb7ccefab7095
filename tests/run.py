"""`make test`: everything that must hold, step by step; the last line says the counts.

    python tests/run.py [style] [modules] [lessons] [kernel] [tests]   (without names: all of them)
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

# Two processes of one thread each take half the time of one process with two.
WORKERS = 2
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "IN_TEST"} | {
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "agg",
    "PYTHONDONTWRITEBYTECODE": "1",
    # A colour or the width of the terminal must not change what a test reads.
    "NO_COLOR": "1",
    "COLUMNS": "120",
}
SECONDS_IN_ALL = 1500      # with the installation before it, CI stays below 30 minutes
SECONDS_A_NOTEBOOK = 180   # 90 s when the machine has nothing else to do


class Counts(NamedTuple):
    "What a step found."

    passed: int = 0
    failed: int = 0
    skipped: int = 0


def total(counts: Iterable[Counts]) -> Counts:
    "The sum of each column."
    return Counts(*(sum(column) for column in zip(Counts(), *counts, strict=True)))


class Ended(NamedTuple):
    "How a command ended."

    code: int  # -1: it took too long
    output: str
    seconds: float


def run(
    command: list[str],
    seconds: float,         # After so many it is ended, with all its children
    folder: Path = ROOT,
    show: bool = False,     # Print as it goes, instead of returning what it said
    in_test: bool = False,  # Short training: nbdev_test asks for it by itself, and
                            # nbdev_export does nothing when it is asked
) -> Ended:
    "Runs a command in the environment of these tests."
    start = time.monotonic()
    environment = ENVIRONMENT | ({"IN_TEST": "1"} if in_test else {})
    output = None if show else subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
    ) as process:
        try:
            text, _ = process.communicate(timeout=max(seconds, 1))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            text, _ = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return Ended(-1, f"{text or ''}\nended after {seconds:.0f} s", time.monotonic() - start)
    return Ended(process.returncode, text or "", time.monotonic() - start)


def tool(name: str, *arguments: str) -> list[str]:
    "A program of this very environment."
    return [str(BIN / name), *arguments]


def notebooks(root: Path = ROOT) -> list[Path]:
    "Every notebook of the course, solutions too."
    found = (root / "nbs").rglob("*.ipynb")
    hidden = (".", "_")
    return sorted(
        path for path in found
        if not any(part.startswith(hidden) for part in path.relative_to(root).parts)
    )


def style(deadline: float) -> Counts:
    "ruff has nothing to say."
    ended = run(tool("ruff", "check", "."), deadline)
    print(ended.output, end="")
    return Counts(passed=1) if ended.code == 0 else Counts(failed=1)


def modules(deadline: float) -> Counts:
    "Notebooks are clean and modules are what they export: a copy, cleaned and exported, is equal."
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        shutil.copytree(ROOT / "nbs", copy / "nbs")
        # Exporting writes a version into __init__.py and leaves the rest of it alone.
        for path in (ROOT / "semsynth").rglob("__init__.py"):
            (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(ROOT))
        for name in ["settings.ini", "setup.py"]:
            shutil.copy(ROOT / name, copy)
        for name in ["nbdev_clean", "nbdev_export"]:
            ended = run(tool(name), deadline, copy)
            if ended.code:
                print(ended.output)
                return Counts(failed=1)
        wrong = unequal(copy, notebooks(copy), "is not clean: run nbdev_clean")
        code = {path.relative_to(root) for root in [ROOT, copy] for path in
                (root / "semsynth").rglob("*.py")}
        wrong += unequal(copy, [copy / name for name in sorted(code)],
                         "is not what the notebooks export: run nbdev_export")
        print("\n".join(wrong))
        return Counts(passed=len(notebooks()) + len(code) - len(wrong), failed=len(wrong))


def unequal(copy: Path, paths: list[Path], complaint: str) -> list[str]:
    "One sentence for each file of the copy that is not the same here."
    sentences = []
    for path in paths:
        here = ROOT / path.relative_to(copy)
        both = here.exists() and path.exists()
        if not both or here.read_bytes() != path.read_bytes():
            sentences.append(f"{here.relative_to(ROOT)} {complaint}")
    return sentences


def lessons(deadline: float) -> Counts:
    "nbdev_test on every notebook, two at a time; nbdev has no timeout and no counts, we have."
    def lesson(path: Path) -> Counts:
        seconds = min(SECONDS_A_NOTEBOOK, deadline - (time.monotonic() - start))
        name = str(path.relative_to(ROOT))
        ended = run(tool("nbdev_test", "--path", name, "--n_workers", "0"), seconds)
        if ended.code == 0:
            print(f"passed {ended.seconds:6.1f} s  {name}", flush=True)
            return Counts(passed=1)
        print(f"FAILED {ended.seconds:6.1f} s  {name}\n{ended.output}", flush=True)
        return Counts(failed=1)

    start = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        return total(pool.map(lesson, notebooks()))


def kernel(deadline: float) -> Counts:
    "Every notebook through a real Jupyter kernel, as a reader runs it."
    names = [str(path.relative_to(ROOT)) for path in notebooks()]
    options = ["--nbmake", f"--nbmake-timeout={SECONDS_A_NOTEBOOK}", "-p", "no:cacheprovider"]
    return pytest(deadline, *options, *names, in_test=True)


def tests(deadline: float) -> Counts:
    "The contracts, the oracles, the command line and the house."
    return pytest(deadline, "tests")


def pytest(deadline: float, *arguments: str, in_test: bool = False) -> Counts:
    "Runs pytest on two workers and counts by its own report."
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-n", str(WORKERS),
                   f"--junitxml={report}", *arguments]
        ended = run(command, deadline, show=True, in_test=in_test)
        if ended.code not in (0, 1) or not report.exists():
            print(f"pytest ended with code {ended.code} after {ended.seconds:.0f} s", flush=True)
            return Counts(failed=1)
        suite = ElementTree.parse(report).getroot().find("testsuite")
    found = {name: int(suite.get(name)) for name in ["tests", "failures", "errors", "skipped"]}
    failed = found["failures"] + found["errors"]
    return Counts(found["tests"] - failed - found["skipped"], failed, found["skipped"])


# On two quiet cores the whole takes about fifteen minutes; the limits are for a busy machine.
STEPS: dict[str, tuple[Callable[[float], Counts], float]] = {
    "style": (style, 60),
    "modules": (modules, 120),
    "lessons": (lessons, 600),
    "kernel": (kernel, 600),
    "tests": (tests, 700),
}


def main(names: list[str]) -> int:
    "Runs the steps and prints the counts; 0 if nothing failed."
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        print(f"there is no step {unknown[0]!r}; the steps are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    start, found = time.monotonic(), []
    for name in names or STEPS:
        step, seconds = STEPS[name]
        print(f"\n== {name}: {step.__doc__}", flush=True)
        before = time.monotonic()
        counts = step(min(seconds, SECONDS_IN_ALL - (before - start)))
        print(f"== {name}: {counts.passed} passed, {counts.failed} failed, {counts.skipped} "
              f"skipped in {time.monotonic() - before:.0f} s", flush=True)
        found.append(counts)
    passed, failed, skipped = total(found)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
