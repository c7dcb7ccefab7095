"pix2pixHD's own promises: counts by hand, freezes, edges, styles, and judges that ship nothing."
import copy
import io

import pytest
import torch
import torch.nn.functional as F
from blocks import Blocks, Breaks, PowerCut, assert_equal, assert_equal_runs, optim, same
from safetensors.torch import save_file
from torch import Tensor, nn

from semsynth.cgan import UPSAMPLINGS, ResNetGenerator
from semsynth.labels import IGNORE_INDEX, Batch, InputError, semantics
from semsynth.pix2pixhd import (
    CAFFE_MEAN,
    PERCEPTUAL,
    PRESETS,
    GlobalGenerator,
    InstanceEncoder,
    LocalEnhancer,
    MultiscaleDiscriminator,
    PerceptualLoss,
    Pix2PixHD,
    StyleMemory,
    caffe_stages,
    feature_matching,
    half_size,
    instance_mean,
    kmeans,
    perceptual_loss,
    pix2pixhd,
    read_vgg,
    regions,
    vgg_stages,
)
from semsynth.synthesizer import training_loop
from semsynth.training import SynthesisData, TrainOptions, fit, make_optimizers

DATASET = Blocks(num_images=8, resolution=64)
SMALL = PRESETS["mini"] | {
    "channels": 4, "num_downs": 3, "num_blocks": 1, "discriminator_channels": 4,
    "l1_weight": 0.0, "encoder_channels": 0,
}
VARIANTS = {
    "encoder": {"encoder_channels": 4},
    "enhancer": {"num_enhancers": 1, "num_downs": 2},
    "two enhancers": {"num_enhancers": 2, "num_downs": 2},
    "fixed": {"num_enhancers": 1, "num_downs": 2, "fix_global": 3},
    "everything": {"num_enhancers": 1, "num_downs": 2, "fix_global": 2, "encoder_channels": 4},
}


def build(seed: int = 0, **changes) -> Pix2PixHD:
    torch.manual_seed(seed)
    return pix2pixhd(12, **(SMALL | changes))


def stand_in(seed: int = 0) -> PerceptualLoss:
    "Five stages with norms, as a segmenter's encoder has them."

    def read() -> nn.ModuleList:
        rng = torch.random.get_rng_state()
        torch.manual_seed(seed)
        widths = [3, 4, 4, 6, 6, 8]
        stages = nn.ModuleList([
            nn.Sequential(nn.Conv2d(a, b, 3, 1 + (n > 0), 1), nn.BatchNorm2d(b), nn.ReLU())
            for n, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        ])
        torch.random.set_rng_state(rng)
        return stages

    return PerceptualLoss(read)


def steps(model: Pix2PixHD, count: int, batch: Batch | None = None) -> list[dict[str, float]]:
    batches = [batch or DATASET.batch()] * count
    return list(training_loop(model, batches, make_optimizers(model, optim(model))))


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> Batch:
    return DATASET.batch()


# --- the networks

def test_half_size_leaves_the_border_out():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert half_size(x)[0, 0].tolist() == [[2.5, 4.0], [8.5, 10.0]]
    assert torch.equal(half_size(torch.ones(1, 2, 7, 9)), torch.ones(1, 2, 4, 5))


def test_features_have_the_published_sizes():
    judge = MultiscaleDiscriminator(3, channels=4, num_scales=3)
    x = torch.randn(1, 3, 256, 256)
    sizes = [[f.shape[-1] for f in layers] for layers in judge.features(x)]
    assert sizes[0] == [129, 65, 33, 34, 35]
    assert sizes[1] == [65, 33, 17, 18, 19] and sizes[2] == [33, 17, 9, 10, 11]


def test_logits_are_the_last_features():
    judge, x = MultiscaleDiscriminator(5, 4), torch.randn(2, 5, 32, 48)
    for logits, layers in zip(judge(x), judge.features(x), strict=True):
        assert torch.equal(logits, layers[-1]) and logits.shape[1] == 1


