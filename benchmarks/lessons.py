"How long each notebook takes: in test mode, or as a reader runs it."
import os
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from .rows import ROOT, Row

TEST_TARGET = 90           # seconds a notebook in test mode, on two cores
READING_TARGET = 10 * 60   # seconds for a family read for real on the CPU of a laptop


def seconds(name: str) -> float:
    "Runs a notebook through a kernel, from the folder it lies in; nothing is saved."
    path = ROOT / "nbs" / name
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(book, timeout=3600, resources={"metadata": {"path": str(path.parent)}})
    start = time.perf_counter()
    client.execute()
    return time.perf_counter() - start


def measure(in_test: bool) -> list[Row]:
    "One row a notebook."
    os.environ.pop("IN_TEST", None)
    if in_test:
        os.environ["IN_TEST"] = "1"
    target = TEST_TARGET if in_test else READING_TARGET
    rows = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        print(path.name, file=sys.stderr, flush=True)
        try:
            spent = seconds(path.name)
            row = Row(path.stem, f"{spent:.0f} s", f"< {target} s", spent < target)
        except CellExecutionError:
            row = Row(path.stem, "a cell fails", f"< {target} s", False)
        rows.append(row)
    return rows
