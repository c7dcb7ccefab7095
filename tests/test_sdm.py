"The Semantic Diffusion Model: what its network hears, what it drops, what guidance costs."
from functools import partial

import pytest
import torch
from blocks import Blocks
from test_official import TOLERANCE, assert_refused, difference, scramble
from torch import Tensor, nn

from semsynth.diffusion import SAMPLERS, even_times, repaint
from semsynth.labels import FACADES, IGNORE_INDEX, Batch, InputError, null_label_map, onehot
from semsynth.sdm import (
    PRESETS,
    SDM,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    UNet,
    sdm,
    spade_group_norm,
    spread_timesteps,
)

SMALL = PRESETS["mini"] | {
    "channels": 8, "multipliers": (1.0, 2.0), "hidden_channels": 4, "groups": 4,
    "attention_at": (2,), "head_channels": 8,
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively(**options) -> SDM:
    "A small model without the zeros it starts from."
    torch.manual_seed(0)
    model = sdm(12, **(SMALL | options)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and not weight.any():
                nn.init.kaiming_normal_(weight)
    return model


@pytest.fixture
def batch() -> Batch:
    return Blocks(resolution=32).batch()


# --- the network

def test_the_way_down_hears_no_map_and_the_way_up_does(batch):
    network, heard = lively().denoiser, {}
    for part in ("encoder", "middle", "decoder"):
        for name, module in network.get_submodule(part).named_modules():
            if isinstance(module, ResidualBlock):
                module.register_forward_hook(
                    lambda _, given, output, name=f"{part}.{name}":
                    heard.setdefault(name, []).append(output)
                )
    for label_map in (batch.label_map, (batch.label_map + 1) % 12):
        planes = torch.cat([onehot(label_map, 12), torch.zeros(2, 1, 32, 32)], dim=1)
        network(batch.image, torch.tensor([3, 900]), planes)
    for name, (first, second) in heard.items():
        assert torch.equal(first, second) == name.startswith("encoder"), name


def test_time_is_heard_and_an_image_stays_by_itself(batch):
    network = lively().denoiser
    planes = torch.zeros(2, 13, 32, 32)
    with torch.no_grad():
        early, late = (network(batch.image, torch.tensor([t, t]), planes) for t in (1, 999))
        alone = network(batch.image[:1], torch.tensor([1]), planes[:1])
    assert (early - late).abs().max() > 1e-3
    assert torch.allclose(early[:1], alone, atol=1e-5)


def test_it_starts_by_predicting_nothing(batch):
    network, planes = sdm(12, **SMALL).denoiser, torch.zeros(2, 13, 32, 32)
    output = network(batch.image, torch.tensor([0, 1]), planes)
    assert output.shape == (2, 6, 32, 32) and not output.any()


@pytest.mark.parametrize("size", [(16, 48), (32, 8)])
def test_sides_are_multiples_of_the_stride(size):
    network = lively().denoiser
    assert network.stride == 4
    planes = torch.zeros(1, 13, *size)
    assert network(torch.zeros(1, 3, *size), torch.tensor([1]), planes).shape[-2:] == size
    with pytest.raises(InputError, match="multiples of 4 pixels.* nearest") as caught:
        network(torch.zeros(1, 3, size[0] + 1, size[1]), torch.tensor([1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("resampling", ["residual", "convolution", "plain"])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_every_kind_of_network_learns_everywhere(resampling, scale_shift):
    network = UNet(4, 4, 8, (1.0, 2.0, 2.0), 2, (4,), norm=partial(GroupNorm, groups=4),
                   decoder_norm=partial(GroupNorm, groups=2), head_channels=0, num_heads=2,
                   resampling=resampling, scale_shift=scale_shift)
    output = scramble(network)(torch.randn(2, 4, 16, 16), torch.tensor([0.1, 0.9]))
    output.square().mean().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_attention_of_several_heads_is_each_head_alone():
    layer = SelfAttention(8, partial(GroupNorm, groups=2), head_channels=4)
    scramble(layer)
    x = torch.randn(1, 8, 3, 3)
    qkv = layer.qkv(layer.norm(x).flatten(2))[0]
    heads = []
    for q, k, v in qkv.reshape(2, 3, 4, 9):
        weights = (q.T @ k / 2).softmax(dim=1)
        heads.append(v @ weights.T)
    by_hand = x + layer.out(torch.cat(heads)[None]).view_as(x)
    assert torch.allclose(layer(x), by_hand, atol=1e-5)


def test_a_norm_that_listens_tells_classes_of_constant_features():
    layer = spade_group_norm(8, 3, groups=4, hidden_channels=4)
    given = layer(torch.ones(2, 8, 4, 4), onehot(torch.arange(2)[:, None, None].expand(2, 8, 8), 3))
    assert (given[0] - given[1]).abs().max() > 1e-3


def test_the_paper_has_the_published_sizes():
    with torch.device("meta"):
        network = sdm(150).denoiser
    assert sum(weight.numel() for weight in network.parameters()) == 660_608_518
    assert len(network.state_dict()) == 766


# --- training

def test_timesteps_are_spread_and_all_are_possible():
    drawn = torch.stack([spread_timesteps(4, 8) for _ in range(300)])
    assert torch.equal((drawn // 2).unique(dim=0), torch.arange(4)[None])
    assert torch.equal(drawn.unique(), torch.arange(8))
    assert spread_timesteps(1000, 4).max() == 3


def losses(model: SDM, batch: Batch, step: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ((name, terms),) = model.training_losses(batch, step)
    assert name == "denoiser"
    return terms


def test_a_dropped_map_is_the_null_map(batch):
    model = lively(null_probability=1.0, null_start=5)
    nothing = null_label_map(batch.label_map)
    silent = batch._replace(label_map=nothing, instance_map=nothing)
    early, late, told_nothing = (
        losses(model, given, step)["v_prediction"]
        for given, step in ((batch, 4), (batch, 5), (silent, 5))
    )
    assert torch.equal(late, told_nothing) and not torch.equal(early, late)
    model.null_probability = 0.0
    assert not torch.equal(losses(model, batch, 5)["v_prediction"], late)


def test_the_bound_teaches_the_variance_alone(batch):
    model = lively()
    losses(model, batch)["variational_bound"].backward()
    gradient = model.denoiser.head.weight.grad.unflatten(0, (6, 4))
    assert not gradient[:3].any() and gradient[3:].any()


@pytest.mark.parametrize("prediction", ["noise", "clean", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_every_objective_is_finite_at_every_time(batch, prediction, schedule):
    model = lively(prediction=prediction, schedule=schedule, num_timesteps=2)
    terms = losses(model, batch)
    assert set(terms) == {prediction, "variational_bound"}
    assert all(term.isfinite() for term in terms.values())


# --- sampling

@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction", ["noise", "v_prediction"])
def test_every_sampler_draws(batch, sampler, prediction):
    image = lively(prediction=prediction).sample(
        batch.label_map, rng=rng(), num_steps=4, sampler=sampler
    )
    assert image.shape == (2, 3, 32, 32) and image.isfinite().all() and not image.requires_grad


def test_guidance_is_one_call_a_step(batch):
    model, calls = lively(), []
    model.denoiser.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    for scale in (1.0, 3.0):
        model.sample(batch.label_map, rng=rng(), num_steps=3, guidance_scale=scale)
    assert calls == [2, 2, 2, 4, 4, 4]


def test_guidance_walks_along_the_difference(batch):
    model, t = lively(), torch.tensor(0.9, dtype=torch.float64)
    x_t = 0.1 * torch.randn(2, 3, 32, 32, generator=rng())

    def clean(scale: float, label_map: Tensor = batch.label_map) -> Tensor:
        return model.told(label_map, guidance_scale=scale)(x_t, t).clean

    null, told = clean(1.0, null_label_map(batch.label_map)), clean(1.0)
    for scale in (0.0, 1.5, 4.0):
        expected = (null + scale * (told - null)).clamp(-1, 1)
        # Where a branch was clipped itself, its overshoot is lost.
        inside = (null.abs() < 1) & (told.abs() < 1)
        assert inside.any()
        assert torch.allclose(clean(scale)[inside], expected[inside], atol=1e-4)


def test_without_a_map_guidance_has_nowhere_to_go():
    model, silent = lively(), torch.full((1, 32, 32), IGNORE_INDEX)
    images = [model.sample(silent, rng=rng(), num_steps=3, guidance_scale=s) for s in (1.0, 8.0)]
    assert torch.allclose(*images, atol=1e-4)


def test_a_batch_is_its_images(batch):
    model = lively()
    noise = torch.randn(2, 3, 32, 32, generator=rng())
    t = torch.tensor(0.5, dtype=torch.float64)
    both = model.told(batch.label_map)(noise, t).clean
    for n in range(2):
        alone = model.told(batch.label_map[n : n + 1])(noise[n : n + 1], t).clean
        assert torch.allclose(both[n : n + 1], alone, atol=1e-5)


def test_steps_end_where_sample_does(batch):
    model = lively()
    path = list(model.steps(batch.label_map, rng=rng(), num_steps=5))
    assert len(path) == 5 and path[-1].t == 0
    image = model.sample(batch.label_map, rng=rng(), num_steps=5)
    assert torch.equal(path[-1].x_t.clamp(-1, 1), image)


def test_repainting_keeps_the_rest(batch):
    model, region = lively(), torch.zeros(1, 1, 32, 32)
    region[..., 8:24, 8:24] = 1
    *_, step = repaint(model.told(batch.label_map), torch.randn(2, 3, 32, 32), even_times(4),
                       model.schedule, batch.image, region, num_resamples=2, rng=rng())
    kept = (step.x_t - batch.image) * (1 - region)
    assert kept.abs().max() < 1e-5


def test_instances_are_heard():
    model = lively()
    label_map = torch.full((1, 32, 32), FACADES.names.index("window"))
    instances = torch.full((1, 32, 32), 26001)
    instances[..., 16:] = 26002
    apart, together = (model.sample(label_map, ids, rng=rng(), num_steps=2)
                       for ids in (instances, torch.full_like(instances, 26001)))
    assert not torch.equal(apart, together)


# --- published weights: their layout, restated from the published names

class OfficialNorm(nn.Module):
    def __init__(self, channels: int, planes: int, hidden: int, kernel: int):
        super().__init__()
        pad = kernel // 2
        self.mlp_shared = nn.Sequential(nn.Conv2d(planes, hidden, kernel, padding=pad), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, kernel, padding=pad)
        self.mlp_beta = nn.Conv2d(hidden, channels, kernel, padding=pad)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        hidden = self.mlp_shared(nn.functional.interpolate(told, x.shape[-2:]))
        plain = nn.functional.group_norm(x, 32)
        return plain * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class OfficialBlock(nn.Module):
    def __init__(self, fin, fout, clock, told=None, scale_shift=True, resize=None):
        super().__init__()
        self.told, self.scale_shift, self.resize = told, scale_shift, resize
        conv = nn.Conv2d(fin, fout, 3, padding=1)
        out = nn.Conv2d(fout, fout, 3, padding=1)
        if told:
            self.in_norm, self.out_norm = OfficialNorm(fin, *told), OfficialNorm(fout, *told)
            self.in_layers = nn.Sequential(nn.SiLU(), conv)
            self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(0.1), out)
        else:
            self.in_layers = nn.Sequential(nn.GroupNorm(32, fin), nn.SiLU(), conv)
            self.out_layers = nn.Sequential(nn.GroupNorm(32, fout), nn.SiLU(), nn.Dropout(0.1), out)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(clock, (1 + scale_shift) * fout))
        self.skip_connection = nn.Identity() if fin == fout else nn.Conv2d(fin, fout, 1)

    def resized(self, x: Tensor) -> Tensor:
        if self.resize == "down":
            return nn.functional.avg_pool2d(x, 2)
        return nn.functional.interpolate(x, scale_factor=2) if self.resize == "up" else x

    def forward(self, x: Tensor, emb: Tensor, told: Tensor) -> Tensor:
        y = self.in_norm(x, told) if self.told else self.in_layers[0](x)
        y = self.in_layers[-1](self.resized(nn.functional.silu(y)))
        clock = self.emb_layers(emb)[..., None, None]
        norm = partial(self.out_norm, told=told) if self.told else self.out_layers[0]
        if self.scale_shift:
            scale, shift = clock.chunk(2, dim=1)
            y = norm(y) * (1 + scale) + shift
        else:
            y = norm(y + clock)
        return self.skip_connection(self.resized(x)) + self.out_layers[-1](nn.functional.silu(y))


class OfficialAttention(nn.Module):
    def __init__(self, channels: int, heads: int, new_order: bool):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor, told: Tensor) -> Tensor:
        b, c, *size = x.shape
        qkv = self.qkv(self.norm(x.flatten(2)))
        if self.new_order:
            parts = qkv.chunk(3, dim=1)
            q, k, v = (part.reshape(b * self.heads, c // self.heads, -1) for part in parts)
        else:
            q, k, v = qkv.reshape(b * self.heads, 3 * c // self.heads, -1).chunk(3, dim=1)
        weights = torch.einsum("bct,bcs->bts", q, k).div((c // self.heads) ** 0.5).softmax(-1)
        seen = torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, -1)
        return x + self.proj_out(seen).reshape(b, c, *size)


class OfficialResize(nn.Module):
    def __init__(self, channels: int, name: str, learned: bool):
        super().__init__()
        self.down = name == "op"
        if learned:
            self.add_module(name, nn.Conv2d(channels, channels, 3, 2 if self.down else 1, 1))

    def forward(self, x: Tensor, emb: Tensor, told: Tensor) -> Tensor:
        layers = list(self.children())
        if self.down:
            return layers[0](x) if layers else nn.functional.avg_pool2d(x, 2)
        x = nn.functional.interpolate(x, scale_factor=2)
        return layers[0](x) if layers else x


class OfficialSDM(nn.Module):
    def __init__(self, width=32, mult=(1, 2), blocks=1, rates=(2,), told=(5, 16, 3), heads=2,
                 resize="residual", scale_shift=True, out=6, new_order=False):
        super().__init__()
        clock, self.width = 4 * width, width
        block = partial(OfficialBlock, clock=clock, scale_shift=scale_shift)
        attend = partial(OfficialAttention, heads=heads, new_order=new_order)

        def change(channels, way, told=None):
            if resize == "residual":
                return block(channels, channels, told=told, resize=way)
            name = "op" if way == "down" else "conv"
            return OfficialResize(channels, name, resize == "convolution")

        self.time_embed = nn.Sequential(nn.Linear(width, clock), nn.SiLU(), nn.Linear(clock, clock))
        ch, skips = int(mult[0] * width), [int(mult[0] * width)]
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, ch, 3, padding=1)])])
        for level, m in enumerate(mult):
            for _ in range(blocks):
                layers = [block(ch, int(m * width))]
                ch = int(m * width)
                layers += [attend(ch)] if 2**level in rates else []
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(ch)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([change(ch, "down")]))
                skips.append(ch)
        middle = [block(ch, ch, told=told), attend(ch), block(ch, ch, told=told)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for n in range(blocks + 1):
                layers = [block(ch + skips.pop(), int(m * width), told=told)]
                ch = int(m * width)
                layers += [attend(ch)] if 2**level in rates else []
                layers += [change(ch, "up", told)] if level and n == blocks else []
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, ch), nn.SiLU(), nn.Conv2d(ch, out, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        half = self.width // 2
        angles = t[:, None] * torch.exp(-torch.arange(half) * torch.tensor(10000.0).log() / half)
        emb = nn.functional.silu(self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1)))
        skips = [self.input_blocks[0][0](x)]
        for stage in self.input_blocks[1:]:
            y = skips[-1]
            for layer in stage:
                y = layer(y, emb, told)
            skips.append(y)
        y = skips[-1]
        for layer in self.middle_block:
            y = layer(y, emb, told)
        for stage in self.output_blocks:
            y = torch.cat([y, skips.pop()], dim=1)
            for layer in stage:
                y = layer(y, emb, told)
        return self.out(y)


LAYOUTS = {
    "as published": {},
    "deep": {"mult": (1, 1, 2), "blocks": 2, "rates": (2, 4)},
    "one level": {"mult": (1,), "blocks": 2, "rates": (1,)},
    "one level, no attention": {"mult": (1,), "blocks": 3, "rates": ()},
    "convolutions": {"resize": "convolution", "blocks": 2},
    "convolutions, no attention": {"resize": "convolution", "rates": ()},
    "nothing learned": {"resize": "plain", "mult": (1, 2, 2), "rates": (1, 4)},
    "time added": {"scale_shift": False, "out": 3},
    "no map": {"told": None, "mult": (2, 1), "width": 32},
    "other kernels": {"told": (3, 8, 1)},
    "uneven": {"mult": (1.5, 3), "width": 64, "heads": 3, "rates": (1,)},
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> OfficialSDM:
    torch.manual_seed(0)
    return scramble(OfficialSDM(**LAYOUTS[request.param])).eval()


def test_published_layouts_are_read(layout):
    planes = layout.middle_block[0].told[0] if layout.middle_block[0].told else 3
    told = onehot(torch.randint(planes, (2, 16, 24)), planes)
    heads = layout.middle_block[1].heads
    x, t = torch.randn(2, 3, 16, 24), torch.tensor([0, 877])
    loaded = UNet.from_official(layout.state_dict(), head_channels=0, num_heads=heads).eval()
    with torch.no_grad():
        for planes in (told, torch.zeros_like(told)):
            assert difference(loaded(x, t, planes), layout(x, t, planes)) <= TOLERANCE


@pytest.mark.parametrize("new_order", [False, True])
def test_orders_of_heads_are_told(new_order):
    official = scramble(OfficialSDM(new_order=new_order)).eval()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([5])
    told = torch.zeros(1, 5, 16, 16)
    right, wrong = (UNet.from_official(official.state_dict(), 32, parts_first=first).eval()
                    for first in (new_order, not new_order))
    with torch.no_grad():
        expected = official(x, t, told)
        assert difference(right(x, t, told), expected) <= TOLERANCE
        assert difference(wrong(x, t, told), expected) > TOLERANCE


def test_what_does_not_fit_is_refused():
    weights = OfficialSDM(heads=1).state_dict()
    reader = partial(UNet.from_official, head_channels=32)
    network = type("Reader", (), {"from_official": staticmethod(reader)})
    for name, value in weights.items():
        assert_refused(network, {other: w for other, w in weights.items() if other != name})
        assert_refused(network, weights | {name: torch.zeros(*value.shape, 1)})
    assert_refused(network, weights | {"label_emb.weight": torch.zeros(1)}, "label_emb.weight")
    for wrong in ({}, {"epoch": 3}, {"a": torch.zeros(1)}, sdm(12, **SMALL).state_dict()):
        assert_refused(network, wrong)