def test_judges_of_another_build_can_be_passed():
    class Judge(nn.Module):
        def __init__(self, in_channels, channels, num_layers, norm):
            super().__init__()
            self.layer = nn.Conv2d(in_channels, channels, num_layers)

        def features(self, x: Tensor) -> list[Tensor]:
            return [self.layer(x)]

    judge = MultiscaleDiscriminator(3, 7, 2, 3, network=Judge)
    shapes = [layers[-1].shape for layers in judge.features(torch.randn(1, 3, 16, 16))]
    assert shapes == [(1, 7, 15, 15), (1, 7, 7, 7), (1, 7, 3, 3)]


@pytest.mark.parametrize("upsample", UPSAMPLINGS)
def test_the_hand_over_keeps_what_the_coarse_generator_knows(upsample: str):
    "Bitwise: its features at step 0 are those of the trained generator, on the halved input."
    coarse = GlobalGenerator(5, 8, 2, num_downs=2, upsample=UPSAMPLINGS[upsample])
    x = torch.randn(1, 5, 32, 64)
    fine = LocalEnhancer(coarse, 1, upsample=UPSAMPLINGS[upsample])
    known = coarse.features(half_size(x))
    assert torch.equal(fine.coarse.features(half_size(x)), known)
    assert torch.equal(coarse.head(known), coarse(half_size(x)))
    again = LocalEnhancer(fine, 1)
    assert torch.equal(again.coarse.features(half_size(x)), fine.features(half_size(x)))


def test_the_hand_over_copies():
    coarse = GlobalGenerator(5, 8, 1, num_downs=1)
    before = copy.deepcopy(coarse.state_dict())
    fine = LocalEnhancer(coarse, 1)
    with torch.no_grad():
        for weight in fine.parameters():
            weight.add_(1)
    assert_equal(dict(coarse.state_dict()), dict(before))
    assert not [name for name in fine.state_dict() if name.startswith("coarse.head")]


