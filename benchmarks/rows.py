"What a benchmark returns, and how it is printed."
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from semsynth.metrics import processor

ROOT = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    "One measured thing."

    what: str
    measured: str
    target: str = ""           # What it should be; empty: a number for the reader
    holds: bool | None = None  # Whether it is so; None: there is no target, or nothing was measured


def best_of(rounds: int, *actions: Callable[[], object]) -> list[float]:
    "Seconds of each action, its fastest round; they take turns, so that all see the same load."
    fastest = [float("inf")] * len(actions)
    for _ in range(rounds):
        for index, action in enumerate(actions):
            start = time.perf_counter()
            action()
            fastest[index] = min(fastest[index], time.perf_counter() - start)
    return fastest


def commit() -> str:
    "The commit that was measured, with a plus sign if files differ from it."
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def circumstances() -> str:
    "On what, with what and in what company the numbers were measured."
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {load}; "
        f"Python {platform.python_version()}, torch {torch.__version__}; commit {commit()}"
    )


def table(rows: Sequence[Row]) -> str:
    "The rows in Markdown."
    verdicts = {True: "yes", False: "**no**", None: ""}
    lines = ["| measured | value | target | holds |", "|---|---:|---:|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.target} | {verdicts[row.holds]} |"
              for row in rows]
    return "\n".join(lines)
