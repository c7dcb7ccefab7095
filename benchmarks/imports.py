"What an import costs beyond torch."
import subprocess
import sys

from .rows import Row

ROUNDS = 3


def seconds_beyond_torch(module: str) -> float:
    "The fastest of a few fresh processes; the first of them also warms the disk's cache."
    code = (
        "import time, torch\n"
        "start = time.perf_counter()\n"
        f"import {module}\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    return min(float(subprocess.check_output(command)) for _ in range(ROUNDS))


def measure() -> list[Row]:
    "`import semsynth` has a target; what stands on it is for the reader."
    package = seconds_beyond_torch("semsynth")
    what = "`import semsynth` beyond `import torch`"
    rows = [Row(what, f"{package:.3f} s", "< 0.2 s", package < 0.2)]
    for module in ["semsynth.pix2pix", "semsynth.cli", "semsynth.training"]:
        rows.append(Row(f"`import {module}` beyond it", f"{seconds_beyond_torch(module):.3f} s"))
    return rows
