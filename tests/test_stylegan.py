"StyleGAN: what its parts promise, what styles change and what they leave, what a collapse is."
from pathlib import Path

import pytest
import torch
from blocks import Blocks
from safetensors.torch import load_file
from torch import Tensor, nn

import semsynth
from semsynth.configs import find_config, load_weights, resolved, save_weights
from semsynth.datasets import SyntheticFacades
from semsynth.labels import FACADES, IGNORE_INDEX, Batch, InputError, semantics
from semsynth.metrics import confusion, mean_iou
from semsynth.segmenter import feature_distance, load_segmenter
from semsynth.stylegan import (
    PRESETS,
    STYLEGAN2_PRESETS,
    Discriminator,
    LayoutDiscriminator,
    MappingNetwork,
    StyleGAN,
    StyleGAN2,
    StyleGAN2Generator,
    SynthesisNetwork,
    grouped_modulated_conv,
    layout_d_loss,
    layout_g_loss,
    modulated_conv,
    over_frozen,
    pixel_log_odds,
    r1_penalty,
    resampling_filter,
    smoothed,
    stylegan,
    stylegan2,
    upsampled,
    widths_by_level,
    with_deviation,
)

SMALL = PRESETS["mini"] | {
    "resolution": 64, "channel_max": 8, "discriminator_max": 8, "map_channels": 4,
    "map_widest": 8, "layout_channels": 6, "z_channels": 6, "w_channels": 6,
}
CONDITIONINGS = ["masks", "embeddings", "histogram"]


def small(**options) -> StyleGAN:
    torch.manual_seed(0)
    return stylegan(12, **(SMALL | options)).eval()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(images: list[Tensor]) -> float:
    "Mean difference over all pairs."
    gaps = [(a - b).abs().mean() for n, a in enumerate(images) for b in images[:n]]
    return torch.stack(gaps).mean().item()


@pytest.fixture
def batch() -> Batch:
    return Blocks(resolution=64).batch()


# --- the parts

@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("demodulate", [True, False])
def test_both_forms_of_modulated_convolution_agree(kernel: int, demodulate: bool):
    x, weight, scales = torch.randn(3, 5, 9, 7), torch.randn(4, 5, kernel, kernel), torch.rand(3, 5)
    grouped = grouped_modulated_conv(x, weight, scales, demodulate)
    assert torch.allclose(modulated_conv(x, weight, scales, demodulate), grouped, atol=1e-5)


def test_an_output_channel_of_noise_keeps_its_variance():
    x, weight = torch.randn(64, 16, 8, 8), torch.randn(8, 16, 3, 3)
    y = modulated_conv(x, weight, 5 * torch.rand(64, 16))[:, :, 1:-1, 1:-1]
    assert 0.9 < y.std() < 1.1


def test_upsampling_is_the_convolution_of_the_doubled_image():
    "The transposed convolution and its blur against zeros between pixels and two convolutions."
    x, weight, taps = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3), resampling_filter()
    sparse = torch.zeros(2, 3, 11, 13)
    sparse[:, :, 1::2, 1::2] = nn.functional.pad(x, (0, 0, 0, 0))
    full = nn.functional.conv2d(
        nn.functional.pad(sparse, (1, 1, 1, 1)), weight.flip(2, 3)
    )
    expected = smoothed(full, 4 * taps, padding=1)
    scales = torch.ones(2, 3)
    given = modulated_conv(x, weight, scales, demodulate=False, up=taps)
    assert given.shape == (2, 4, 10, 12)
    assert torch.allclose(given, expected, atol=1e-4)


def test_resampling_keeps_the_mean():
    x = torch.randn(1, 2, 16, 16)
    x[:, :, :2] = x[:, :, -2:] = x[:, :, :, :2] = x[:, :, :, -2:] = 0
    assert torch.allclose(upsampled(x, resampling_filter()).mean(), x.mean(), atol=1e-5)


