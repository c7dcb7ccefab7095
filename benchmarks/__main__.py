"""Prints tables of what this machine needs, with what it is:

    python -m benchmarks                    imports, reading, steps
    python -m benchmarks playground         from a stroke to an image; frames a second in a browser
    python -m benchmarks pix2pixhd          a pix2pixHD step at 256 px, its judges frozen
    python -m benchmarks spade              a SPADE step at 256 px; a generator of MONAI's blocks
    python -m benchmarks sdm                a diffusion step beside diffusers' U-Net; its samples
    python -m benchmarks controlnet         what a ControlNet adds to a step; ours beside diffusers'
    python -m benchmarks stylegan           a StyleGAN step beside its convolutions, both its forms
    python -m benchmarks autoencoder        a first stage's step beside its convolutions
    python -m benchmarks latent_flow        a flow's step, its first stage's share; images a second
    python -m benchmarks vqgan              tokens a second, with a cache and without
    python -m benchmarks evaluation         106 façades evaluated, beside sampling and judging alone
    python -m benchmarks lessons            seconds of every notebook in test mode
    python -m benchmarks reading_time       seconds of every notebook as a reader runs it (long)
"""
import sys
from collections.abc import Callable

from . import (
    autoencoder,
    controlnet,
    evaluation,
    imports,
    latent_flow,
    lessons,
    pix2pixhd,
    playground,
    reading,
    sdm,
    spade,
    steps,
    stylegan,
    vqgan,
)
from .rows import Row, circumstances, table

BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "imports": imports.measure,
    "reading": reading.measure,
    "steps": steps.measure,
    "playground": playground.measure,
    "pix2pixhd": pix2pixhd.measure,
    "spade": spade.measure,
    "stylegan": stylegan.measure,
    "sdm": sdm.measure,
    "controlnet": controlnet.measure,
    "autoencoder": autoencoder.measure,
    "vqgan": vqgan.measure,
    "latent_flow": latent_flow.measure,
    "evaluation": evaluation.measure,
    "lessons": lambda: lessons.measure(in_test=True),
    "reading_time": lambda: lessons.measure(in_test=False),
}
USUAL = ["imports", "reading", "steps"]


def main(names: list[str]) -> int:
    "Runs the named benchmarks and prints one table."
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        known = ", ".join(BENCHMARKS)
        print(f"there is no benchmark {unknown[0]!r}; there are {known}", file=sys.stderr)
        return 2
    rows = [row for name in names or USUAL for row in BENCHMARKS[name]()]
    print(f"{circumstances()}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
