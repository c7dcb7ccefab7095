"""Published weights give published outputs: as recorded, and as their restated layouts compute.

Each folder in $SEMSYNTH_PARITY (default: `../shared/parity` beside the repository) holds a
`config.json` with its `kind`, `weights.safetensors` with published names, and `io.safetensors`
with inputs `in.NAME` and outputs `out.NAME`.
"""
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from conftest import PARITY
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsynth.cgan import PatchGAN, PixelGAN, ResNetGenerator
from semsynth.labels import InputError, onehot
from semsynth.latent_flow import VelocityNet
from semsynth.pix2pix import UNetGenerator
from semsynth.pix2pixhd import (
    GlobalGenerator,
    InstanceEncoder,
    LocalEnhancer,
    MultiscaleDiscriminator,
)
from semsynth.sdm import UNet
from semsynth.spade import SPADEDiscriminator, SPADEGenerator, StyleEncoder
from semsynth.stylegan import StyleGAN2Generator
from semsynth.vqgan import GPT, VQAutoencoder

Tensors = dict[str, Tensor]
TOLERANCE = 1e-4  # of the largest absolute output


# --- recorded outputs: one test a folder

def single(network: type[nn.Module]) -> Callable[[Tensors, dict], Callable[[Tensors], Tensors]]:
    "A network that takes `in.x` and gives `out.y`."

    def load(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
        loaded = network.from_official(weights).eval()
        return lambda inputs: {"y": loaded(inputs["x"])}

    return load


def instance_encoder(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "A photo `in.x` and its instances `in.inst` give `out.y`."
    loaded = InstanceEncoder.from_official(weights).eval()

    def encode(inputs: Tensors) -> Tensors:
        height, width = inputs["x"].shape[-2:]
        return {"y": loaded(inputs["x"], inputs["inst"].long().reshape(-1, height, width))}

    return encode


def multiscale(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "`in.x` gives `out.I.J`, feature J of scale I; without features, J is 0 and the prediction."
    loaded = MultiscaleDiscriminator.from_official(weights).eval()
    whole = not config.get("getIntermFeat", True)

    def judge(inputs: Tensors) -> Tensors:
        outputs = loaded.features(inputs["x"])
        if whole:
            outputs = [layers[-1:] for layers in outputs]
            if config.get("use_sigmoid"):  # which has no weights that could tell
                outputs = [[layers[0].sigmoid()] for layers in outputs]
        return {
            f"{n}.{k}": output for n, layers in enumerate(outputs)
            for k, output in enumerate(layers)
        }

    return judge


def spade_generator(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "A label map `in.label`, and `in.z` with a VAE, give `out.y`."
    num_ups = {"normal": 5, "more": 6, "most": 7}[config["num_upsampling_layers"]]
    width = config["crop_size"] // 2**num_ups
    start = (round(width / config["aspect_ratio"]), width)
    loaded = SPADEGenerator.from_official(weights, num_ups, start if config["use_vae"] else None)
    loaded.eval()

    def draw(inputs: Tensors) -> Tensors:
        return {"y": loaded(onehot(inputs["label"][:, 0].long(), config["semantic_nc"]),
                            inputs.get("z"))}

    return draw


def spade_discriminator(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "`in.x` gives `out.I.J`, layer J of scale I; without features, J is 0 and the prediction."
    loaded = SPADEDiscriminator.from_official(weights).eval()

    def judge(inputs: Tensors) -> Tensors:
        outputs = loaded.features(inputs["x"])
        if config.get("no_ganFeat_loss"):
            outputs = [layers[-1:] for layers in outputs]
        return {
            f"{n}.{k}": output for n, layers in enumerate(outputs)
            for k, output in enumerate(layers)
        }

    return judge


def spade_encoder(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "An image `in.x` gives `out.mu` and `out.logvar`."
    loaded = StyleEncoder.from_official(weights).eval()

    def encode(inputs: Tensors) -> Tensors:
        posterior = loaded(inputs["x"])
        return {"mu": posterior.mean, "logvar": posterior.log_variance}

    return encode


def stylegan2_generator(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "`in.z`, and the classes `in.c` as one-hot, give a w for each layer and, by it, `out.y`."
    loaded = StyleGAN2Generator.from_official(weights).eval()

    def draw(inputs: Tensors) -> Tensors:
        z, code = inputs["z"], inputs.get("c") if config.get("c_dim") else None
        w = loaded.mapping(z, code)
        ws = w[:, None].expand(-1, loaded.synthesis.num_ws, -1)
        return {"w": ws, "y": loaded(z, code, noise="const")}

    return draw


def sdm_unet(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "`in.x`, timesteps `in.t` and a map `in.label` give `out.y`; a map of zeros `out.y_uncond`."
    loaded = UNet.from_official(
        weights, max(config["num_head_channels"], 0), config["num_heads"],
        config.get("use_new_attention_order", False),
    ).eval()

    def denoise(inputs: Tensors) -> Tensors:
        planes = onehot(inputs["label"][:, 0].long(), config["num_classes"])
        return {name: loaded(inputs["x"], inputs["t"], told)
                for name, told in {"y": planes, "y_uncond": torch.zeros_like(planes)}.items()}

    return denoise


def vqgan_autoencoder(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "An image `in.x` gives the code `out.h`, its tokens `out.indices`, row by row, and `out.y`."
    loaded = VQAutoencoder.from_official(weights)
    networks, codebook = loaded.autoencoder["networks"], loaded.autoencoder["codebook"]

    def tell(inputs: Tensors) -> Tensors:
        code = networks.encode(inputs["x"])
        tokens = codebook(code).tokens
        image = networks.decode(codebook.look_up(tokens))
        return {"h": code, "indices": tokens.flatten(1), "y": image}

    return tell


def vqgan_gpt(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "Tokens `in.idx` give `out.logits`; how many heads there are is not in the weights."
    loaded = GPT.from_official(weights, config["n_head"]).eval()
    return lambda inputs: {"logits": loaded(inputs["idx"])}


def lfm_velocity_net(weights: Tensors, config: dict) -> Callable[[Tensors], Tensors]:
    "Latents `in.x`, times `in.t` and a map `in.label` give `out.v` and the small map `out.cond`."
    sizes = config["unet"]
    loaded = VelocityNet.from_official(
        weights, config["n_stages"], max(sizes["num_head_channels"], 0), sizes["num_heads"],
        sizes.get("use_new_attention_order", False),
    ).eval()

    def move(inputs: Tensors) -> Tensors:
        planes = onehot(inputs["label"][:, 0].long(), config["label_nc"])
        return {"v": loaded(inputs["x"], inputs["t"], planes), "cond": loaded.rescaler(planes)}

    return move


# kind -> (weights, config) -> (inputs by name -> outputs by name)
KINDS: dict[str, Callable[[Tensors, dict], Callable[[Tensors], Tensors]]] = {
    "pix2pix/unet_generator": single(UNetGenerator),
    "pix2pix/resnet_generator": single(ResNetGenerator),
    "pix2pix/patchgan": single(PatchGAN),
    "pix2pix/pixelgan": single(PixelGAN),
    "pix2pixhd/global_generator": single(GlobalGenerator),
    "pix2pixhd/local_enhancer": single(LocalEnhancer),
    "pix2pixhd/multiscale_discriminator": multiscale,
    "pix2pixhd/feature_encoder": instance_encoder,
    "spade/generator": spade_generator,
    "spade/discriminator": spade_discriminator,
    "spade/encoder": spade_encoder,
    "sdm/unet": sdm_unet,
    "stylegan2/generator": stylegan2_generator,
    "vqgan/autoencoder": vqgan_autoencoder,
    "vqgan/gpt": vqgan_gpt,
    "lfm/velocity_net": lfm_velocity_net,
}

# kind -> the module that will build it. None is left; see `test_built_means_compared`.
NOT_BUILT: dict[str, str] = {}


def named(tensors: Tensors, prefix: str) -> Tensors:
    "Those whose name begins so, without it."
    return {name[len(prefix):]: t for name, t in tensors.items() if name.startswith(prefix)}


def difference(given: Tensor, expected: Tensor) -> float:
    "The largest difference, relative to the largest expected value."
    assert given.shape == expected.shape
    return ((given - expected).abs().max() / expected.abs().max()).item()


def compare(folder: Path) -> dict[str, float]:
    "How far every recorded output is missed."
    config = json.loads((folder / "config.json").read_text())
    if config["kind"] not in KINDS:
        pytest.fail(f"{folder.name}: no network is of the kind {config['kind']}")
    weights = load_file(folder / "weights.safetensors")
    tensors = load_file(folder / "io.safetensors")
    network = KINDS[config["kind"]](weights, config)
    with torch.no_grad():
        given = network(named(tensors, "in."))
    return {
        name: difference(given[name], expected) for name, expected in named(tensors, "out.").items()
    }


def recorded() -> list:
    "A parameter a folder; those of kinds that are not built yet are expected to fail."
    parameters = []
    for path in sorted(PARITY.glob("*/config.json")):
        kind = json.loads(path.read_text())["kind"]
        module = NOT_BUILT.get(kind)
        reason = f"{kind} is not built yet: semsynth.{module} will"
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if module else []
        parameters.append(pytest.param(path.parent, id=path.parent.name, marks=marks))
    nothing = pytest.mark.skip(
        reason="no folder of recorded networks: set SEMSYNTH_PARITY to the one that holds them"
    )
    return parameters or [pytest.param(PARITY, id="nothing recorded", marks=nothing)]


@pytest.mark.parametrize("folder", recorded())
def test_recorded_outputs(folder: Path):
    differences = compare(folder)
    assert differences and max(differences.values()) <= TOLERANCE, differences


def test_built_means_compared():
    both = KINDS.keys() & NOT_BUILT.keys()
    assert not both, f"built, and still listed as not built: {sorted(both)}"
    modules = set(NOT_BUILT.values())
    here = {module for module in modules if importlib.util.find_spec(f"semsynth.{module}")}
    built = [kind for kind, module in NOT_BUILT.items() if module in here]
    assert not built, f"the module is here, so these belong to KINDS: {sorted(built)}"


def test_an_unknown_kind_fails(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"kind": "pix2pix/transformer"}')
    with pytest.raises(pytest.fail.Exception, match="pix2pix/transformer"):
        compare(tmp_path)


def test_a_wrong_output_is_seen(tmp_path: Path):
    network = scramble(OfficialPixelGAN(6, 8, "batch")).eval()
    x = torch.randn(1, 6, 8, 8)
    with torch.no_grad():
        y = network(x)
    (tmp_path / "config.json").write_text('{"kind": "pix2pix/pixelgan"}')
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    for factor, right in [(1, True), (1.001, False)]:
        save_file({"in.x": x, "out.y": factor * y}, tmp_path / "io.safetensors")
        assert (max(compare(tmp_path).values()) <= TOLERANCE) == right


# --- the published layouts, restated from their names and sizes alone: any depth, width and norm

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "none": lambda channels: nn.Identity(),
}


class OfficialLevel(nn.Module):
    "One level of the published U-Net, which holds the next one in its middle."

    def __init__(
        self, outside: int, inside: int, norm: str, *, inner: nn.Module | None = None,
        ends: tuple[int, int] | None = None, dropout: bool = False,
    ):
        super().__init__()
        self.outermost, bias = ends is not None, norm == "instance"
        in_channels, out_channels = ends or (outside, outside)
        down = nn.Conv2d(in_channels, inside, 4, 2, 1, bias=bias)
        up = nn.ConvTranspose2d(
            inside if inner is None else 2 * inside, out_channels, 4, 2, 1,
            bias=bias or self.outermost,
        )
        if self.outermost:
            parts = [down, inner, nn.ReLU(), up, nn.Tanh()]
        else:
            parts = [nn.LeakyReLU(0.2), down]
            parts += [] if inner is None else [NORMS[norm](inside), inner]
            parts += [nn.ReLU(), up, NORMS[norm](outside)] + [nn.Dropout(0.5)] * dropout
        self.model = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class OfficialUNet(nn.Module):
    "The published U-Net, built from the inside out."

    def __init__(self, in_channels: int, out_channels: int, num_downs: int, width: int, norm: str):
        super().__init__()
        level = OfficialLevel(8 * width, 8 * width, norm)
        for _ in range(num_downs - 5):
            level = OfficialLevel(8 * width, 8 * width, norm, inner=level, dropout=True)
        for times in [4, 2, 1]:
            level = OfficialLevel(times * width, 2 * times * width, norm, inner=level)
        self.model = OfficialLevel(
            out_channels, width, norm, inner=level, ends=(in_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class OfficialResNetBlock(nn.Module):
    def __init__(self, width: int, norm: str, dropout: bool):
        super().__init__()
        bias = norm == "instance"
        half = lambda: [  # noqa: E731
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), NORMS[norm](width)
        ]
        between = [nn.ReLU()] + [nn.Dropout(0.5)] * dropout
        self.conv_block = nn.Sequential(*half(), *between, *half())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class OfficialFlat(nn.Module):
    "A network that is one sequence."

    def __init__(self, layers: list[nn.Module], name: str = "model"):
        super().__init__()
        self.sequence = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.sequence)(x)


class OfficialResNet(OfficialFlat):
    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, width: int, norm: str,
        dropout: bool,
    ):
        bias, normed = norm == "instance", lambda channels: [NORMS[norm](channels), nn.ReLU()]
        stem = nn.Conv2d(in_channels, width, 7, bias=bias)
        layers = [nn.ReflectionPad2d(3), stem, *normed(width)]
        for w in [width, 2 * width]:
            layers += [nn.Conv2d(w, 2 * w, 3, 2, 1, bias=bias), *normed(2 * w)]
        layers += [OfficialResNetBlock(4 * width, norm, dropout) for _ in range(num_blocks)]
        for w in [2 * width, width]:
            up = nn.ConvTranspose2d(2 * w, w, 3, 2, 1, output_padding=1, bias=bias)
            layers += [up, *normed(w)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
        super().__init__(layers)


class OfficialPatchGAN(OfficialFlat):
    def __init__(self, in_channels: int, num_layers: int, width: int, norm: str):
        bias, leaky = norm == "instance", nn.LeakyReLU(0.2)
        layers = [nn.Conv2d(in_channels, width, 4, 2, 1), leaky]
        widths = [width * min(2**n, 8) for n in range(num_layers + 1)]
        for n in range(1, num_layers + 1):
            stride = 1 if n == num_layers else 2
            conv = nn.Conv2d(widths[n - 1], widths[n], 4, stride, 1, bias=bias)
            layers += [conv, NORMS[norm](widths[n]), leaky]
        super().__init__([*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1)])


class OfficialPixelGAN(OfficialFlat):
    def __init__(self, in_channels: int, width: int, norm: str):
        bias, leaky = norm == "instance", nn.LeakyReLU(0.2)
        super().__init__([
            nn.Conv2d(in_channels, width, 1), leaky,
            nn.Conv2d(width, 2 * width, 1, bias=bias), NORMS[norm](2 * width), leaky,
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        ], "net")


# pix2pixHD's convolutions have biases before batch norms too.

def hd_layers(*widths: tuple[nn.Module, int], norm: str) -> list[nn.Module]:
    "Each convolution with its norm and its ReLU."
    return [part for conv, width in widths for part in (conv, NORMS[norm](width), nn.ReLU())]


class OfficialHDBlock(nn.Module):
    def __init__(self, width: int, norm: str):
        super().__init__()
        half = lambda: [  # noqa: E731
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), NORMS[norm](width)
        ]
        self.conv_block = nn.Sequential(*half(), nn.ReLU(), *half())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def hd_down(width: int) -> tuple[nn.Module, int]:
    return nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width


def hd_up(width: int) -> tuple[nn.Module, int]:
    return nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1), width


def hd_ends(channels: int, width: int, norm: str, out_channels: int) -> tuple[list, list]:
    "The layers before the first halving, and those that paint."
    stem = (nn.Conv2d(channels, width, 7), width)
    head = [nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, 7), nn.Tanh()]
    return [nn.ReflectionPad2d(3), *hd_layers(stem, norm=norm)], head


class OfficialGlobal(OfficialFlat):
    def __init__(
        self, in_channels: int, width: int, num_downs: int, num_blocks: int, norm: str,
        out_channels: int = 3,
    ):
        stem, head = hd_ends(in_channels, width, norm, out_channels)
        widths = [width * 2**n for n in range(num_downs)]
        downs = hd_layers(*map(hd_down, widths), norm=norm)
        blocks = [OfficialHDBlock(width * 2**num_downs, norm) for _ in range(num_blocks)]
        ups = hd_layers(*map(hd_up, reversed(widths)), norm=norm)
        super().__init__([*stem, *downs, *blocks, *ups, *head])


class OfficialEncoder(OfficialGlobal):
    "The global layout without blocks; the mean over each instance follows."

    def __init__(self, width: int, num_downs: int, norm: str):
        super().__init__(3, width, num_downs, 0, norm)

    def forward(self, x: Tensor, instances: Tensor) -> Tensor:
        y = super().forward(x)
        for image, ids in zip(y, instances, strict=True):
            for number in ids.unique():
                image[:, ids == number] = image[:, ids == number].mean(1, keepdim=True)
        return y


class OfficialLocal(nn.Module):
    def __init__(
        self, in_channels: int, width: int, num_downs: int, num_blocks: int, num_local: int,
        norm: str, num_enhancers: int,
    ):
        super().__init__()
        trunk = OfficialGlobal(in_channels, width * 2**num_enhancers, num_downs, num_blocks, norm)
        self.model, self.count = trunk.model[:-3], num_enhancers
        for n in range(1, num_enhancers + 1):
            w = width * 2 ** (num_enhancers - n)
            stem, head = hd_ends(in_channels, w, norm, 3)
            blocks = [OfficialHDBlock(2 * w, norm) for _ in range(num_local)]
            up = [*blocks, *hd_layers(hd_up(w), norm=norm)] + head * (n == num_enhancers)
            self.add_module(f"model{n}_1", nn.Sequential(*stem, *hd_layers(hd_down(w), norm=norm)))
            self.add_module(f"model{n}_2", nn.Sequential(*up))

    def forward(self, x: Tensor) -> Tensor:
        halve = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
        sizes = [x]
        for _ in range(self.count):
            sizes.append(halve(sizes[-1]))
        y = self.model(sizes.pop())
        for n in range(1, self.count + 1):
            down, up = (self.get_submodule(f"model{n}_{half}") for half in (1, 2))
            y = up(down(sizes.pop()) + y)
        return y


class OfficialMultiscale(nn.Module):
    def __init__(
        self, in_channels: int, num_layers: int, width: int, norm: str, num_scales: int,
        whole: bool = False,
    ):
        super().__init__()
        self.count, self.whole = num_scales, whole
        for scale in range(num_scales):
            layers = [[nn.Conv2d(in_channels, width, 4, 2, 2), nn.LeakyReLU(0.2)]]
            w = width
            for n in range(num_layers):
                wide, stride = min(2 * w, 512), 1 if n == num_layers - 1 else 2
                conv = nn.Conv2d(w, wide, 4, stride, 2)
                layers.append([conv, NORMS[norm](wide), nn.LeakyReLU(0.2)])
                w = wide
            layers.append([nn.Conv2d(w, 1, 4, 1, 2)])
            if whole:
                self.add_module(f"layer{scale}", nn.Sequential(*sum(layers, [])))
            else:
                for n, layer in enumerate(layers):
                    self.add_module(f"scale{scale}_layer{n}", nn.Sequential(*layer))
        self.depth = 1 if whole else num_layers + 2

    def features(self, x: Tensor) -> list[list[Tensor]]:
        "Scale by scale; the highest number is the full resolution."
        halve, outputs = nn.AvgPool2d(3, 2, 1, count_include_pad=False), []
        for scale in reversed(range(self.count)):
            y, layers = x, []
            for n in range(self.depth):
                name = f"layer{scale}" if self.whole else f"scale{scale}_layer{n}"
                y = self.get_submodule(name)(y)
                layers.append(y)
            outputs.append(layers)
            x = halve(x)
        return outputs


# SPADE's layouts: spectral norm as PyTorch had it before parametrizations.

def old_spectral(layer: nn.Module, spectral: bool) -> nn.Module:
    return nn.utils.spectral_norm(layer) if spectral else layer


class OfficialSPADENorm(nn.Module):
    def __init__(self, width: int, in_channels: int, norm: str, kernel: int):
        super().__init__()
        pad, kinds = kernel // 2, {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        self.param_free_norm = kinds[norm](width, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(in_channels, 128, kernel, 1, pad), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(128, width, kernel, 1, pad)
        self.mlp_beta = nn.Conv2d(128, width, kernel, 1, pad)

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        hidden = self.mlp_shared(nn.functional.interpolate(planes, x.shape[-2:]))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class OfficialSPADEBlock(nn.Module):
    def __init__(self, fin: int, fout: int, make_norm: Callable, spectral: bool):
        super().__init__()
        middle, self.learned = min(fin, fout), fin != fout
        self.conv_0 = old_spectral(nn.Conv2d(fin, middle, 3, padding=1), spectral)
        self.conv_1 = old_spectral(nn.Conv2d(middle, fout, 3, padding=1), spectral)
        self.norm_0, self.norm_1 = make_norm(fin), make_norm(middle)
        if self.learned:
            self.conv_s = old_spectral(nn.Conv2d(fin, fout, 1, bias=False), spectral)
            self.norm_s = make_norm(fin)

    def forward(self, x: Tensor, planes: Tensor) -> Tensor:
        leaky = nn.LeakyReLU(0.2)
        y = self.conv_1(leaky(self.norm_1(self.conv_0(leaky(self.norm_0(x, planes))), planes)))
        return y + (self.conv_s(self.norm_s(x, planes)) if self.learned else x)


class OfficialSPADE(nn.Module):
    def __init__(
        self, in_channels: int, width: int, ups: int, norm: str = "batch", *, kernel: int = 3,
        z_dim: int = 0, start: tuple[int, int] = (1, 1), spectral: bool = True,
    ):
        super().__init__()
        self.ups, self.start, self.z_dim, top = ups, start, z_dim, 16 * width
        make_norm = lambda w: OfficialSPADENorm(w, in_channels, norm, kernel)  # noqa: E731
        area = start[0] * start[1]
        self.fc = (nn.Linear(z_dim, top * area) if z_dim
                   else nn.Conv2d(in_channels, top, 3, padding=1))
        widths = [top, top, top, top, 8 * width, 4 * width, 2 * width, width]
        widths += [width // 2] * (ups == 7)
        self.names = ["head_0", "G_middle_0", "G_middle_1"]
        self.names += [f"up_{n}" for n in range(4 + (ups == 7))]
        for name, fin, fout in zip(self.names, widths, widths[1:], strict=False):
            self.add_module(name, OfficialSPADEBlock(fin, fout, make_norm, spectral))
        self.conv_img = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, planes: Tensor, z: Tensor | None = None) -> Tensor:
        double = nn.Upsample(scale_factor=2)
        if self.z_dim:
            x = self.fc(z).view(len(z), -1, *self.start)
        else:
            x = self.fc(nn.functional.interpolate(planes, self.start))
        for name in self.names:
            # After head_0; between the middle ones only with more; before every up_.
            if name in ("G_middle_0", "up_0", "up_1", "up_2", "up_3", "up_4"):
                x = double(x)
            if name == "G_middle_1" and self.ups > 5:
                x = double(x)
            x = self.get_submodule(name)(x, planes)
        return torch.tanh(self.conv_img(nn.functional.leaky_relu(x, 0.2)))


def official_normed(conv: nn.Conv2d, norm: str, spectral: bool) -> nn.Module:
    "Spectral norm first; then a norm takes the bias away and stands beside it in a sequence."
    conv = old_spectral(conv, spectral)
    if norm == "none":
        return conv
    conv.bias = None
    width = conv.out_channels
    return nn.Sequential(conv, nn.BatchNorm2d(width) if norm == "batch"
                         else nn.InstanceNorm2d(width))


class OfficialSPADEJudges(nn.Module):
    def __init__(
        self, in_channels: int, width: int, depth: int, num_scales: int, norm: str = "instance",
        spectral: bool = True,
    ):
        super().__init__()
        for scale in range(num_scales):
            layers = [[nn.Conv2d(in_channels, width, 4, 2, 2), nn.LeakyReLU(0.2)]]
            w = width
            for n in range(1, depth):
                conv = nn.Conv2d(w, min(2 * w, 512), 4, 1 if n == depth - 1 else 2, 2)
                layers.append([official_normed(conv, norm, spectral), nn.LeakyReLU(0.2)])
                w = min(2 * w, 512)
            layers.append([nn.Conv2d(w, 1, 4, 1, 2)])
            judge = nn.Module()
            for n, layer in enumerate(layers):
                judge.add_module(f"model{n}", nn.Sequential(*layer))
            self.add_module(f"discriminator_{scale}", judge)

    def features(self, x: Tensor) -> list[list[Tensor]]:
        "Scale by scale; here the lowest number is the full resolution."
        outputs = []
        for judge in self.children():
            y, layers = x, []
            for layer in judge.children():
                y = layer(y)
                layers.append(y)
            outputs.append(layers)
            x = nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return outputs


class OfficialStyleEncoder(nn.Module):
    def __init__(self, width: int, norm: str = "instance", spectral: bool = True):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 8 * width, 8 * width, 8 * width]
        for n, (fin, fout) in enumerate(zip(widths, widths[1:], strict=False), start=1):
            layer = official_normed(nn.Conv2d(fin, fout, 3, 2, 1), norm, spectral)
            self.add_module(f"layer{n}", layer)
        self.fc_mu, self.fc_var = nn.Linear(128 * width, 256), nn.Linear(128 * width, 256)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.interpolate(x, (256, 256), mode="bilinear")
        for n in range(1, 7):
            x = nn.functional.leaky_relu(self.get_submodule(f"layer{n}")(x), 0.2)
        return self.fc_mu(x.flatten(1)), self.fc_var(x.flatten(1))


def scramble(network: nn.Module) -> nn.Module:
    "Random weights that keep activations near 1, and statistics that are not the initial ones."
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim == 4:
            value.normal_(0, (value[0].numel() / 2) ** -0.5)
        elif name.endswith("running_var") or name.endswith("weight"):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(0, 0.1)
    return network


def assert_same(official: nn.Module, network: type[nn.Module], x: Tensor) -> nn.Module:
    "Loads the layout restated above, and asks both the same."
    official = scramble(official).eval()
    loaded = network.from_official(official.state_dict()).eval()
    with torch.no_grad():
        assert difference(loaded(x), official(x)) <= TOLERANCE
    return loaded


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_downs", [5, 6, 7, 8])
def test_unet(num_downs: int, norm: str):
    x = torch.randn(1, 4, 2**num_downs, 2 ** (num_downs + 1))
    loaded = assert_same(OfficialUNet(4, 2, num_downs, 4, norm), UNetGenerator, x)
    assert loaded.num_downs == num_downs
    with pytest.raises(InputError, match=rf"multiples of {2**num_downs} "):
        loaded(x[..., :-1])


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_blocks", [6, 9])
def test_resnet(num_blocks: int, norm: str, dropout: bool):
    official = OfficialResNet(4, 3, num_blocks, 4, norm, dropout)
    assert_same(official, ResNetGenerator, torch.randn(2, 4, 16, 24))


def test_resnet_of_other_channels():
    official = OfficialResNet(1, 2, 6, 4, "batch", True)
    assert_same(official, ResNetGenerator, torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5])
def test_patchgan(num_layers: int, norm: str):
    x = torch.randn(1, 5, 2 ** (num_layers + 2), 2 ** (num_layers + 3))
    assert_same(OfficialPatchGAN(5, num_layers, 4, norm), PatchGAN, x)


@pytest.mark.parametrize("norm", NORMS)
def test_pixelgan(norm: str):
    assert_same(OfficialPixelGAN(5, 4, norm), PixelGAN, torch.randn(2, 5, 7, 9))


HD_NORMS = ["instance", "batch"]


@pytest.mark.parametrize("norm", HD_NORMS)
@pytest.mark.parametrize(("num_downs", "num_blocks"), [(1, 1), (2, 6), (3, 0), (4, 3), (5, 2)])
def test_global_generator(num_downs: int, num_blocks: int, norm: str):
    official = OfficialGlobal(5, 4, num_downs, num_blocks, norm, out_channels=2)
    x = torch.randn(2, 5, 2 ** (num_downs + 1), 2 ** (num_downs + 2))
    loaded = assert_same(official, GlobalGenerator, x)
    assert loaded.multiple == 2**num_downs


@pytest.mark.parametrize("norm", HD_NORMS)
@pytest.mark.parametrize(("num_enhancers", "num_local"), [(1, 3), (1, 0), (2, 1), (3, 2)])
def test_local_enhancer(num_enhancers: int, num_local: int, norm: str):
    official = OfficialLocal(4, 2, 2, 2, num_local, norm, num_enhancers)
    loaded = assert_same(official, LocalEnhancer, torch.randn(1, 4, 64, 128))
    assert loaded.multiple == 2 ** (2 + num_enhancers)


@pytest.mark.parametrize("norm", HD_NORMS)
@pytest.mark.parametrize("num_downs", [2, 4])
def test_feature_encoder(num_downs: int, norm: str):
    official = scramble(OfficialEncoder(4, num_downs, norm)).eval()
    loaded = InstanceEncoder.from_official(official.state_dict()).eval()
    x, instances = torch.randn(2, 3, 32, 64), torch.randint(26_000, 26_005, (2, 32, 64))
    instances[:, :8] = 7
    with torch.no_grad():
        assert difference(loaded(x, instances), official(x, instances)) <= TOLERANCE


@pytest.mark.parametrize("whole", [False, True], ids=["features", "whole"])
@pytest.mark.parametrize("norm", HD_NORMS)
@pytest.mark.parametrize(
    ("num_layers", "width", "num_scales"), [(1, 4, 1), (3, 4, 2), (2, 3, 3), (5, 160, 1)]
)
def test_multiscale(num_layers: int, width: int, num_scales: int, norm: str, whole: bool):
    official = OfficialMultiscale(6, num_layers, width, norm, num_scales, whole)
    official, x = scramble(official).eval(), torch.randn(1, 6, 32, 48)
    loaded = MultiscaleDiscriminator.from_official(official.state_dict()).eval()
    with torch.no_grad():
        given, expected = loaded.features(x), official.features(x)
        for ours, theirs in zip(given, expected, strict=True):
            ours = ours[-1:] if whole else ours
            for one, other in zip(ours, theirs, strict=True):
                assert difference(one, other) <= TOLERANCE


def spectrally(network: nn.Module) -> nn.Module:
    "Scrambled, with the vectors u and v that a few steps of training would have found."
    weights = scramble(network).state_dict()
    for name, weight in weights.items():
        if name.endswith("weight_orig"):
            matrix, u = weight.flatten(1), torch.randn(len(weight))
            for _ in range(5):
                v = nn.functional.normalize(matrix.T @ u, dim=0)
                u = nn.functional.normalize(matrix @ v, dim=0)
            weights[name.replace("orig", "u")].copy_(u)
            weights[name.replace("orig", "v")].copy_(v)
        elif "mlp_gamma" in name or "mlp_beta" in name:
            weight.mul_(0.3)  # or seven blocks would saturate the tanh
    return network.eval()


@pytest.mark.parametrize("z_dim", [0, 5], ids=["map", "style"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(
    ("ups", "start"), [(5, (2, 2)), (5, (2, 4)), (5, (3, 2)), (6, (2, 2)), (7, (2, 2))]
)
def test_spade_generator(ups: int, norm: str, z_dim: int, start: tuple[int, int]):
    official = spectrally(OfficialSPADE(4, 2, ups, norm, z_dim=z_dim, start=start))
    size = (start[0] * 2**ups, start[1] * 2**ups)
    planes = onehot(torch.randint(4, (1, *size)), 4)
    z = torch.randn(1, 5) if z_dim else None
    loaded = SPADEGenerator.from_official(official.state_dict(), ups, start if z_dim else None)
    with torch.no_grad():
        expected = official(planes, z)
        assert 0.05 < expected.abs().mean() < 0.95
        assert difference(loaded.eval()(planes, z), expected) <= TOLERANCE


@pytest.mark.parametrize("spectral", [True, False], ids=["spectral", "plain"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_spade_generator_of_other_kernels(kernel: int, spectral: bool):
    official = OfficialSPADE(3, 2, 5, kernel=kernel, start=(2, 2), spectral=spectral)
    official, planes = spectrally(official), onehot(torch.randint(3, (2, 64, 64)), 3)
    loaded = SPADEGenerator.from_official(official.state_dict()).eval()
    with torch.no_grad():
        assert difference(loaded(planes), official(planes)) <= TOLERANCE


@pytest.mark.parametrize("spectral", [True, False], ids=["spectral", "plain"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("depth", "width", "num_scales"), [(1, 4, 1), (2, 4, 2), (4, 3, 3), (5, 40, 1)]
)
def test_spade_discriminator(depth: int, width: int, num_scales: int, norm: str, spectral: bool):
    official = spectrally(OfficialSPADEJudges(6, width, depth, num_scales, norm, spectral))
    x = torch.randn(1, 6, 32, 48)
    loaded = SPADEDiscriminator.from_official(official.state_dict()).eval()
    with torch.no_grad():
        given, expected = loaded.features(x), official.features(x)
        assert len(given) == num_scales
        for ours, theirs in zip(given, expected, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert difference(one, other) <= TOLERANCE


@pytest.mark.parametrize("spectral", [True, False], ids=["spectral", "plain"])
@pytest.mark.parametrize("norm", NORMS)
def test_style_encoder(norm: str, spectral: bool):
    official = spectrally(OfficialStyleEncoder(4, norm, spectral))
    loaded, x = StyleEncoder.from_official(official.state_dict()).eval(), torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        for ours, theirs in zip(loaded(x), official(x), strict=True):
            assert difference(ours, theirs) <= TOLERANCE


# StyleGAN2's layout: StyleGAN2-ADA's generator, with filters beside every layer, as published.

FILTER = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def doubled_and_filtered(x: Tensor, before: int, after: int) -> Tensor:
    "Zeros between pixels, borders of these widths, four times the filter: pixel by pixel."
    sparse = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    sparse[:, :, ::2, ::2] = x
    padded = nn.functional.pad(sparse, (before, after, before, after))
    windows = padded.unfold(2, 4, 1).unfold(3, 4, 1)
    return (windows * 4 * FILTER).sum(dim=(-2, -1))


class OfficialDense(nn.Module):
    "Equalised learning rate: weights are scaled as they are used."

    def __init__(self, inside: int, outside: int, rate: float = 1.0, bias: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outside, inside) / rate)
        self.bias = nn.Parameter(torch.full((outside,), bias) + 0.1 * torch.randn(outside) / rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        gain = self.rate / self.weight.shape[1] ** 0.5
        return x @ (gain * self.weight).T + self.rate * self.bias


class OfficialStyleConv(nn.Module):
    "A convolution whose weight is made for each image; noise, bias, activation, or none of them."

    def __init__(self, inside: int, outside: int, w_dim: int, side: int, *, up=False, rgb=False):
        super().__init__()
        self.up, self.rgb, kernel = up, rgb, 1 if rgb else 3
        self.weight = nn.Parameter(torch.randn(outside, inside, kernel, kernel))
        self.bias = nn.Parameter(torch.randn(outside))
        self.affine = OfficialDense(inside=w_dim, outside=inside, bias=1.0)
        if not rgb:
            self.noise_strength = nn.Parameter(torch.randn(()))
            self.register_buffer("noise_const", torch.randn(side, side))
            self.register_buffer("resample_filter", FILTER.clone())

    def one(self, image: Tensor, style: Tensor) -> Tensor:
        weight = self.weight * style[None, :, None, None]
        if self.rgb:
            weight = weight / self.weight.shape[1] ** 0.5
            return nn.functional.conv2d(image, weight)
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not self.up:
            return nn.functional.conv2d(image, weight, padding=1)
        # Doubling commutes with the convolution, so it may as well come first.
        sparse = image.new_zeros(1, image.shape[1], 2 * image.shape[2] - 1, 2 * image.shape[3] - 1)
        sparse[:, :, ::2, ::2] = image
        full = nn.functional.conv2d(sparse, weight.flip(2, 3), padding=2)
        padded = nn.functional.pad(full, (1, 1, 1, 1))
        return (padded.unfold(2, 4, 1).unfold(3, 4, 1) * 4 * FILTER).sum(dim=(-2, -1))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w)
        y = torch.cat([self.one(x[n : n + 1], styles[n]) for n in range(len(x))])
        if self.rgb:
            return y + self.bias[:, None, None]
        y = y + self.noise_strength * self.noise_const + self.bias[:, None, None]
        return nn.functional.leaky_relu(y, 0.2) * 2**0.5


class OfficialStyleGAN2(nn.Module):
    "Mapping and synthesis, with the published names."

    def __init__(
        self, sides: int, widths: list[int], z_dim=5, c_dim=0, w_dim=6, depth=3, colours=3
    ):
        super().__init__()
        self.depth, self.sides = depth, [2 ** (n + 2) for n in range(sides)]
        self.mapping, self.synthesis = nn.Module(), nn.Module()
        if c_dim:
            self.mapping.embed = OfficialDense(c_dim, w_dim)
        for n in range(depth):
            inside = w_dim if n else z_dim + w_dim * bool(c_dim)
            self.mapping.add_module(f"fc{n}", OfficialDense(inside, w_dim, 0.01))
        self.mapping.register_buffer("w_avg", torch.randn(w_dim))
        for n, side in enumerate(self.sides):
            block = nn.Module()
            block.register_buffer("resample_filter", FILTER.clone())
            if n:
                block.conv0 = OfficialStyleConv(widths[n - 1], widths[n], w_dim, side, up=True)
            else:
                block.const = nn.Parameter(torch.randn(widths[0], 4, 4))
            block.conv1 = OfficialStyleConv(widths[n], widths[n], w_dim, side)
            block.torgb = OfficialStyleConv(widths[n], colours, w_dim, side, rgb=True)
            self.synthesis.add_module(f"b{side}", block)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        unit = lambda x: x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()  # noqa: E731
        w = unit(z)
        if c is not None:
            w = torch.cat([w, unit(self.mapping.embed(c))], 1)
        for n in range(self.depth):
            w = nn.functional.leaky_relu(self.mapping.get_submodule(f"fc{n}")(w), 0.2) * 2**0.5
        x, image = self.synthesis.b4.const.expand(len(z), -1, -1, -1), None
        for side in self.sides:
            block = self.synthesis.get_submodule(f"b{side}")
            if side > 4:
                x = block.conv0(x, w)
            x = block.conv1(x, w)
            colours = block.torgb(x, w)
            image = colours if image is None else doubled_and_filtered(image, 2, 1) + colours
        return image


@pytest.mark.parametrize("c_dim", [0, 4], ids=["unconditional", "class-conditional"])
@pytest.mark.parametrize(
    ("widths", "options"),
    [([6, 6, 4], {}), ([5, 4, 3, 2], {"depth": 1, "colours": 1}), ([3], {"z_dim": 2, "w_dim": 9}),
     ([4, 8], {"depth": 8})],
    ids=["usual", "shallow and grey", "4 x 4", "deep"],
)
def test_stylegan2_generator(widths: list[int], options: dict, c_dim: int):
    torch.manual_seed(0)
    official = OfficialStyleGAN2(len(widths), widths, c_dim=c_dim, **options)
    z = torch.randn(3, options.get("z_dim", 5))
    code = torch.eye(4)[[0, 2, 2]] if c_dim else None
    loaded = StyleGAN2Generator.from_official(official.state_dict()).eval()
    with torch.no_grad():
        assert difference(loaded(z, code, noise="const"), official(z, code)) <= TOLERANCE


@pytest.mark.parametrize(("base", "parameters"), [(16384, 24_767_458), (32768, 30_034_338)])
def test_published_size_of_stylegan2(base: int, parameters: int):
    widths = [min(base // 2 ** (n + 2), 512) for n in range(7)]
    with torch.device("meta"):
        weights = OfficialStyleGAN2(7, widths, 512, 0, 512, 8).state_dict()
    weights = {name: FILTER.clone() if name.endswith("resample_filter")
               else torch.zeros_like(value, device="cpu") for name, value in weights.items()}
    loaded = StyleGAN2Generator.from_official(weights)
    assert sum(value.numel() for value in loaded.parameters()) == parameters


@pytest.mark.parametrize("c_dim", [0, 4], ids=["unconditional", "class-conditional"])
def test_stylegan2_checkpoints_that_do_not_fit_are_refused(c_dim: int):
    weights = OfficialStyleGAN2(2, [4, 3], c_dim=c_dim).state_dict()
    for name, value in weights.items():
        if not name.endswith("resample_filter"):
            rest = {other: tensor for other, tensor in weights.items() if other != name}
            assert_refused(StyleGAN2Generator, rest)
        assert_refused(StyleGAN2Generator, weights | {name: torch.zeros(*value.shape, 1)})
    other_filter = torch.ones(4, 4) / 16
    assert_refused(StyleGAN2Generator, weights | {"synthesis.b4.resample_filter": other_filter},
                   "1-3-3-1")
    for surplus in ("synthesis.b8.skip.weight", "synthesis.fourier.freqs", "mapping.other"):
        assert_refused(StyleGAN2Generator, weights | {surplus: torch.zeros(1)}, surplus)
    for build, *_ in LAYOUTS.values():
        assert_refused(StyleGAN2Generator, build("batch").state_dict())
    for wrong in [{}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}]:
        assert_refused(StyleGAN2Generator, wrong)


# --- the published sizes

@pytest.mark.parametrize(
    ("official", "network", "parameters", "entries"),
    [
        (lambda: OfficialUNet(3, 3, 8, 64, "batch"), UNetGenerator, 54_413_955, 82),
        (lambda: OfficialResNet(3, 3, 9, 64, "instance", True), ResNetGenerator, 11_378_179, 48),
        (lambda: OfficialPatchGAN(6, 3, 64, "batch"), PatchGAN, 2_768_705, 22),
        (lambda: OfficialPixelGAN(6, 64, "batch"), PixelGAN, 9_024, 9),
        (lambda: OfficialGlobal(36, 64, 4, 9, "instance"), GlobalGenerator, 182_546_755, 56),
        (lambda: OfficialLocal(36, 32, 4, 9, 3, "instance", 1), LocalEnhancer, 182_857_059, 74),
        (lambda: OfficialEncoder(16, 4, "instance"), InstanceEncoder, 788_803, 20),
        (lambda: OfficialMultiscale(39, 3, 64, "instance", 2), MultiscaleDiscriminator,
         5_603_202, 20),
        (lambda: OfficialMultiscale(39, 3, 64, "instance", 3), MultiscaleDiscriminator,
         8_404_803, 30),
        (lambda: OfficialStyleEncoder(64, spectral=False), StyleEncoder, 10_463_424, 10),
        (lambda: OfficialSPADEJudges(16, 64, 4, 2, spectral=False), SPADEDiscriminator,
         5_554_306, 14),
    ],
    ids=["unet_256", "resnet_9blocks", "basic", "pixel", "global", "local", "encoder",
         "two scales", "three scales", "style encoder", "spade judges"],
)
def test_published_size(
    official: Callable[[], nn.Module], network: type[nn.Module], parameters: int, entries: int
):
    weights = official().state_dict()
    loaded = network.from_official(weights)
    assert sum(value.numel() for value in loaded.parameters()) == parameters
    assert len(loaded.state_dict()) == len(weights) == entries


@pytest.mark.parametrize(
    ("in_channels", "ups", "z_dim", "parameters"),
    [(13, 5, 0, 92_359_107), (36, 6, 0, 93_048_003), (151, 5, 0, 96_492_483),
     (151, 5, 256, 111_942_595), (184, 5, 0, 97_480_899)],
    ids=["facades", "cityscapes", "ade20k", "ade20k vae", "coco"],
)
def test_published_size_of_spade(in_channels: int, ups: int, z_dim: int, parameters: int):
    with torch.device("meta"):
        weights = OfficialSPADE(
            in_channels, 64, ups, z_dim=z_dim, start=(8, 8), spectral=False
        ).state_dict()
    weights = {name: torch.zeros_like(value, device="cpu") for name, value in weights.items()}
    loaded = SPADEGenerator.from_official(weights, ups)
    assert sum(value.numel() for value in loaded.parameters()) == parameters


# --- what people's checkpoints look like

LAYOUTS = {
    "unet": (lambda norm: OfficialUNet(3, 3, 5, 4, norm), UNetGenerator, 32),
    "resnet": (lambda norm: OfficialResNet(3, 3, 2, 4, norm, True), ResNetGenerator, 16),
    "patchgan": (lambda norm: OfficialPatchGAN(3, 3, 4, norm), PatchGAN, 32),
    "pixelgan": (lambda norm: OfficialPixelGAN(3, 4, norm), PixelGAN, 8),
    "global": (lambda norm: OfficialGlobal(3, 4, 1, 2, norm), GlobalGenerator, 16),
    "local": (lambda norm: OfficialLocal(3, 2, 1, 1, 1, norm, 2), LocalEnhancer, 32),
}


@pytest.fixture(params=LAYOUTS)
def layout(request) -> tuple[Callable[[str], nn.Module], type[nn.Module], Tensor]:
    build, network, side = LAYOUTS[request.param]
    return build, network, torch.randn(1, 3, side, side)


def outputs(network: type[nn.Module], weights: Tensors, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.from_official(weights).eval()(x)


def test_prefix_of_several_devices(layout):
    build, network, x = layout
    weights = scramble(build("batch")).state_dict()
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    assert torch.equal(outputs(network, weights, x), outputs(network, prefixed, x))


def test_old_instance_norms_kept_statistics(layout):
    "Before PyTorch 0.4, instance norms without weights saved running statistics that nobody used."
    build, network, x = layout
    official = scramble(build("instance"))
    weights, old = official.state_dict(), official.state_dict()
    for name, layer in official.named_modules():
        if isinstance(layer, nn.InstanceNorm2d):
            old[f"{name}.running_mean"] = torch.randn(layer.num_features)
            old[f"{name}.running_var"] = torch.rand(layer.num_features)
    assert len(old) > len(weights)
    assert torch.equal(outputs(network, weights, x), outputs(network, old, x))


def test_old_batch_norms_counted_nothing(layout):
    build, network, x = layout
    weights = scramble(build("batch")).state_dict()
    old = {name: value for name, value in weights.items() if "num_batches" not in name}
    assert len(old) < len(weights)
    assert torch.equal(outputs(network, weights, x), outputs(network, old, x))


def test_half_precision(layout):
    build, network, x = layout
    weights = {name: value.half() if value.is_floating_point() else value
               for name, value in scramble(build("batch")).state_dict().items()}
    loaded = network.from_official(weights)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def test_the_order_of_names_does_not_matter(layout):
    build, network, x = layout
    weights = scramble(build("instance")).state_dict()
    backwards = dict(reversed(weights.items()))
    assert torch.equal(outputs(network, weights, x), outputs(network, backwards, x))


def assert_refused(network: type[nn.Module], weights: object, *words: str) -> None:
    "An InputError of one sentence that holds these words."
    with pytest.raises(InputError) as caught:
        network.from_official(weights)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    for word in words:
        assert word in message


def test_every_missing_tensor_is_refused(layout):
    build, network, _ = layout
    weights = build("batch").state_dict()
    for name in weights:
        if "num_batches" not in name:
            rest = {other: value for other, value in weights.items() if other != name}
            assert_refused(network, rest)


def test_every_tensor_of_another_shape_is_refused(layout):
    build, network, _ = layout
    weights = build("batch").state_dict()
    for name, value in weights.items():
        if value.ndim:
            assert_refused(network, weights | {name: torch.zeros(*value.shape, 1)})


def test_a_surplus_tensor_is_refused(layout):
    build, network, _ = layout
    weights = build("batch").state_dict()
    assert_refused(network, weights | {"model.style.weight": torch.zeros(1)}, "model.style.weight")


def test_other_networks_are_refused(layout):
    build, network, _ = layout
    for build_other, network_other, _ in LAYOUTS.values():
        if network_other is not network:
            assert_refused(network, build_other("batch").state_dict())


@pytest.mark.parametrize("wrong", [{}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}],
                         ids=["empty", "numbers", "nested"])
def test_what_is_no_state_dict_is_refused(layout, wrong: dict):
    assert_refused(layout[1], wrong)


# --- the same for the checkpoints of SPADE, whose spectral norms are folded

SPADES = {
    "generator": (lambda: OfficialSPADE(3, 2, 5), SPADEGenerator),
    "styles": (lambda: OfficialSPADE(3, 2, 7, z_dim=4), SPADEGenerator),
    "encoder": (lambda: OfficialStyleEncoder(2), StyleEncoder),
    "encoder with batch norms": (lambda: OfficialStyleEncoder(2, "batch"), StyleEncoder),
    "judges": (lambda: OfficialSPADEJudges(4, 2, 3, 2), SPADEDiscriminator),
    "plain judges": (lambda: OfficialSPADEJudges(4, 2, 3, 1, "none"), SPADEDiscriminator),
}


@pytest.fixture(params=SPADES)
def spade_layout(request) -> tuple[Tensors, type[nn.Module]]:
    build, network = SPADES[request.param]
    return spectrally(build()).state_dict(), network


def test_spade_checkpoints_come_in_many_ways(spade_layout):
    "With the prefix of several devices, in another order, in half precision."
    weights, network = spade_layout
    expected = network.from_official(weights).state_dict()
    prefixed = {f"module.{name}": value for name, value in reversed(weights.items())}
    given = network.from_official(prefixed).state_dict()
    assert all(torch.equal(given[name], value) for name, value in expected.items())
    halved = {name: value.half() if value.is_floating_point() else value
              for name, value in weights.items()}
    assert {w.dtype for w in network.from_official(halved).parameters()} == {torch.float32}


def test_spade_checkpoints_that_do_not_fit_are_refused(spade_layout):
    weights, network = spade_layout
    for name, value in weights.items():
        if "num_batches" not in name:
            rest = {other: tensor for other, tensor in weights.items() if other != name}
            assert_refused(network, rest)
            assert_refused(network, weights | {name: torch.zeros(*value.shape, 1)})
    assert_refused(network, weights | {"model.style.weight": torch.zeros(1)}, "model.style.weight")
    assert_refused(network, weights | {"style.weight_u": torch.zeros(1)}, "style.weight_u")


def test_spade_refuses_other_networks(spade_layout):
    _, network = spade_layout
    foreign = [build("batch") for build, *_ in LAYOUTS.values()]
    foreign += [build() for build, other in SPADES.values() if other is not network]
    for other in foreign:
        assert_refused(network, other.state_dict())
    for wrong in [{}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(1)}}]:
        assert_refused(network, wrong)
