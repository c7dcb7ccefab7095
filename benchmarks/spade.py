"What a SPADE step at 256 px costs beside its convolutions, and a generator of MONAI's blocks."
from collections.abc import Callable

import torch
from torch import nn

from semsynth.configs import find_config
from semsynth.evaluation import peak_memory
from semsynth.labels import Batch, onehot
from semsynth.spade import PRESETS, SPADEGenerator, SPADENorm, xavier

from .rows import Row, best_of
from .steps import against_convolutions, fresh, training_step

RESOLUTION, ROUNDS = 256, 4
CLASSES, HIDDEN = 13, 128  # 12 and the edges; hidden channels as published


def whole_step() -> list[Row]:
    "The mini preset as shipped, on one image."
    config = find_config("synthetic", "spade", [f"data.resolution={RESOLUTION}"])
    label_map = torch.randint(12, (1, RESOLUTION, RESOLUTION))
    batch = Batch(torch.rand(1, 3, RESOLUTION, RESOLUTION) * 2 - 1, label_map, label_map)
    take = training_step(fresh(config), config)

    def step() -> None:
        take(batch)

    what = f"SPADE step, {RESOLUTION} px, batch 1, as shipped"
    rows = against_convolutions(what, step, ROUNDS)
    memory = peak_memory(step, torch.device("cpu"))
    return [*rows, Row("most memory of tensors during the step", f"{memory / 1e6:.0f} MB")]


def generator() -> SPADEGenerator:
    "Ours at the width of the mini preset, with the norm that MONAI has and no spectral norm."
    def modulate(channels: int, semantic_channels: int) -> nn.Module:
        return SPADENorm(channels, semantic_channels, nn.InstanceNorm2d, HIDDEN)

    sizes = {name: PRESETS["mini"][name] for name in ("channels", "widest")}
    return SPADEGenerator(CLASSES, modulate=modulate, wrap=xavier, **sizes)


def of_monai_blocks() -> SPADEGenerator | None:
    "The same widths at the same sizes from MONAI's residual blocks, where MONAI is installed."
    try:
        from monai.networks.nets.spade_network import SPADENetResBlock
    except ImportError:
        return None
    leaky, whole = ("LEAKYRELU", {"negative_slope": 0.2}), generator()
    widths = [(block.first.in_channels, block.second.out_channels) for block in whole.blocks]
    whole.blocks = nn.ModuleList(
        SPADENetResBlock(2, *pair, CLASSES, HIDDEN, act=leaky) for pair in widths
    )
    return whole


def learning(network: SPADEGenerator) -> Callable[[], None]:
    "A training step: forward, backward, Adam."
    planes = onehot(torch.randint(CLASSES, (1, RESOLUTION, RESOLUTION)), CLASSES)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        network(planes).mean().backward()
        optimizer.step()

    return step


def against_monai() -> list[Row]:
    "One generator, of our blocks and of theirs; MONAI's own plan doubles at other places."
    mine, theirs = generator(), of_monai_blocks()
    what = f"a step of the SPADE generator alone, {RESOLUTION} px, batch 1"
    if theirs is None:
        (ours,) = best_of(ROUNDS, learning(mine))
        missing = "MONAI is not installed, so nothing to compare with"
        return [Row(what, f"{1000 * ours:.0f} ms"), Row("the same of MONAI's blocks", missing)]
    ours, other = best_of(ROUNDS, learning(mine), learning(theirs))
    counts = [sum(weight.numel() for weight in network.parameters()) for network in (mine, theirs)]
    return [
        Row(f"{what} ({counts[0]:,} parameters)", f"{1000 * ours:.0f} ms"),
        Row(f"the same of MONAI's blocks ({counts[1]:,} parameters)", f"{1000 * other:.0f} ms"),
        Row("ours / MONAI's", f"{ours / other:.2f}", "<= 1", ours <= other),
    ]


def measure() -> list[Row]:
    "Everything about SPADE."
    return [*whole_step(), *against_monai()]