def test_r1_is_its_closed_form_on_a_linear_discriminator():
    a, image = torch.randn(3, 8, 8), torch.randn(4, 3, 8, 8, requires_grad=True)
    penalty = r1_penalty((image * a).sum(dim=(1, 2, 3)), image)
    assert torch.allclose(penalty, 0.5 * a.square().sum(), atol=1e-5, rtol=1e-5)


def test_a_single_class_makes_the_layout_losses_the_non_saturating_ones():
    real, fake = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    zeros = torch.zeros(2, 4, 4, dtype=torch.long)
    softplus, odds = nn.functional.softplus, lambda logits: logits[:, 0] - logits[:, 1]
    expected = softplus(-odds(real)).mean() + softplus(odds(fake)).mean()
    assert torch.allclose(layout_d_loss(real, fake, zeros), expected, atol=1e-6)
    assert torch.allclose(layout_g_loss(fake, zeros), softplus(-odds(fake)).mean(), atol=1e-6)


def test_pixels_without_label_ask_for_any_class():
    logits = torch.randn(1, 4, 2, 2)
    label_map = torch.tensor([[[0, 1], [2, IGNORE_INDEX]]])
    chance = logits.softmax(1)
    odds = pixel_log_odds(logits, label_map).sigmoid()[0]
    assert torch.allclose(odds[0, 1], chance[0, 1, 0, 1], atol=1e-5)
    assert torch.allclose(odds[1, 1], chance[0, :3, 1, 1].sum(), atol=1e-5)


def test_equal_images_give_themselves_away():
    torch.manual_seed(0)
    judge = Discriminator([8, 8, 4]).eval()
    same = torch.randn(1, 3, 16, 16).expand(4, -1, -1, -1)
    mixed = torch.cat([same[:1], torch.randn(3, 3, 16, 16)])
    assert with_deviation(same)[:, -1].max() < 1e-3
    assert (judge(same)[0] - judge(mixed)[0]).abs() > 1e-4, "the group is not seen"


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (128, 64)])
def test_the_judge_names_pixels_of_images_of_any_size(size):
    judge = LayoutDiscriminator(widths_by_level(64, 128, 8), 12, 6)
    verdict = judge(torch.zeros(2, 3, *size))
    assert verdict.whole.shape == (2,) and verdict.pixels.shape == (2, 13, *size)


def test_resolutions_are_powers_of_two():
    assert widths_by_level(256, 32768, 512) == [512] * 5 + [256, 128]
    for resolution in (96, 2):
        with pytest.raises(InputError, match="would work"):
            widths_by_level(resolution, 1024, 8)


# --- three ways to tell the map

@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_way_trains_and_draws(conditioning: str, batch: Batch):
    model = small(conditioning=conditioning).train()
    losses = [sum(terms.values()) for _, terms in model.training_losses(batch, 0)]
    assert all(loss.isfinite() for loss in losses)
    first, second = (model.eval().sample(batch.label_map, rng=rng(seed)) for seed in (0, 1))
    assert first.shape == batch.image.shape
    assert (first - second).abs().mean() > 1e-2


def test_a_histogram_knows_no_places_and_the_others_do(batch: Batch):
    label_map = batch.label_map[:1]
    for conditioning in CONDITIONINGS:
        model = small(conditioning=conditioning)
        z = model.draw_z(1, rng())
        images = [model.sample(m, z=z, noise="none") for m in (label_map, label_map.flip(1))]
        moved = (images[0] - images[1]).abs().max()
        assert moved < 1e-4 if conditioning == "histogram" else moved > 1e-3


def test_a_frozen_generator_stays_as_it_is(batch: Batch):
    mapping = MappingNetwork(6, 6, 2)
    base = StyleGAN2Generator(mapping, SynthesisNetwork(widths_by_level(64, 128, 8), 6))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = over_frozen(base, 12, map_channels=4, map_widest=8, layout_channels=4).train()
    for name in model.trained:
        learning = [w for w in model.get_submodule(name).parameters() if w.requires_grad]
        optimizer = torch.optim.Adam(learning, lr=1e-2)
        for part, terms in model.training_losses(batch, 0):
            if part == name:
                optimizer.zero_grad()
                sum(terms.values()).backward()
                optimizer.step()
    moved = [name for name, value in base.state_dict().items()
             if not torch.equal(value, before[name])]
    assert not moved
    with_class = StyleGAN2Generator(MappingNetwork(6, 6, 2, 10), base.synthesis)
    with pytest.raises(InputError, match="asks for a class"):
        over_frozen(with_class, 12)