@pytest.mark.parametrize("encoder_channels", [0, 4])
def test_a_second_training_begins_with_the_first(encoder_channels: int):
    "Coarse alone, one enhancer, two: each begins with all that the one before has learnt."
    sizes = {"encoder_channels": encoder_channels, "num_downs": 2, "channels": 16}
    place = "generator.painter." if encoder_channels else "generator."
    before = build(seed=0, **sizes)
    for number in (1, 2):
        sizes |= {"num_enhancers": number, "channels": sizes["channels"] // 2}
        model = build(seed=number, **sizes)
        given, own = model.handed_over(before), model.state_dict()
        assert {name: value.shape for name, value in given.items()} == {
            name: own[name].shape for name in given
        }
        fresh = {name for name in own if name not in given}
        assert fresh and all(
            name.startswith(place) and not name.startswith(f"{place}coarse.") for name in fresh
        )
        model.load_state_dict(own | given)
        painters = [m.generator.painter if encoder_channels else m.generator
                    for m in (model, before)]
        x = torch.randn(1, 16 if encoder_channels else 13, 64, 64)
        known = painters[0].coarse.features(half_size(x))
        assert torch.equal(known, painters[1].features(half_size(x)))
        assert torch.equal(next(model.discriminator.parameters()),
                           next(before.discriminator.parameters()))
        before = model


def test_a_training_of_equal_depth_takes_everything():
    before, model = build(seed=0), build(seed=1)
    given = model.handed_over(before)
    assert_equal(given, dict(before.state_dict()))


def test_a_fixed_coarse_part_does_not_move_and_then_does(batch):
    model = build(**VARIANTS["fixed"])
    before = copy.deepcopy(model.generator.state_dict())
    optimizers = make_optimizers(model, optim(model))
    for step, _ in enumerate(training_loop(model, [batch] * 4, optimizers)):
        moved = {
            name for name, value in model.generator.state_dict().items()
            if not torch.equal(value, before[name])
        }
        coarse = {name for name in moved if name.startswith("coarse.")}
        assert bool(coarse) == (step >= 3) and moved - coarse
        assert moved <= {name for name, _ in model.generator.named_parameters()}


def test_nothing_to_fix_is_a_sentence():
    with pytest.raises(InputError, match="fix_global is 5"):
        build(fix_global=5)


@pytest.mark.parametrize(("variant", "multiple"), [
    ({}, 8), ({"encoder_channels": 4}, 16), (VARIANTS["two enhancers"], 16),
])
def test_sides_that_do_not_fit_are_a_sentence(variant: dict, multiple: int):
    model = build(**variant).eval()
    for height, width in [(multiple, 4 * multiple), (2 * multiple, 2 * multiple + 1)]:
        with pytest.raises(InputError, match=rf"multiples of {multiple} .*would work is") as caught:
            model.sample(torch.zeros(1, height, width, dtype=torch.int64))
        near = [int(side) for side in str(caught.value).split()[-3::2]]
        assert model.sample(torch.zeros(1, *near, dtype=torch.int64)).shape[-2:] == tuple(near)


# --- the losses

def test_feature_matching_by_hand():
    "Two scales; three layers that count, each a constant; the logits are far apart."
    real = [[torch.zeros(1, 2, 4, 4)] * 3 + [torch.zeros(1, 1, 4, 4)]] * 2
    fake = [
        [torch.full((1, 2, 4, 4), c) for c in (1.0, 2.0, 3.0)] + [torch.full((1, 1, 4, 4), 99.0)],
        [torch.full((1, 2, 4, 4), c) for c in (0.0, -6.0, 0.0)] + [torch.full((1, 1, 4, 4), 99.0)],
    ]
    assert feature_matching(real, fake).item() == pytest.approx(4 / 3 * (6 + 6) / 2)
    assert feature_matching(real, fake, layer_weight=1.0).item() == pytest.approx(6)


def test_feature_matching_with_the_published_weights():
    "Layer by layer as in the published description: 4 / (n_layers + 1) / num_D, three layers."
    judge = MultiscaleDiscriminator(3, 4, num_layers=3, num_scales=2)
    real, fake = (judge.features(torch.randn(2, 3, 32, 32)) for _ in range(2))
    by_hand = sum(
        (4 / (3 + 1)) * (1 / 2) * (f - r).abs().mean()
        for rs, fs in zip(real, fake, strict=True) for r, f in list(zip(rs, fs, strict=True))[:-1]
    )
    assert feature_matching(real, fake).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_feature_matching_teaches_only_the_fake():
    real, fake = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    fake.requires_grad_(True)
    feature_matching([[real, real]], [[fake, fake]]).backward()
    assert real.grad is None and fake.grad is not None


def test_scales_are_summed_and_the_discriminator_halved(batch):
    model = build(feature_weight=0.0)
    losses = model.train().training_losses(batch, 0)
    name, terms = next(losses)
    assert name == "generator" and list(terms) == ["adversarial"]
    condition = model.condition(batch.label_map, batch.instance_map)
    fake = model.paint(condition)
    fake_logits, real_logits = (
        model.discriminator(torch.cat([condition, x], 1)) for x in (fake, batch.image)
    )
    by_hand = sum((logits - 1).square().mean() for logits in fake_logits)
    assert terms["adversarial"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    name, terms = next(losses)
    pairs = zip(real_logits, fake_logits, strict=True)
    by_hand = sum(0.5 * ((r - 1).square().mean() + f.square().mean()) for r, f in pairs)
    assert name == "discriminator"
    assert terms["adversarial"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_l1_is_added_where_it_is_asked_for(batch):
    terms = [next(build(l1_weight=weight).train().training_losses(batch, 0))[1]
             for weight in (0.0, 2.0)]
    fake = build().paint(build().condition(batch.label_map, batch.instance_map))
    assert "l1" not in terms[0]
    by_hand = 2 * (fake - batch.image).abs().mean().item()
    assert terms[1]["l1"].item() == pytest.approx(by_hand, rel=1e-5)


def test_a_perceptual_loss_is_no_part_of_the_model(batch):
    model, plain = build(), build()
    model.perceptual = stand_in()
    assert model.perceptual.stages is None
    model.eval().sample(batch.label_map)
    assert model.perceptual.stages is None, "drawing read the judge"
    (log,) = steps(model, 1)
    assert log["generator/perceptual"] > 0
    assert list(model.state_dict()) == list(plain.state_dict())
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    assert not any(layer.training for layer in model.train().perceptual.modules())
    plain.load_state_dict(copy.deepcopy(model).state_dict())


def test_a_perceptual_loss_by_hand():
    loss, network = stand_in(), stand_in().read().eval()
    fake, real = torch.randn(2, 2, 3, 32, 32)
    by_hand, x, y = 0.0, fake, real
    for weight, stage in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), network, strict=True):
        x, y = stage(x), stage(y)
        by_hand += weight * (x - y).abs().mean().item()
    assert loss(fake, real).item() == pytest.approx(by_hand, rel=1e-5)
    assert loss(real, real).item() == 0


def test_a_perceptual_loss_teaches_the_image_only():
    fake = torch.randn(1, 3, 32, 32, requires_grad=True)
    loss = stand_in()
    loss(fake, torch.zeros_like(fake)).backward()
    assert fake.grad.abs().sum() > 0 and not list(loss.parameters())


def vgg_state(blocks: tuple[int, ...], width: int = 4) -> dict[str, Tensor]:
    "Random weights under torchvision's names."
    state, place, channels = {}, 0, 3
    for block in blocks:
        for _ in range(block):
            spread = (channels * 4.5) ** -0.5
            state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * spread
            state[f"features.{place}.bias"] = torch.randn(width)
            place, channels = place + 2, width
        place += 1
    return state


@pytest.mark.parametrize(("blocks", "taps"), [
    ((2, 2, 4, 4, 4), [1, 6, 11, 20, 29]), ((2, 2, 3, 3, 3), [1, 6, 11, 18, 25]),
])
def test_vgg_is_tapped_where_published(blocks: tuple[int, ...], taps: list[int]):
    "After relu1_1, relu2_1, … of torchvision's sequence, whose numbers are those of the paper."
    state, x = vgg_state(blocks), torch.randn(1, 3, 32, 32)
    outputs, place = {}, 0
    y = x
    for block in blocks:
        for _ in range(block):
            weight, bias = (state[f"features.{place}.{leaf}"] for leaf in ("weight", "bias"))
            y = F.relu(F.conv2d(y, weight, bias, padding=1))
            outputs[place + 1] = y
            place += 2
        y, place = F.max_pool2d(y, 2), place + 1
    given = x
    for stage, tap in zip(vgg_stages(state, blocks), taps, strict=True):
        given = stage(given)
        assert torch.allclose(given, outputs[tap], atol=1e-5)


def test_caffe_weights_get_what_they_want():
    "The same features, in units of 127.5, as from BGR in [0, 255] minus the means."
    state, image = vgg_state((2, 2, 3, 3, 3)), torch.rand(1, 3, 32, 32) * 2 - 1
    for name in state:
        state[name] *= 100 if name.endswith("bias") else 1
    bgr = (image + 1).flip(1) * 127.5 - torch.tensor(CAFFE_MEAN)[:, None, None]
    plain, ours = vgg_stages(state, (2, 2, 3, 3, 3)), vgg_stages(state, (2, 2, 3, 3, 3))
    x, y = bgr, image
    for stage, caffe in zip(plain, caffe_stages(ours), strict=True):
        x, y = stage(x), caffe(y)
        assert torch.allclose(x, 127.5 * y, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_file_can_be_named(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    blocks = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}[name]
    images = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    torch.save(vgg_state(blocks), tmp_path / "weights.pt")
    torch.save(vgg_state(blocks), tmp_path / "weights_bgr.pt")
    values = []
    for file in ["weights.pt", "weights_bgr.pt"]:
        monkeypatch.setenv(f"SEMSYNTH_{name.upper()}", str(tmp_path / file))
        values.append(perceptual_loss(name)(*images).item())
    assert values[0] > 0 and values[1] > 0 and values[0] != values[1]


def assert_sentence(error: Exception, *words: str) -> None:
    message = str(error)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_file_is_a_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SEMSYNTH_VGG19", str(tmp_path / "nowhere.pth"))
    loss = perceptual_loss("vgg19")
    with pytest.raises(InputError) as caught:
        loss(*torch.zeros(2, 1, 3, 32, 32))
    assert_sentence(caught.value, "nowhere.pth", "SEMSYNTH_VGG19", "perceptual=none")


def test_no_network_is_a_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch):
    def offline(*args, **options):
        raise OSError("no route to host")

    monkeypatch.delenv("SEMSYNTH_VGG16", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        read_vgg("vgg16")
    assert_sentence(caught.value, "vgg16", "on another machine", "SEMSYNTH_VGG16")


def test_a_file_of_another_network_is_a_sentence(tmp_path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    monkeypatch.setenv("SEMSYNTH_VGG19", str(tmp_path / "other.pt"))
    with pytest.raises(InputError) as caught:
        read_vgg("vgg19")
    assert_sentence(caught.value, "0 convolutions", "this VGG has 16")


def test_a_wrong_name_is_a_sentence():
    with pytest.raises(InputError, match="perceptual is 'vgg'"):
        perceptual_loss("vgg")
    assert perceptual_loss("none") is None and PERCEPTUAL["none"] is None


# --- instances

def test_ids_above_255_keep_their_edges(batch):
    "Cityscapes numbers its instances 26001, 26002, …: in 8 bits, some neighbours are equal."
    label_map = torch.full((1, 64, 64), 3)
    instance_map = torch.full((1, 64, 64), 26_000)
    instance_map[..., 32:] = 26_000 + 256
    model = build().eval()
    condition = model.condition(label_map, instance_map)
    edges = condition[0, -1]
    assert edges[:, 31:33].eq(1).all() and edges.sum() == 2 * 64
    flat = model.condition(label_map, torch.full_like(instance_map, 7))
    assert not torch.equal(model.paint(condition), model.paint(flat))


def loop_mean(features: Tensor, instance_map: Tensor) -> Tensor:
    "Instance by instance."
    averaged = features.clone()
    for number, ids in enumerate(instance_map):
        for value in ids.unique():
            here = ids == value
            averaged[number][:, here] = features[number][:, here].mean(1, keepdim=True)
    return averaged


@pytest.mark.parametrize("low", [0, -5, 26_000, 2**40])
def test_instance_mean_equals_the_loop(low: int):
    features = torch.randn(3, 4, 16, 24)
    instance_map = torch.randint(low, low + 9, (3, 16, 24))
    assert torch.allclose(
        instance_mean(features, instance_map), loop_mean(features, instance_map), atol=1e-6
    )


def test_equal_ids_in_two_images_are_two_instances():
    features = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    averaged = instance_mean(features, torch.zeros(2, 4, 4, dtype=torch.int64))
    assert torch.equal(averaged, features)


def test_instance_mean_has_a_gradient():
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    instance_mean(features, torch.arange(16).reshape(1, 4, 4) // 8)[0, 0, 0, 0].backward()
    expected = torch.zeros(1, 2, 4, 4)
    expected[0, 0, :2] = 1 / 8
    assert torch.allclose(features.grad, expected)


def test_regions_split_where_any_map_changes():
    label_map = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 1, 1]]])
    instance_map = torch.tensor([[[5, 6, 6, 6]], [[5, 5, 5, 5]]])
    place, count = regions(instance_map, label_map)
    assert count == 5
    assert len(set(place[0, 0, :3].tolist())) == 3 and place[0, 0, 2] == place[0, 0, 3]
    assert not set(place[0].flatten().tolist()) & set(place[1].flatten().tolist())


