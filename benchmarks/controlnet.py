"What a ControlNet adds to a step and to a sample; the network beside diffusers' own."
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from semsynth.configs import find_config
from semsynth.controlnet import (
    ControlEncoder,
    ControlledDiffusion,
    ControlNet,
    LatentDiffusion,
    Trunk,
    controlled,
    copied,
)
from semsynth.labels import Batch, semantics

from .rows import Row, best_of
from .steps import fresh, training_step

ROUNDS, BATCH_SIZE, RESOLUTION = 3, 8, 128


def on_it(base: LatentDiffusion) -> ControlledDiffusion:
    "The mini preset of a ControlNet, on a base that need not be trained to be timed."
    trunk = copied(Trunk(base.denoiser))
    network = ControlNet(trunk, ControlEncoder(13, trunk.widths[0], (32,), patch=4))
    return ControlledDiffusion(base, network.to(memory_format=torch.channels_last), 12)


def random_batch() -> Batch:
    "Noise, and maps of noise."
    label_map = torch.randint(12, (BATCH_SIZE, RESOLUTION, RESOLUTION))
    image = torch.rand(BATCH_SIZE, 3, RESOLUTION, RESOLUTION) * 2 - 1
    return Batch(image, label_map, label_map)


def whole_steps() -> list[Row]:
    "Losses, gradients and optimizer of a batch: of the base, then of a ControlNet on it."
    config, batch = find_config("synthetic", "latent_diffusion"), random_batch()
    base = fresh(config)
    take = training_step(base, config)
    (alone,) = best_of(ROUNDS, lambda: take(batch))
    family = on_it(base)
    config = find_config("synthetic", "controlnet")
    take_controlled = training_step(family, config)
    (both,) = best_of(ROUNDS, lambda: take_controlled(batch))
    what = f"step, {RESOLUTION} px, batch {BATCH_SIZE}"
    return [
        Row(f"latent diffusion {what}", f"{1000 * alone:.0f} ms"),
        Row(f"ControlNet {what}, its base frozen", f"{1000 * both:.0f} ms"),
        Row("ControlNet / base", f"{both / alone:.2f}", "<= 1.25", both <= 1.25 * alone),
    ]


def one_call() -> list[Row]:
    "A call of the base, of the base with its ControlNet, and a guided one that skips null rows."
    family = on_it(fresh(find_config("synthetic", "latent_diffusion")))
    for convolution in family.control_net.zero_convs:
        convolution.reset_parameters()
    family.eval()
    x_t, timestep = torch.randn(2, 4, 32, 32), torch.tensor([500, 500])
    control = semantics(torch.randint(12, (2, RESOLUTION, RESOLUTION)), None, 12)
    ones = torch.ones(2, len(family.control_net.zero_convs))

    @torch.no_grad()
    def call(strength: Tensor) -> None:
        family.predict(x_t, timestep, control, strength)

    guided = torch.tensor([[0.0], [1.0]]) * ones
    silent, told, half = best_of(
        3 * ROUNDS, *(partial(call, strength) for strength in (0 * ones, ones, guided))
    )
    return [
        Row("one call of two images, the base alone", f"{1000 * silent:.1f} ms"),
        Row("with its ControlNet / alone", f"{told / silent:.2f}"),
        Row("guided, null rows skip the ControlNet / alone", f"{half / silent:.2f}"),
    ]


def beside_diffusers() -> list[Row]:
    "The same weights in both, forward and backward."
    from diffusers import ControlNetModel

    theirs = ControlNetModel(
        block_out_channels=(32, 64), layers_per_block=2, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        conditioning_embedding_out_channels=(16, 32, 96, 256),
    )
    ours = ControlNet.from_official(theirs.state_dict(), num_heads=4, groups=8)
    x_t, timestep = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    picture, words = torch.rand(2, 3, 128, 128), torch.randn(2, 77, 32)

    def there_and_back(features: Callable[[], list[Tensor]]) -> None:
        sum(feature.square().mean() for feature in features()).backward()

    def told(network: nn.Module) -> list[Tensor]:
        down, middle = network(x_t, timestep, words, picture, return_dict=False)
        return [*down, middle]

    mine, others = best_of(
        ROUNDS, lambda: there_and_back(lambda: ours(x_t, timestep, picture, words)),
        lambda: there_and_back(lambda: told(theirs)),
    )
    return [Row("ControlNet, there and back, ours / diffusers'", f"{mine / others:.2f}", "<= 1.1",
                mine <= 1.1 * others)]


def decoder_alone() -> list[Row]:
    "The gradient has to pass the frozen way up: what that costs beside a forward pass."
    family = on_it(fresh(find_config("synthetic", "latent_diffusion")))
    x_t, timestep = torch.randn(BATCH_SIZE, 4, 32, 32), torch.full((BATCH_SIZE,), 500)
    with torch.no_grad():
        said = Trunk(family.denoiser)(x_t, timestep, torch.zeros(1, 1, 1, 1))
    leaves = [torch.zeros_like(feature, requires_grad=True) for feature in said]

    def back() -> None:
        controlled(family.denoiser, x_t, timestep, leaves).square().mean().backward()

    @torch.no_grad()
    def forward() -> None:
        controlled(family.denoiser, x_t, timestep, leaves)

    there, whole = best_of(ROUNDS, forward, back)
    return [Row("frozen base with gradients to its skips / forward alone", f"{whole / there:.2f}")]


def measure() -> list[Row]:
    "Everything about ControlNet."
    return [*whole_steps(), *one_call(), *decoder_alone(), *beside_diffusers()]