@pytest.mark.parametrize("setting, term", [
    ("path_weight", "path_length"), ("diversity_weight", "likeness"), ("r1_weight", "r1"),
    ("layout_weight", "layout"), ("l2_weight", "l2"),
])
def test_weights_of_zero_are_off(setting: str, term: str, batch: Batch):
    for value in (0.0, 1.0):
        model = small(conditioning="embeddings", **{setting: value}).train()
        names = {name for _, terms in model.training_losses(batch, 0) for name in terms}
        assert (term in names) == bool(value)


def test_lazy_terms_come_when_they_are_due(batch: Batch):
    model = small(r1_every=3, path_every=2).train()
    seen = [{name for _, terms in model.training_losses(batch, step) for name in terms}
            for step in range(4)]
    assert ["r1" in names for names in seen] == [True, False, False, True]
    assert ["path_length" in names for names in seen] == [True, False, True, False]


# --- embeddings that steer a finished generator

TINY_BASE = {"resolution": 64, "channel_max": 8, "discriminator_max": 8, "z_channels": 6,
             "w_channels": 6}
PSP = {"conditioning": "embeddings", "adversarial_weight": 0.0, "layout_weight": 0.0,
       "path_weight": 0.0, "l2_weight": 1.0, "perceptual_weight": 0.8, "offset_weight": 0.005,
       "perceptual": "synthetic"}


def drawing(seed: int = 0, **options) -> StyleGAN2:
    torch.manual_seed(seed)
    return stylegan2(**(STYLEGAN2_PRESETS["mini"] | TINY_BASE | options)).eval()


def written(path: Path, model: StyleGAN2) -> Path:
    "A tiny StyleGAN2 as a file of weights."
    settings = [f"model.{key}={value}" for key, value in TINY_BASE.items()]
    config = resolved(find_config("synthetic", "stylegan2", settings))
    return save_weights(path, model, config, FACADES)


def test_a_stylegan2_that_is_told_nothing_trains_and_draws(batch: Batch):
    model = drawing(path_weight=1.0).train()
    turns = dict(model.training_losses(batch, 0))
    assert turns.keys() == {"discriminator", "generator"}
    assert turns["discriminator"].keys() == {"adversarial", "r1"}
    assert turns["generator"].keys() == {"adversarial", "path_length"}
    assert model.path_mean > 0 and model.generator.mapping.w_avg.abs().max() > 0
    model.eval()
    assert torch.equal(model.draw(2, rng=rng()), model.draw(2, rng=rng()))
    assert model.draw(2, 32, 96, rng=rng()).shape == (2, 3, 32, 96)
    mean = model.draw(2, rng=rng(), truncation_psi=0.0, noise="none")
    assert torch.allclose(mean[0], mean[1], atol=1e-5)


def test_psp_has_no_judge_and_compares_with_the_photo(tmp_path: Path, batch: Batch):
    base = written(tmp_path / "base.safetensors", drawing())
    model = small(**PSP, base=str(base)).train()
    turns = dict(model.training_losses(batch, 0))
    assert turns.keys() == {"generator"}
    terms = turns["generator"]
    assert terms.keys() == {"l2", "perceptual", "offsets"}
    told = model.generator.conditioning(semantics(batch.label_map, None, 12))
    lengths = told.offsets.square().sum(dim=(1, 2)).sqrt()
    assert torch.allclose(terms["offsets"], 0.005 * lengths.mean(), rtol=1e-3)
    sum(terms.values()).backward()
    reached = {name.split(".")[0] for name, weight in model.generator.named_parameters()
               if weight.grad is not None}
    assert reached == {"conditioning"}


