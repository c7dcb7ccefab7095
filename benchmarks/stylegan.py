"What a StyleGAN step costs beside its convolutions, and a modulated convolution in both forms."
from collections.abc import Callable

import torch
from torch import Tensor

from semsynth.configs import find_config
from semsynth.stylegan import grouped_modulated_conv, modulated_conv, resampling_filter, smoothed

from .rows import Row, best_of
from .steps import BATCH_SIZE, RESOLUTION, against_convolutions, fresh, noise_batch, training_step

ROUNDS = 4
CHANNELS, SIDE = 64, 32  # of the modulated convolution alone: the widest busy layer of the preset


def whole_step() -> list[Row]:
    "The mini preset as shipped, in a step without lazy terms."
    config = find_config("synthetic", "stylegan", [f"data.resolution={RESOLUTION}"])
    take, batch = training_step(fresh(config), config), noise_batch()
    what = f"StyleGAN step, {RESOLUTION} px, batch {BATCH_SIZE}, as shipped"
    return against_convolutions(what, lambda: take(batch), ROUNDS)


def there_and_back(function: Callable[..., Tensor]) -> Callable[[], None]:
    "Forward and backward, to the features, the weight and the scales."
    x = torch.randn(BATCH_SIZE, CHANNELS, SIDE, SIDE, requires_grad=True)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, requires_grad=True)
    scales = torch.randn(BATCH_SIZE, CHANNELS, requires_grad=True)

    def run() -> None:
        function(x, weight, scales).mean().backward()

    return run


def both_forms() -> list[Row]:
    "A weight for every image, or one weight and scaled features."
    grouped, scaled = best_of(
        ROUNDS, there_and_back(grouped_modulated_conv), there_and_back(modulated_conv)
    )
    what = f"modulated convolution {CHANNELS} -> {CHANNELS}, {SIDE} px, there and back"
    return [
        Row(f"{what}, grouped", f"{1000 * grouped:.1f} ms"),
        Row("the same on scaled features", f"{1000 * scaled:.1f} ms"),
        Row("scaled features / grouped", f"{scaled / grouped:.2f}"),
    ]


def resampling() -> list[Row]:
    "The filter of 16 taps as one depthwise convolution, beside a convolution of 3 x 3."
    taps = resampling_filter()
    x = torch.randn(BATCH_SIZE, 16, RESOLUTION, RESOLUTION)
    weight = torch.randn(16, 16, 3, 3)
    smooth, plain = best_of(
        ROUNDS, lambda: smoothed(x, taps, 1), lambda: torch.conv2d(x, weight, padding=1)
    )
    return [Row("1-3-3-1 filter / convolution 16 -> 16, both at full size",
                f"{smooth / plain:.2f}")]


def measure() -> list[Row]:
    "Everything about StyleGAN."
    return [*whole_step(), *both_forms(), *resampling()]
