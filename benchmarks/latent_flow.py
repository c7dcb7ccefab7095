"What a flow's step costs and its first stage takes of it; images a second against steps."
from collections.abc import Callable

import torch
from torch import Tensor

from semsynth.configs import find_config
from semsynth.labels import Batch
from semsynth.latent_flow import LatentFlow

from .rows import Row, best_of
from .steps import fresh, training_step

ROUNDS, BATCH_SIZE, RESOLUTION = 3, 4, 128


def some_batch() -> Batch:
    "Random images, and maps of random pixels."
    label_map = torch.randint(12, (BATCH_SIZE, RESOLUTION, RESOLUTION))
    image = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION) * 2 - 1
    return Batch(image, label_map, label_map)


def whole_step() -> list[Row]:
    "Losses, gradients and optimizer of a batch, as shipped, and what encoding takes of it."
    config, batch = find_config("synthetic", "latent_flow"), some_batch()
    model = fresh(config)
    take = training_step(model, config)

    @torch.no_grad()
    def encode() -> Tensor:
        return model.first_stage.encode(batch.image)

    step, encoding = best_of(ROUNDS, lambda: take(batch), encode)
    count = sum(weight.numel() for weight in model.velocity_net.parameters())
    what = f"flow step, {RESOLUTION} px, batch {BATCH_SIZE}, {model.num_draws} draws each"
    share = encoding / step
    return [
        Row(f"{what} ({count:,} parameters)", f"{1000 * step:.0f} ms"),
        Row("of which the first stage", f"{share:.0%}", "<= 25%", share <= 0.25),
    ]


def other_steps() -> list[Row]:
    "The second backbone, and a student's step with its teacher's."
    batch, rows = some_batch(), []
    for what, name, changes in [
        ("flow step with a transformer", "latent_flow", ["model.backbone=dit"]),
        ("step of a student of 4 steps", "few_step_flow", []),
    ]:
        config = find_config("synthetic", name, changes)
        take = training_step(fresh(config), config)
        (seconds,) = best_of(ROUNDS, lambda take=take: take(batch))
        rows.append(Row(what, f"{1000 * seconds:.0f} ms"))
    return rows


def drawing() -> list[Row]:
    "Images a second, one at a time, and what the decoder takes of each."
    flow, student = (fresh(find_config("synthetic", name)).eval()
                     for name in ("latent_flow", "few_step_flow"))
    label_map = torch.randint(12, (1, RESOLUTION, RESOLUTION))
    latents = torch.randn(1, 4, RESOLUTION // 4, RESOLUTION // 4)
    (decoding,) = best_of(ROUNDS, lambda: flow.shown(latents))

    def draw(model: LatentFlow, **options: float) -> Callable[[], Tensor]:
        return lambda: model.sample(label_map, **options)

    plans = {
        f"flow, {steps} steps, guidance {scale:g}": draw(
            flow, num_steps=steps, guidance_scale=scale
        )
        for steps, scale in [(4, 1.0), (20, 1.0), (20, 1.5), (50, 1.5)]
    }
    plans |= {f"student, {steps} steps": draw(student, num_steps=steps) for steps in (1, 2, 4)}
    seconds = best_of(2, *plans.values())
    rows = [
        Row(f"{name}: images a second, of which the first stage",
            f"{1 / took:.1f}, {decoding / took:.0%}")
        for name, took in zip(plans, seconds, strict=True)
    ]
    taken = dict(zip(plans, seconds, strict=True))
    ratio = taken["flow, 20 steps, guidance 1.5"] / taken["student, 4 steps"]
    return [*rows, Row("20 guided steps / 4 of the student", f"{ratio:.1f}", ">= 4", ratio >= 4)]


def measure() -> list[Row]:
    "Everything about Latent Flow Matching."
    return [*whole_step(), *other_steps(), *drawing()]