def test_kmeans_finds_what_is_far_apart():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + torch.rand(3, 50, 2, generator=rng()) - 0.5).flatten(0, 1)
    centres = kmeans(points, 3)
    distances = torch.cdist(middles, centres)
    assert distances.amin(1).max() < 0.2 and sorted(distances.argmin(1).tolist()) == [0, 1, 2]
    own = torch.stack([points[:50].mean(0), points[50:100].mean(0), points[100:].mean(0)])
    assert torch.cdist(own, centres).amin(1).max() < 1e-5


def test_kmeans_never_raises_the_error():
    points = torch.randn(200, 3, generator=rng())
    errors = [
        torch.cdist(points, kmeans(points, 7, n)).amin(1).square().sum().item() for n in range(8)
    ]
    assert all(after <= before + 1e-4 for before, after in zip(errors, errors[1:], strict=False))


def test_kmeans_of_fewer_vectors_than_clusters():
    centres = kmeans(torch.tensor([[1.0], [2.0]]), 5)
    assert set(centres.flatten().tolist()) == {1.0, 2.0}


def test_a_memory_keeps_the_latest_of_each_class():
    memory = StyleMemory(num_classes=2, numbers=1, size=3, num_clusters=3)
    label_map = torch.tensor([[[0, 0, 1, IGNORE_INDEX]]])
    for n in range(5):
        styles = torch.tensor([0.1 * n, 0.1 * n, -0.1 * n, 0.9]).reshape(1, 1, 1, 4)
        memory.remember(styles, label_map, label_map)
    assert memory.seen.tolist() == [5, 5]
    kept = sorted((memory.codes[0, :, 0].float() / 127).tolist())
    assert kept == pytest.approx([0.2, 0.3, 0.4], abs=0.005)
    assert sorted(memory.codes[1, :, 0].tolist()) == [-51, -38, -25]


