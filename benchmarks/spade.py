"What a SPADE step at 256 px costs beside its convolutions, and a block beside MONAI's."
import resource
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from semsynth.configs import find_config
from semsynth.labels import Batch, onehot
from semsynth.spade import SPADEBlock, SPADENorm, xavier

from .rows import Row, best_of
from .steps import Recorder, fresh, replay, training_step

RESOLUTION, ROUNDS = 256, 4
WIDTHS, CLASSES, HIDDEN = (32, 16), 13, 128  # of the block; hidden channels as published


def peak_memory() -> float:
    "Of this process so far, in GB."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)  # bytes there, kilobytes elsewhere


def whole_step() -> list[Row]:
    "The mini preset as shipped, on one image."
    config = find_config("synthetic", "spade", [f"data.resolution={RESOLUTION}"])
    label_map = torch.randint(12, (1, RESOLUTION, RESOLUTION))
    batch = Batch(torch.rand(1, 3, RESOLUTION, RESOLUTION) * 2 - 1, label_map, label_map)
    take, before = training_step(fresh(config), config), peak_memory()

    def step() -> None:
        take(batch)

    with Recorder() as recorder:
        step()
    memory = peak_memory() - before
    replays = [replay(call) for call in recorder.calls]

    def alone() -> None:
        for again in replays:
            again()

    whole, parts = best_of(ROUNDS, step, alone)
    return [
        Row(f"SPADE step, {RESOLUTION} px, batch 1, as shipped", f"{1000 * whole:.0f} ms"),
        Row(f"its {len(replays)} convolutions alone", f"{1000 * parts:.0f} ms"),
        Row("step / convolutions", f"{whole / parts:.2f}"),
        Row("peak memory that the step added", f"{memory:.2f} GB"),
    ]


def instance_block() -> nn.Module:
    "Ours, with the norm and without the spectral norm that MONAI's has not."
    def modulate(channels: int, semantic_channels: int) -> nn.Module:
        return SPADENorm(channels, semantic_channels, nn.InstanceNorm2d, HIDDEN)

    return SPADEBlock(*WIDTHS, CLASSES, modulate, xavier)


def monai_block() -> nn.Module | None:
    "The same from MONAI, where it is installed."
    try:
        from monai.networks.nets.spade_network import SPADENetResBlock
    except ImportError:
        return None
    leaky = ("LEAKYRELU", {"negative_slope": 0.2})
    return SPADENetResBlock(2, *WIDTHS, CLASSES, HIDDEN, act=leaky)


def there_and_back(block: nn.Module) -> Callable[[], None]:
    "Forward and backward, to the weights and to the features."
    planes = onehot(torch.randint(CLASSES, (1, RESOLUTION, RESOLUTION)), CLASSES)
    x = torch.randn(1, WIDTHS[0], RESOLUTION, RESOLUTION, requires_grad=True)

    def run() -> None:
        output: Tensor = block(x, planes)
        output.mean().backward()

    return run


def against_monai() -> list[Row]:
    "One block of equal widths; MONAI's generator doubles at other places, so blocks it must be."
    theirs = monai_block()
    what = f"SPADE block {WIDTHS[0]} -> {WIDTHS[1]}, {RESOLUTION} px, there and back"
    if theirs is None:
        (ours,) = best_of(ROUNDS, there_and_back(instance_block()))
        missing = "MONAI is not installed, so nothing to compare with"
        return [Row(what, f"{1000 * ours:.0f} ms"), Row("the same from MONAI", missing)]
    mine = instance_block()
    ours, other = best_of(ROUNDS, there_and_back(mine), there_and_back(theirs))
    counts = [sum(weight.numel() for weight in block.parameters()) for block in (mine, theirs)]
    return [
        Row(f"{what} ({counts[0]:,} parameters)", f"{1000 * ours:.0f} ms"),
        Row(f"the same from MONAI ({counts[1]:,} parameters)", f"{1000 * other:.0f} ms"),
        Row("ours / MONAI's", f"{ours / other:.2f}", "<= 1", ours <= other),
    ]


def measure() -> list[Row]:
    "Everything about SPADE."
    return [*whole_step(), *against_monai()]
