"What a step of the small first stage costs beside its convolutions, and a way there and back."
import torch

from semsynth.configs import find_config
from semsynth.labels import Batch

from .rows import Row, best_of
from .steps import against_convolutions, fresh, training_step

RESOLUTION, ROUNDS = 128, 3


def measure() -> list[Row]:
    "The mini preset as its config trains it, without the perceptual loss, on four images."
    config = find_config("synthetic", "autoencoder", ["model.perceptual=none"])
    image = torch.rand(4, 3, RESOLUTION, RESOLUTION) * 2 - 1
    label_map = torch.zeros(4, RESOLUTION, RESOLUTION, dtype=torch.int64)
    batch, model = Batch(image, label_map, label_map), fresh(config)
    take = training_step(model, config)
    what = f"first stage step, {RESOLUTION} px, batch 4"
    rows = against_convolutions(what, lambda: take(batch), ROUNDS)

    model.eval()
    with torch.no_grad():
        latents = model.encode(image)
        there, back = best_of(
            ROUNDS, lambda: model.encode(image), lambda: model.decode(latents)
        )
    return [
        *rows,
        Row("encode, a single image", f"{250 * there:.1f} ms"),
        Row("decode, a single image", f"{250 * back:.1f} ms"),
    ]
