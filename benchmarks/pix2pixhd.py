"What a pix2pixHD step at 256 px costs beside its convolutions, and an unfrozen set of judges."
from collections.abc import Callable
from contextlib import nullcontext

import torch

from semsynth.configs import Config, find_config
from semsynth.evaluation import peak_memory
from semsynth.labels import Batch
from semsynth.synthesizer import frozen

from .rows import Row, best_of
from .steps import against_convolutions, fresh, training_step

RESOLUTION, ROUNDS = 256, 3


def shipped() -> Config:
    "The config that trains on synthetic façades, at the resolution that is measured."
    return find_config("synthetic", "pix2pixhd", [f"data.resolution={RESOLUTION}"])


def one_image() -> Batch:
    "A step takes the same time on any pixels, if not on any number of instances."
    rows = torch.arange(RESOLUTION) // 16
    instance_map = (rows[:, None] * RESOLUTION + rows)[None]
    image = torch.rand(1, 3, RESOLUTION, RESOLUTION) * 2 - 1
    return Batch(image, instance_map % 12, instance_map)


def whole_step() -> list[Row]:
    "As shipped, with its encoder and its perceptual loss."
    config, batch = shipped(), one_image()
    take = training_step(fresh(config), config)

    def step() -> None:
        take(batch)

    what = f"pix2pixHD step, {RESOLUTION} px, batch 1, as shipped"
    rows = against_convolutions(what, step, ROUNDS)
    memory = peak_memory(step, torch.device("cpu"))
    return [*rows, Row("most memory of tensors during the step", f"{memory / 1e6:.0f} MB")]


def judging() -> list[Row]:
    "While the generator learns, the judges' own weights need no gradient."
    model, batch = fresh(shipped()), one_image()
    condition = model.condition(batch.label_map, batch.instance_map)
    fake = batch.image.clone().requires_grad_()

    def judge(held: Callable) -> None:
        model.discriminator.zero_grad()
        with held(model.discriminator):
            features = model.judge(condition, fake)
        sum(layer.mean() for layers in features for layer in layers).backward()

    held, free = best_of(2 * ROUNDS, lambda: judge(frozen), lambda: judge(nullcontext))
    return [
        Row("pass of pix2pixHD's judges, frozen", f"{1000 * held:.0f} ms"),
        Row("the same, not frozen", f"{1000 * free:.0f} ms"),
        Row("time that freezing saves", f"{100 * (1 - held / free):.0f} %"),
    ]


def measure() -> list[Row]:
    "A step, and what its judges cost."
    return whole_step() + judging()