def test_what_is_built_on_a_base_keeps_none_of_it(tmp_path: Path, batch: Batch):
    base = written(tmp_path / "base.safetensors", drawing())
    settings = [f"model.{key}={value}" for key, value in (SMALL | PSP | {"base": base}).items()]
    config = find_config("synthetic", "stylegan", settings)
    model = small(**PSP, base=str(base))
    path = save_weights(tmp_path / "encoder.safetensors", model, config, FACADES)
    kept = load_file(path)
    assert kept and all(name.startswith(("generator.conditioning.", "generator.path_mean"))
                        for name in kept)
    again = load_weights(path).model
    drawn = [each.sample(batch.label_map, rng=rng()) for each in (model, again)]
    assert (drawn[0] - drawn[1]).abs().max() < 0.05
    written(base, drawing(seed=1))
    with pytest.raises(InputError, match="another generator.mapping"):
        load_weights(path)


@pytest.mark.parametrize("options", [{"base": "stylegan2"}, {"l2_weight": 1.0}])
def test_only_embeddings_can_steer(options: dict):
    with pytest.raises(InputError, match="but only embeddings"):
        small(**options)
    with pytest.raises(InputError, match="no stylegan2 weights nowhere"):
        small(conditioning="embeddings", base="nowhere")


def test_earlier_places_hear_the_map_alone(batch: Batch):
    model = small(conditioning="embeddings", style_from=4)
    model.generator.mapping.w_avg.normal_()
    ws = [model.styles(batch.label_map, model.draw_z(1, rng(seed))) for seed in (0, 1)]
    assert torch.equal(ws[0][:, :4], ws[1][:, :4])
    assert ((ws[0] - ws[1])[:, 4:].abs().amax(dim=2) > 1e-3).all()
    assert (ws[0][0] - ws[0][1]).abs().amax(dim=1).min() > 1e-4, "the map is not heard"


# --- sampling

def test_truncation_draws_styles_together(batch: Batch):
    model = small()
    model.generator.mapping.w_avg.normal_()
    spreads = []
    for psi in (0.0, 0.5, 1.0):
        z = model.draw_z(2, rng())
        spreads.append((model.styles(batch.label_map[:1].expand(2, -1, -1), z,
                                     truncation_psi=psi)[0]
                        - model.styles(batch.label_map[:1].expand(2, -1, -1), z,
                                       truncation_psi=psi)[1]).abs().mean().item())
    assert spreads[0] < 1e-5 < spreads[1] < spreads[2]
    assert spreads[1] == pytest.approx(spreads[2] / 2, rel=1e-3)


def test_a_style_of_its_own_is_the_style_of_z(batch: Batch):
    model, z = small(), small().draw_z(1, rng())
    ws = model.styles(batch.label_map, z)
    given = model.sample(batch.label_map, ws=ws, noise="const")
    assert torch.equal(given, model.sample(batch.label_map, z=z, noise="const"))
    assert ws.shape == (2, model.generator.synthesis.num_ws, 6)


def test_constant_noise_has_one_size_and_says_so():
    wide = torch.zeros(1, 64, 128, dtype=torch.long)
    assert small().sample(wide, rng=rng(), noise="none").shape == (1, 3, 64, 128)
    with pytest.raises(InputError, match="choose noise random or none"):
        small().sample(wide, noise="const")
    with pytest.raises(InputError, match="multiples of 16 pixels"):
        small().sample(wide[:, :, :-1])


def test_saved_weights_draw_what_they_drew_before(tmp_path, batch: Batch):
    settings = [f"model.{key}={value}" for key, value in SMALL.items()]
    config = find_config("synthetic", "stylegan", settings)
    model = small()
    path = save_weights(tmp_path / "a.safetensors", model, config, FACADES)
    once = load_weights(path).model
    drawn = once.sample(batch.label_map, rng=rng())
    assert (drawn - model.sample(batch.label_map, rng=rng())).abs().max() < 0.05
    again = load_weights(save_weights(tmp_path / "b.safetensors", once, config, FACADES)).model
    assert torch.equal(drawn, again.sample(batch.label_map, rng=rng()))