def test_a_memory_takes_more_instances_than_it_holds():
    memory = StyleMemory(num_classes=1, numbers=1, size=3)
    instance_map = torch.arange(8).reshape(1, 1, 8)
    styles = torch.linspace(-0.7, 0.7, 8).reshape(1, 1, 1, 8)
    memory.remember(styles, torch.zeros_like(instance_map), instance_map)
    assert memory.seen.tolist() == [8]
    assert sorted(memory.codes[0, :, 0].tolist()) == [38, 64, 89]


def test_styles_are_drawn_per_instance_from_the_right_class():
    memory = StyleMemory(num_classes=3, numbers=1, size=20, num_clusters=10)
    for n in range(10):
        for label, sign in [(0, 1.0), (1, -1.0)]:
            label_map = torch.full((1, 1, 1), label)
            value = torch.full((1, 1, 1, 1), sign * (0.05 + 0.09 * n))
            memory.remember(value, label_map, label_map)
    label_map = torch.tensor([[[0, 0, 0, 0, 1, 1, 2, IGNORE_INDEX]]]).repeat(100, 1, 1)
    instance_map = torch.tensor([[[0, 0, 1, 1, 2, 2, 3, 4]]]).repeat(100, 1, 1)
    styles = memory.draw(label_map, instance_map, rng())[:, 0, 0]
    assert torch.equal(styles[:, 0], styles[:, 1]) and torch.equal(styles[:, 2], styles[:, 3])
    assert not torch.equal(styles[:, 0], styles[:, 2])
    assert styles[:, :4].min() > 0 and styles[:, 4:6].max() < 0
    assert len(styles[:, 0].unique()) == 10
    assert styles[:, 6:].eq(0).all()


