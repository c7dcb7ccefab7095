"What a diffusion step costs beside diffusers' U-Net, and an image against its steps."
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from semsynth.configs import find_config
from semsynth.labels import Batch
from semsynth.sdm import SDM, GroupNorm, UNet

from .rows import Row, best_of
from .steps import fresh, training_step

ROUNDS, BATCH_SIZE, RESOLUTION = 4, 8, 64
WIDTHS, GROUPS, PLACES = (40, 48, 48), 8, 32  # of the mini preset, whose patches make 32 of 64


def mini() -> SDM:
    "The mini preset as the config of synthetic façades builds it."
    return fresh(find_config("synthetic", "sdm"))


def whole_step() -> list[Row]:
    "Losses, gradients and optimizer of a batch, as shipped."
    config = find_config("synthetic", "sdm")
    model = fresh(config)
    take = training_step(model, config)
    label_map = torch.randint(12, (BATCH_SIZE, RESOLUTION, RESOLUTION))
    image = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION) * 2 - 1
    batch = Batch(image, label_map, label_map)
    (seconds,) = best_of(ROUNDS, lambda: take(batch))
    count = sum(weight.numel() for weight in model.parameters())
    what = f"SDM step, {RESOLUTION} px, batch {BATCH_SIZE}, as shipped ({count:,} parameters)"
    return [Row(what, f"{1000 * seconds:.0f} ms")]


def plain_unet() -> nn.Module:
    "Ours without a map, and with convolutions between levels, as diffusers' has them."
    norm = partial(GroupNorm, groups=GROUPS)
    multipliers = tuple(width / WIDTHS[0] for width in WIDTHS)
    return UNet(12, 24, WIDTHS[0], multipliers, 1, (4,), norm=norm, decoder_norm=norm,
                head_channels=16, resampling="convolution")


def diffusers_unet() -> nn.Module | None:
    "The same from diffusers, where it is installed."
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    return UNet2DModel(
        sample_size=PLACES, in_channels=12, out_channels=24, layers_per_block=1,
        block_out_channels=WIDTHS, norm_num_groups=GROUPS, attention_head_dim=16,
        resnet_time_scale_shift="scale_shift",
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def there_and_back(network: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
    "Forward, and backward to the weights."
    x = torch.randn(BATCH_SIZE, 12, PLACES, PLACES)
    timestep = torch.randint(1000, (BATCH_SIZE,))
    return lambda: network(x, timestep).square().mean().backward()


def against_diffusers() -> list[Row]:
    "U-Nets of equal widths and depth, no map in either."
    ours, theirs = plain_unet(), diffusers_unet()
    what = f"U-Net of widths {', '.join(map(str, WIDTHS))}, batch {BATCH_SIZE}, there and back"
    counts = [sum(w.numel() for w in net.parameters()) for net in (ours, theirs) if net is not None]
    if theirs is None:
        (mine,) = best_of(ROUNDS, there_and_back(ours))
        missing = "diffusers is not installed, so nothing to compare with"
        return [Row(what, f"{1000 * mine:.0f} ms"), Row("UNet2DModel of diffusers", missing)]
    other = there_and_back(lambda x, timestep: theirs(x, timestep).sample)
    mine, others = best_of(ROUNDS, there_and_back(ours), other)
    return [
        Row(f"{what} ({counts[0]:,} parameters)", f"{1000 * mine:.0f} ms"),
        Row(f"UNet2DModel of diffusers ({counts[1]:,} parameters)", f"{1000 * others:.0f} ms"),
        Row("ours / diffusers'", f"{mine / others:.2f}", "<= 1", mine <= others),
    ]


def drawing() -> list[Row]:
    "Seconds for one image of 64 pixels: they grow with the steps, and guidance doubles them."
    model = mini().eval()
    label_map = torch.randint(12, (1, RESOLUTION, RESOLUTION))

    def draw(num_steps: int, guidance_scale: float) -> Callable[[], Tensor]:
        return lambda: model.sample(
            label_map, num_steps=num_steps, guidance_scale=guidance_scale
        )

    plans = [(5, 1.0), (20, 1.0), (20, 1.5), (80, 1.0)]
    seconds = best_of(2, *(draw(*plan) for plan in plans))
    rows = [
        Row(f"one image, {steps} steps, guidance {scale:g}", f"{1000 * took:.0f} ms")
        for (steps, scale), took in zip(plans, seconds, strict=True)
    ]
    per_step = (seconds[3] - seconds[0]) / 75
    return [*rows, Row("each further step", f"{1000 * per_step:.1f} ms")]


def two_calls() -> list[Row]:
    "Guidance in one call of twice the batch, beside one call for each branch."
    denoiser = mini().eval().denoiser
    x, timestep = torch.randn(4, 3, RESOLUTION, RESOLUTION), torch.full((4,), 500)
    planes = torch.randn(4, 13, RESOLUTION, RESOLUTION)

    @torch.no_grad()
    def together() -> None:
        denoiser(*(torch.cat([part, part]) for part in (x, timestep, planes)))

    @torch.no_grad()
    def apart() -> None:
        denoiser(x, timestep, planes)
        denoiser(x, timestep, planes)

    one, two = best_of(ROUNDS, together, apart)
    return [Row("guided step, one call / two calls, batch 4", f"{one / two:.2f}")]


def measure() -> list[Row]:
    "Everything about the Semantic Diffusion Model."
    return [*whole_step(), *against_diffusers(), *drawing(), *two_calls()]