# --- the weights that ship

FLOOR = 0.1  # mean difference of colours of squares of 16 pixels, in [-1, 1]; below it: a collapse


def colour_spread(images: Tensor) -> float:
    "Of the same map in several styles, over all pairs."
    return spread(list(nn.functional.avg_pool2d(images, 16)))


@pytest.fixture(scope="module")
def houses() -> Batch:
    dataset = SyntheticFacades("test", num_images=6, resolution=128)
    samples = [dataset[index] for index in range(len(dataset))]
    return Batch(*(torch.stack(part) for part in zip(*samples, strict=True)))


@pytest.fixture(scope="module")
def shipped() -> StyleGAN:
    return semsynth.load("stylegan")


@pytest.mark.parametrize("name", ["stylegan", "stylegan-facades"])
def test_the_weights_have_not_collapsed(name: str, houses: Batch):
    model = semsynth.load(name)
    for label_map in houses.label_map[:2, None]:
        images = model.sample(label_map.expand(6, -1, -1), rng=rng())
        assert colour_spread(images) > FLOOR


def test_a_collapse_is_found(houses: Batch):
    "The same measure on the same weights, made deaf to w."
    model = semsynth.load("stylegan")
    for part in model.generator.synthesis.modules():
        if hasattr(part, "affine"):
            nn.init.zeros_(part.affine.weight)
    images = model.sample(houses.label_map[:1].expand(6, -1, -1), rng=rng())
    assert colour_spread(images) < FLOOR / 2


def layouts(images: Tensor, label_map: Tensor) -> list[float]:
    "mIoU of the map that was asked for and the one that is read, image by image."
    size = tuple(label_map.shape[-2:])
    counts = confusion(load_segmenter("segmenter-synthetic")(images, size), label_map, 12)
    return [mean_iou(each).item() for each in counts]


@pytest.mark.parametrize("name", ["stylegan-frozen", "stylegan-embeddings"])
def test_vectors_alone_place_a_house(name: str):
    dataset = SyntheticFacades("test", num_images=16, resolution=64)
    label_map = torch.stack([dataset.label_map(index) for index in range(16)])
    model = semsynth.load(name)
    images = model.sample(label_map, rng=rng())
    own = sum(layouts(images, label_map)) / 16
    other = sum(layouts(images, label_map.roll(1, 0))) / 16
    assert own > 1.5 * other
    # The later places of a generator that does not move have less to say.
    floor = FLOOR / 2 if name == "stylegan-frozen" else FLOOR
    for one in label_map[:2, None]:
        assert colour_spread(model.sample(one.expand(6, -1, -1), rng=rng())) > floor


def test_what_was_told_nothing_has_not_collapsed():
    assert colour_spread(semsynth.load("stylegan2").draw(8, rng=rng())) > FLOOR


def test_styles_change_the_look_and_leave_the_layout(shipped: StyleGAN, houses: Batch):
    label_map = houses.label_map[:1].expand(6, -1, -1)
    images = shipped.sample(label_map, rng=rng())
    distance = feature_distance(load_segmenter("perceptual-synthetic"))
    assert distance(images[:3], images[3:]).mean() > 0.3
    agreement = layouts(images, label_map)
    assert min(agreement) > 0.3 and min(agreement) > 0.6 * max(agreement)


def test_one_style_follows_every_map(shipped: StyleGAN, houses: Batch):
    images = shipped.sample(houses.label_map, z=shipped.draw_z(1, rng(3)), rng=rng())
    own = sum(layouts(images, houses.label_map)) / 6
    other = sum(layouts(images, houses.label_map.roll(1, 0))) / 6
    assert own > 1.5 * other
    walls = [image[:, label_map == 1].mean(1)
             for image, label_map in zip(images, houses.label_map, strict=True)]
    photos = [image[:, label_map == 1].mean(1)
              for image, label_map in zip(houses.image, houses.label_map, strict=True)]
    assert torch.stack(walls).std(0).mean() < 0.6 * torch.stack(photos).std(0).mean()
