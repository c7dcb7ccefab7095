"SPADE: what styles promise, what its norms keep, what its weights survive."
import pytest
import torch
from blocks import Blocks
from torch import nn

from semsynth.configs import find_config, load_weights, save_weights
from semsynth.labels import FACADES, IGNORE_INDEX, Batch, InputError, onehot
from semsynth.spade import (
    MODULATIONS,
    PRESETS,
    CLADENorm,
    SPADEGenerator,
    SPADENorm,
    spade,
    with_void_plane,
)

SMALL = PRESETS["mini"] | {
    "channels": 4, "hidden_channels": 4, "style_channels": 6, "discriminator_channels": 4,
}


def lively(**options) -> nn.Module:
    "A small model whose weights are not as tiny as those it starts from."
    model = spade(12, **(SMALL | options)).eval()
    with torch.no_grad():
        for name, weight in model.generator.named_parameters():
            if weight.ndim > 1 and "parametrizations" not in name:
                nn.init.kaiming_normal_(weight)
    return model


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> Batch:
    return Blocks(resolution=64).batch()


def test_a_model_without_an_encoder_takes_no_style(batch):
    model = lively(style_channels=0)
    for style in ({"style_image": batch.image}, {"style": torch.zeros(1, 6)}):
        with pytest.raises(InputError, match="takes no style") as caught:
            model.sample(batch.label_map, **style)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="has no encoder"):
        model.encode_style(batch.image)
    assert model.sample(batch.label_map).shape == batch.image.shape


def test_styles_differ_and_an_equal_style_is_an_equal_image(batch):
    model = lively()
    first, second = (model.sample(batch.label_map, rng=rng(seed)) for seed in (0, 1))
    assert (first - second).abs().mean() > 1e-3
    dark, bright = (model.sample(batch.label_map, style_image=image)
                    for image in (batch.image - 1, batch.image))
    assert (dark - bright).abs().mean() > 1e-3
    z = model.encode_style(batch.image)
    assert torch.equal(bright, model.sample(batch.label_map, style=z))


def test_one_style_serves_all_maps_and_images_of_any_size_have_one(batch):
    model = lively()
    large = torch.rand(1, 3, 96, 80) * 2 - 1
    z = model.encode_style(large)
    assert z.shape == (1, 6)
    images = model.sample(batch.label_map, style_image=large)
    assert torch.equal(images, model.sample(batch.label_map, style=z.expand(2, -1)))


def test_without_spread_a_random_style_is_the_average_one(batch):
    model = lively()
    still = [model.sample(batch.label_map, rng=rng(n), style_spread=0.0) for n in (0, 1)]
    assert torch.equal(*still)
    assert torch.equal(still[0], model.sample(batch.label_map, style=torch.zeros(1, 6)))


@pytest.mark.parametrize("size", [(64, 32), (32, 128), (160, 96)])
def test_a_style_serves_maps_of_any_size(size):
    label_map = torch.zeros(1, *size, dtype=torch.long)
    assert lively().sample(label_map, rng=rng()).shape == (1, 3, *size)
    with pytest.raises(InputError, match="multiples of 32 pixels"):
        lively().sample(label_map[:, :-1])


def test_a_style_of_the_wrong_depth_is_refused_by_name():
    with pytest.raises(InputError, match="doubles 5, 6 or 7 times"):
        SPADEGenerator(13, 4, 4)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_a_map_of_one_class_is_not_washed_away(modulation):
    model = lively(modulation=modulation, style_channels=0)
    constant = torch.arange(2)[:, None, None].expand(2, 64, 64)
    first, second = model.sample(constant)[:, :, 24:40, 24:40]
    assert (first - second).abs().mean() > 0.01
    lost = nn.InstanceNorm2d(8)(nn.Conv2d(12, 8, 1)(onehot(constant, 12)))
    assert (lost[0] - lost[1]).abs().max() < 1e-2


def test_clade_is_a_table():
    layer, label_map = CLADENorm(5, 3), torch.randint(3, (2, 4, 6))
    gamma, beta = layer.modulation(onehot(label_map, 3))
    for values, table in [(gamma, layer.gamma), (beta, layer.beta)]:
        assert torch.allclose(values.movedim(1, -1), table.weight[:, :, 0, 0].T[label_map])


def test_nothing_modulates_at_zero():
    layer, x = SPADENorm(5, 3), torch.randn(2, 5, 8, 8)
    for convolution in (layer.gamma, layer.beta):
        nn.init.zeros_(convolution.weight)
    given = layer(x, onehot(torch.randint(3, (2, 16, 16)), 3))
    assert torch.allclose(given, nn.BatchNorm2d(5, affine=False)(x))


def test_drawing_leaves_the_power_iteration_alone_and_training_does_not(batch):
    model = lively()
    name = "generator.synthesis.blocks.0.first.parametrizations.weight.0._u"
    before = model.state_dict()[name].clone()
    model.sample(batch.label_map)
    assert torch.equal(model.state_dict()[name], before)
    for _ in model.train().training_losses(batch, 0):
        pass
    assert not torch.equal(model.state_dict()[name], before)


def test_saved_weights_draw_what_they_drew_before(tmp_path, batch):
    config = find_config("synthetic", "spade", [
        "model.perceptual=none", *(f"model.{key}={SMALL[key]}" for key in SMALL
                                   if key not in ("style_norm", "perceptual"))
    ])
    model = lively()
    path = save_weights(tmp_path / "a.safetensors", model, config, FACADES)
    once = load_weights(path).model
    drawn = once.sample(batch.label_map, rng=rng())
    assert (drawn - model.sample(batch.label_map, rng=rng())).abs().max() < 0.05
    again = load_weights(save_weights(tmp_path / "b.safetensors", once, config, FACADES)).model
    assert torch.equal(drawn, again.sample(batch.label_map, rng=rng()))


def test_weights_of_zero_are_off(batch):
    names = {"feature_weight": "feature_matching", "l1_weight": "l1"}
    for setting, term in names.items():
        for value in (0.0, 1.0):
            model = spade(12, **(SMALL | {setting: value})).train()
            (_, _), (_, terms) = model.training_losses(batch, 0)
            assert (term in terms) == bool(value)
    assert set(terms) == {"adversarial", "feature_matching", "kl", "l1"}


def test_judging_apart_is_judging_together(batch):
    "What the generator's turn saves changes nothing: the judges see each image alone."
    model = lively()
    condition = model.condition(batch.label_map, batch.instance_map, 12)
    fake = batch.image.flip(0)
    both = model.judge(condition, batch.image, fake)
    apart = [model.judge(condition, image) for image in (batch.image, fake)]
    for together, real, made in zip(both, *apart, strict=True):
        for layers in zip(together, real, made, strict=True):
            assert torch.allclose(layers[0], torch.cat(layers[1:]), atol=1e-4)


@pytest.mark.parametrize(("classes", "edges", "channels"), [(150, False, 151), (182, True, 184)])
def test_published_conditions_have_their_channels(classes, edges, channels):
    label_map = torch.randint(classes, (1, 8, 8))
    label_map[0, 0] = IGNORE_INDEX
    planes = with_void_plane(edges)(label_map, label_map, classes)
    assert planes.shape == (1, channels, 8, 8)
    assert planes[0, classes].sum() == 8 and torch.all(planes[:, : classes + 1].sum(1) == 1)