# --- the family with styles

def trained(seed: int = 0, **changes) -> Pix2PixHD:
    model = build(seed, encoder_channels=4, **changes)
    steps(model, 2)
    return model.eval()


def test_the_encoder_learns_with_the_generator(batch):
    model = build(encoder_channels=4)
    before = copy.deepcopy(model.generator.encoder.state_dict())
    steps(model, 1)
    assert any(
        not torch.equal(value, before[name])
        for name, value in model.generator.encoder.state_dict().items()
    )
    assert model.generator.memory.seen.sum() > 0


def test_different_styles_differ_and_equal_ones_do_not(batch):
    model = trained()
    one, same_again, other = (
        model.sample(batch.label_map, batch.instance_map, rng=rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same_again) and not torch.equal(one, other)


def test_a_photo_gives_its_style(batch):
    model = trained()
    first, second = (
        model.sample(batch.label_map, batch.instance_map, style_image=image)
        for image in (batch.image, -batch.image)
    )
    assert not torch.equal(first, second)
    condition = model.condition(batch.label_map, batch.instance_map)
    styles = model.generator.encoder(batch.image, batch.instance_map)
    assert torch.equal(first, model.paint(condition, styles))


def test_without_an_encoder_a_style_is_a_sentence(batch):
    with pytest.raises(InputError) as caught:
        build().eval().sample(batch.label_map, style_image=batch.image)
    assert_sentence(caught.value, "no encoder", "encoder_channels=16")


def test_styles_are_saved_with_the_weights(batch):
    model, other = trained(), build(5, encoder_channels=4).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = [m.sample(batch.label_map, batch.instance_map, rng=rng()) for m in (model, other)]
    assert torch.equal(*images)


# --- the contracts, for what `mini` leaves out

def options(**changes) -> TrainOptions:
    return TrainOptions(**{
        "num_steps": 4, "batch_size": 2, "lr_schedule": "constant", "log_every": 1,
        "checkpoint_every": 2, "sample_every": 0, "ema_decay": 0.9, **changes,
    })


def run(model: Pix2PixHD, folder, transform=same, resume=False, **changes):
    data = SynthesisData(DATASET, transform, options(**changes))
    return fit(model, data, optim(model), options(**changes), folder, resume=resume,
               progress=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_resume_bitwise(variant: str, tmp_path):
    def fresh(seed: int = 0) -> Pix2PixHD:
        model = build(seed, **VARIANTS[variant])
        model.perceptual = stand_in()
        return model

    whole, resumed = fresh(), fresh(5)
    run(whole, tmp_path / "whole")
    with pytest.raises(PowerCut):
        run(fresh(), tmp_path / "broken", Breaks(7))
    run(resumed, tmp_path / "broken", resume=True)
    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("variant", VARIANTS)
def test_exactly_what_is_trained_moves(variant: str, batch):
    model = build(**VARIANTS[variant])
    before = copy.deepcopy(model.state_dict())
    steps(model, 4)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(name.startswith(("generator.", "discriminator.")) for name in moved)
    idle = {name for name, _ in model.named_parameters()} - moved
    # A bias before an instance norm is subtracted again, so it has no gradient.
    assert all(name.endswith(".bias") for name in idle)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_draw_unlabelled_and_oblong_maps(variant: str):
    model = build(**VARIANTS[variant]).eval()
    label_map = Blocks(resolution=128).batch(1).label_map[:, :64]
    label_map[:, :20] = IGNORE_INDEX
    image = model.sample(label_map, rng=rng())
    assert image.shape == (1, 3, 64, 128) and image.isfinite().all()


def test_the_discriminator_is_judged_before_it_moves(batch):
    "Three passes of the judges serve both updates; a fourth would be time lost."
    model, calls = build(), []
    model.discriminator.scales[0].register_forward_pre_hook(lambda *_: calls.append(1))
    features = model.discriminator.scales[0].features
    model.discriminator.scales[0].features = lambda x: (calls.append(1), features(x))[1]
    steps(model, 1)
    assert len(calls) == 3


def test_a_few_steps_beat_a_mean_colour():
    "On blocks of one colour each, the generator is soon nearer than one colour for all."
    model, batch = build(channels=8, discriminator_channels=8), DATASET.batch(4)
    steps(model, 60, batch)
    image = model.eval().sample(batch.label_map, batch.instance_map)
    mean = batch.image.mean((0, 2, 3), keepdim=True)
    assert (image - batch.image).abs().mean() < 0.6 * (mean - batch.image).abs().mean()


def test_encoder_and_generator_share_the_published_layout():
    "Both are the ResNet of the chapter before; only its size differs."
    assert issubclass(GlobalGenerator, ResNetGenerator) and issubclass(
        InstanceEncoder, ResNetGenerator
    )
    names = [name for name in InstanceEncoder().state_dict() if name.startswith("blocks")]
    assert not names


def test_saved_tensors_hold_no_judge(tmp_path, batch):
    model = build(encoder_channels=4)
    model.perceptual = stand_in()
    steps(model, 1)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "all.safetensors")
    assert not [name for name in state if "perceptual" in name or "stages" in name]


def test_semantics_are_what_both_networks_read(batch):
    model = build()
    condition = model.condition(batch.label_map, batch.instance_map)
    assert torch.equal(condition, semantics(batch.label_map, batch.instance_map, 12))
