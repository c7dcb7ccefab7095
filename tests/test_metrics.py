"Metrics: closed forms, equality with torchmetrics, bounded memory, and sense on real photographs."
import io
import json
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import shared
from torch import nn
from torchvision.transforms.functional import gaussian_blur

import semsynth.metrics as metrics
from semsynth.labels import IGNORE_INDEX, InputError
from semsynth.metrics import (
    CAFFE,
    AsGiven,
    Features,
    FeatureStatistics,
    LayoutAgreement,
    Moments,
    Preprocessing,
    Protocol,
    Report,
    Score,
    Segmenter,
    bootstrap,
    class_iou,
    compare_features,
    comparison,
    confusion,
    diversity,
    frechet_distance,
    image_scores,
    kernel_distance,
    l1,
    mean_iou,
    pixel_accuracy,
    precision_recall,
    quantise,
    ssim,
)

WEIGHTS = shared("SEMSYNTH_TEST_WEIGHTS", "weights")
HALF = (0.5, 0.5, 0.5)

pytestmark = pytest.mark.filterwarnings("ignore:a Fréchet distance from")


@pytest.fixture
def images(rng: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(12, 3, 6, 6, generator=rng) * 2 - 1
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


@pytest.fixture
def features() -> Features:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 6, 3, 2), nn.ReLU())
    return Features("small", network, Preprocessing(24, HALF, HALF))


class Flat(nn.Module):
    "Features that are the first pixels, for comparison with the library."

    num_features = 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().flatten(1)[:, :20]


# --- pairs

def test_l1_and_ssim_of_equal_and_of_inverted_images(images: torch.Tensor):
    assert l1(images, images).max() == 0 and torch.allclose(ssim(images, images), torch.ones(12))
    assert torch.allclose(l1(images, -images), 2 * images.abs().mean((1, 2, 3)))
    assert (ssim(images, -images) < 0.6).all()


def test_scores_are_those_of_eight_bit_files(images: torch.Tensor):
    other = images.roll(1, 0)
    rounded = image_scores(quantise(images), quantise(other))
    for name, score in image_scores(images, other).items():
        assert torch.equal(score, rounded[name]) and score.shape == (12,)
    assert image_scores(images[:1], other[:1])["SSIM"].shape == (1,)
    assert "mine" in image_scores(images, other, {"mine": l1})


def test_lpips_equals_torchmetrics_on_the_same_weights(images: torch.Tensor):
    from torchmetrics.functional.image.lpips import _LPIPS
    from torchvision.models import alexnet

    torch.manual_seed(0)
    theirs = _LPIPS(net="alex", pnet_rand=True)
    state = alexnet(weights=None).state_dict()
    slices = [theirs.net.get_submodule(f"slice{i}").state_dict() for i in range(1, 6)]
    state |= {f"features.{name}": value for part in slices for name, value in part.items()}
    heads = {n: v for n, v in theirs.state_dict().items() if n.startswith("lin")}

    a = nn.functional.interpolate(images[:3], (64, 64))
    ours = metrics.LPIPS(state, heads)(a, a.flip(3))
    assert torch.allclose(ours, theirs(a, a.flip(3)).flatten(), atol=1e-6) and (ours > 0).all()


def test_weights_that_are_missing_or_foreign_are_one_sentence(tmp_path: Path, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="fetch https://.* on another machine and put it into"):
        metrics.lpips()
    foreign = tmp_path / "alexnet.pth"
    torch.save({}, foreign)
    with pytest.raises(InputError, match="is not the published alexnet-owt-7be5be79.pth"):
        metrics.lpips(foreign)
    with pytest.raises(InputError, match="these are not the weights of SqueezeNet"):
        metrics.squeezenet_features(foreign)
    (tmp_path / "broken.pt").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="cannot be read as a file of weights"):
        metrics.vgg_features(tmp_path / "broken.pt")


# --- sets

def test_moments_add_up_whatever_the_batches(rng: torch.Generator):
    vectors = torch.randn(50, 5, generator=rng) * 0.1 + 1000
    whole = Moments.of(vectors)
    for size in (1, 3, 49):
        pieces = [Moments.of(piece) for piece in vectors.split(size)]
        joined = sum(pieces[1:], pieces[0])
        assert joined.count == 50
        assert torch.allclose(joined.covariance, whole.covariance, rtol=1e-6)
    assert torch.allclose(whole.covariance, vectors.double().T.cov(), rtol=1e-6)


def test_frechet_distance_of_gaussians_in_closed_form(rng: torch.Generator):
    z = torch.randn(500, 4, generator=rng).double()
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov()).T)  # exactly white
    stretch, shift = torch.tensor([1.0, 2.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, -2.0, 0.0])
    expected = shift.square().sum() + (stretch - 1).square().sum()
    assert frechet_distance(Moments.of(z), Moments.of(z * stretch + shift)) == pytest.approx(
        expected.item(), rel=1e-9
    )
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng).double()).Q
    turned = Moments.of(z @ turn), Moments.of((z * stretch + shift) @ turn)
    assert frechet_distance(*turned) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(turned[0], turned[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [15, 300])  # fewer than dimensions: singular covariances
def test_frechet_distance_equals_torchmetrics(count: int, rng: torch.Generator):
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = torch.rand(count, 3, 8, 8, generator=rng), torch.rand(count, 3, 8, 8, generator=rng) ** 2
    library = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 8, 8))
    library.update(a, real=True)
    library.update(b, real=False)
    ours = frechet_distance(Moments.of(Flat()(a)), Moments.of(Flat()(b)))
    assert ours == pytest.approx(library.compute().item(), rel=1e-5)


def test_kernel_distance_equals_torchmetrics_and_is_unbiased(rng: torch.Generator):
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = torch.rand(80, 3, 8, 8, generator=rng), torch.rand(80, 3, 8, 8, generator=rng) ** 2
    library = KernelInceptionDistance(feature=Flat(), subset_size=80, subsets=1)
    library.update(a, real=True)
    library.update(b, real=False)
    ours = kernel_distance(Flat()(a), Flat()(b), subset_size=80, num_subsets=1)
    assert ours.mean == pytest.approx(library.compute()[0].item(), rel=1e-5)

    same = torch.randn(200, 4, generator=rng)
    many = [kernel_distance(*torch.randn(2, 20, 4, generator=rng), seed=i).mean for i in range(30)]
    assert abs(np.mean(many)) < 3 * np.std(many) / 30**0.5 and min(many) < 0 < max(many)
    assert kernel_distance(same, same + 1).mean > 1
    with pytest.raises(InputError, match="a subset of 30 images cannot be drawn from 20 real"):
        kernel_distance(same[:20], same, subset_size=30)


def test_precision_and_recall_tell_two_failures_apart(rng: torch.Generator):
    two = torch.cat([torch.randn(60, 3, generator=rng), torch.randn(60, 3, generator=rng) + 9])
    assert precision_recall(two, two) == (1.0, 1.0)
    precision, recall = precision_recall(two, torch.randn(60, 3, generator=rng))
    assert precision > 0.8 and recall < 0.55
    assert precision_recall(two, torch.randn(60, 3, generator=rng) + 100) == (0.0, 0.0)


def test_few_images_are_warned_about():
    vectors = torch.eye(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frechet_distance(Moments.of(vectors), Moments.of(vectors))
        assert "from 5 images is biased upward" in str(caught[0].message)
        caught.clear()
        many = torch.arange(2048.0)[:, None]
        frechet_distance(Moments.of(many), Moments.of(many))
        assert not caught


def test_statistics_do_not_depend_on_batches_order_or_processes(images, features):
    def gathered(*batches: torch.Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(features, capacity=7)
        for indices in batches:
            statistics.update(images[indices], indices)
        return statistics

    everything = torch.arange(12)
    whole = gathered(everything)
    first, second = gathered(*everything[::2].split(1)), gathered(everything[1::2])
    first.merge(second)
    for other in (first, gathered(*everything.flip(0).split(5))):
        assert other.count == 12 and len(other.sample.vectors) == 7
        assert np.array_equal(other.sample.keys, whole.sample.keys)
        assert torch.allclose(other.sample.vectors, whole.sample.vectors, atol=1e-6)
        scores, expected = compare_features(other, whole), compare_features(whole, whole)
        for name, value in scores.items():
            assert value == pytest.approx(expected[name], abs=1e-6), name


def test_names_follow_the_features(images, features):
    statistics = FeatureStatistics(features)
    statistics.update(images)
    names = set(compare_features(statistics, statistics))
    assert {"FD-small", "KD-small", "precision-small"} <= names
    assert not any("FID" in name or "KID" in name for name in names)

    other = FeatureStatistics(Features("small", features.network, Preprocessing(20, HALF, HALF)))
    with pytest.raises(InputError, match="cannot be compared"):
        compare_features(statistics, other)
    assert features.hash in str(features) and "bilinear with antialias to 24" in str(features)


def test_inception_is_checked_before_it_may_be_called_fid(images, tmp_path: Path, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    copy = tmp_path / "inception.pth"
    torch.save({}, copy)
    with pytest.raises(InputError, match="is not the published weights-inception"):
        metrics.inception_features(copy)

    monkeypatch.setattr(metrics, "fetch_weights", lambda url, weights: weights)
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state, *a, **k: None)
    assert issubclass(fidelity.FeatureExtractorInceptionV3, nn.Module)
    features = metrics.inception_features(copy)
    assert features.distance_names == ("FID", "KID")
    assert features(images[:1]).shape == (1, 2048)


# --- layouts

def test_confusion_by_hand_and_by_torchmetrics(rng: torch.Generator):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    label_map = torch.randint(4, (3, 16, 16), generator=rng)
    label_map[:, :2] = IGNORE_INDEX
    found = torch.where(torch.rand(3, 16, 16, generator=rng) < 0.4, 1, label_map % 4)
    counts = confusion(found, label_map, 4).sum(0)
    assert counts.sum() == 3 * 16 * 16 and counts[4].sum() == 3 * 2 * 16

    options = {"num_classes": 4, "ignore_index": IGNORE_INDEX}
    library = MulticlassJaccardIndex(average="none", **options)(found, label_map)
    assert torch.allclose(class_iou(counts).float(), library, atol=1e-5)
    accuracy = MulticlassAccuracy(average="micro", **options)(found, label_map)
    assert pixel_accuracy(counts).item() == pytest.approx(accuracy.item(), abs=1e-5)
    assert pixel_accuracy(counts, "counted") < pixel_accuracy(counts)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean():
    label_map = torch.tensor([[[0, 0, 2, 2]]])
    assert mean_iou(confusion(label_map, label_map, 5)).item() == 1
    found = torch.tensor([[[0, 0, 2, 1]]])
    assert mean_iou(confusion(found, label_map, 5)).item() == pytest.approx((1 + 0.5 + 0) / 3)
    with pytest.raises(InputError, match="num_classes is 2"):
        confusion(found, label_map, 2)


class Brightness(nn.Module):
    "Three classes by brightness: a segmenter that is never wrong on images made of three greys."

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        centres = torch.tensor([-0.8, 0.0, 0.8])[:, None, None]
        return -(image.mean(1, keepdim=True) - centres).square()


def test_layout_agreement_has_the_real_images_beside(rng: torch.Generator):
    coarse = torch.randint(3, (20, 1, 4, 4), generator=rng).float()
    label_map = nn.functional.interpolate(coarse, (16, 16))[:, 0].long()
    real = torch.tensor([-0.8, 0.0, 0.8])[label_map][:, None].expand(-1, 3, -1, -1)
    segmenter = Segmenter("brightness", Brightness(), AsGiven("as given"))

    def agreement(fake: torch.Tensor, *batches: torch.Tensor) -> LayoutAgreement:
        layout = LayoutAgreement(segmenter, 3)
        for indices in batches:
            layout.update(fake[indices], real[indices], label_map[indices], indices)
        return layout

    everything, shuffled = torch.arange(20), real.roll(1, 0)
    scores = agreement(shuffled, everything).scores()
    assert scores["mIoU of the real images"].value == 1
    assert scores["mIoU"].high < 0.35  # chance: one third right, one fifth of each union
    assert scores["mIoU"].low < scores["mIoU"].value < scores["mIoU"].high

    halves = agreement(shuffled, *everything[::2].split(3)), agreement(shuffled, everything[1::2])
    halves[0].merge(halves[1])
    for name, score in halves[0].scores().items():
        assert score == pytest.approx(scores[name], abs=1e-9)


def test_a_segformer_is_read_from_a_folder(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=4, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], decoder_hidden_size=8,
        num_attention_heads=[1, 1, 1, 1],
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "tiny")
    segmenter = metrics.segformer(tmp_path / "tiny", size=(64, 64))
    assert segmenter(torch.zeros(2, 3, 32, 48)).shape == (2, 32, 48)
    assert segmenter.hash == metrics.segformer(tmp_path / "tiny").hash
    with pytest.raises(InputError, match="neither a folder here nor within reach"):
        metrics.segformer(tmp_path / "nowhere")


def test_diversity_is_the_mean_over_pairs(images: torch.Tensor):
    samples = torch.stack([images, images + 0.1, images + 0.4])
    assert torch.allclose(diversity(samples, l1), torch.full((12,), (0.1 + 0.4 + 0.3) / 3))


def test_bootstrap_covers_the_mean_as_often_as_it_says(rng: torch.Generator):
    hits = 0
    for _ in range(60):
        score = bootstrap(torch.randn(40, generator=rng), num_resamples=200)
        hits += score.low <= 0 <= score.high
    assert 50 <= hits <= 60


# --- protocol

def test_a_report_comes_back_as_it_went(tmp_path: Path):
    protocol = Protocol("facades", "test of pix2pix 400/100/106", 106, (128, 128),
                        sampler=(("guidance_scale", 1.5), ("num_steps", 20)), seeds=(0, 1))
    report = Report("pix2pix", protocol, {"L1": Score(0.18, 0.17, 0.19), "SSIM": Score(0.3)})
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["protocol"]["num_images"] == 106
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="other.json is not a report"):
        Report.read(tmp_path / "other.json")


def test_different_protocols_refuse_one_table():
    first = Report("cgan", Protocol("facades", "test", 106, (128, 128)), {"L1": Score(0.2)})
    other = Protocol("facades", "val", 106, (128, 128), dropout="on")
    second = Report("spade", other, first.scores)
    with pytest.raises(InputError, match="split is 'test' and 'val'; dropout is 'off' and 'on'"):
        comparison([first, second])
    table = comparison([first, second], varying=("split", "dropout"))
    assert table.splitlines()[0].split() == "| model | split | dropout | L1 |".split()
    assert len({len(line) for line in table.splitlines()}) == 1


# --- real photographs

def photographs(folder: Path, number: int) -> torch.Tensor:
    images = [np.array(PIL.Image.open(path).convert("RGB"))[:, :256]
              for path in sorted(folder.glob("*.jpg"))[:number]]
    return torch.from_numpy(np.stack(images)).movedim(-1, 1) / 127.5 - 1


def saved_as_jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    copies = []
    for image in ((images + 1) * 127.5).round().byte().movedim(1, -1).numpy():
        content = io.BytesIO()
        PIL.Image.fromarray(image).save(content, "JPEG", quality=quality)
        copies.append(np.array(PIL.Image.open(content)))
    return torch.from_numpy(np.stack(copies)).movedim(-1, 1) / 127.5 - 1


@pytest.fixture(scope="module")
def squeezenet() -> Features:
    path = WEIGHTS / "squeezenet1_1_imagenet_bgr.pt"
    if not path.exists():
        pytest.skip("SqueezeNet's weights are not here: set SEMSYNTH_TEST_WEIGHTS to their folder")
    return metrics.squeezenet_features(path)


def test_damage_raises_both_distances_on_real_facades(facades_folder: Path, squeezenet: Features):
    def vectors(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([squeezenet(batch) for batch in images.split(8)])

    reference = vectors(photographs(facades_folder / "val", 48))
    real = photographs(facades_folder / "test", 32)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    damages = {
        "blur": [gaussian_blur(real, 25, sigma) for sigma in (1.0, 4.0)],
        "noise": [(real + sigma * noise).clamp(-1, 1) for sigma in (0.15, 0.4)],
        "jpeg": [saved_as_jpeg(real, quality) for quality in (25, 4)],
    }
    undamaged = vectors(real)
    for name, images in damages.items():
        steps = [undamaged, *map(vectors, images)]
        frechet = [frechet_distance(Moments.of(reference), Moments.of(step)) for step in steps]
        kernel = [kernel_distance(reference, step).mean for step in steps]
        assert frechet == sorted(frechet), (name, frechet)
        assert kernel == sorted(kernel), (name, kernel)


def test_vgg_reads_weights_in_half_precision():
    path = WEIGHTS / "vgg16_conv_bgr_fp16.pt"
    if not path.exists():
        pytest.skip("VGG16's weights are not here: set SEMSYNTH_TEST_WEIGHTS to their folder")
    features = metrics.vgg_features(path, CAFFE)
    assert features.name == "VGG16" and "BGR in [0, 255]" in str(features)
    assert next(features.parameters()).dtype == torch.float32


# --- a published segmenter on a published data set: is mIoU what it should be?

class Norm(nn.Sequential):
    "Batch normalisation and PReLU, under the published names."

    def __init__(self, channels: int):
        super().__init__()
        self.add_module("bn", nn.BatchNorm2d(channels, eps=1e-3))
        self.add_module("act", nn.PReLU(channels))


class Conv(nn.Sequential):
    "A convolution that keeps the size, or halves it."

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        padding = (kernel - 1) // 2 * dilation
        self.add_module("conv", nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, bias=False
        ))


class Pyramid(nn.Module):
    "ESP: reduce, dilate five times, add up hierarchically (Mehta et al. 2018, § 3)."

    def __init__(self, inputs: int, outputs: int, *, down: bool = False, residual: bool = True):
        super().__init__()
        narrow = outputs // 5
        self.residual = residual and not down
        self.c1 = Conv(inputs, narrow, 3, 2) if down else Conv(inputs, narrow, 1)
        self.d1 = Conv(narrow, outputs - 4 * narrow, 3)
        for dilation in (2, 4, 8, 16):
            self.add_module(f"d{dilation}", Conv(narrow, narrow, 3, dilation=dilation))
        self.bn, self.act = Norm(outputs) if down else (Norm(outputs), nn.Identity())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.c1(x)
        parts = [self.d1(reduced), self.d2(reduced)]
        for branch in (self.d4, self.d8, self.d16):
            parts.append(parts[-1] + branch(reduced))
        joined = torch.cat(parts, 1)
        return self.act(self.bn(x + joined if self.residual else joined))


class Encoder(nn.Module):
    def __init__(self, num_classes: int, second: int, third: int):
        super().__init__()
        self.level1 = Conv(3, 16, 3, 2)
        self.level1.add_module("bn", nn.BatchNorm2d(16, eps=1e-3))
        self.level1.add_module("act", nn.PReLU(16))
        self.b1, self.level2_0 = Norm(19), Pyramid(19, 64, down=True)
        self.level2 = nn.ModuleList(Pyramid(64, 64) for _ in range(second))
        self.b2, self.level3_0 = Norm(131), Pyramid(131, 128, down=True)
        self.level3 = nn.ModuleList(Pyramid(128, 128) for _ in range(third))
        self.b3, self.classifier = Norm(256), Conv(256, num_classes, 1)


class ESPNet(nn.Module):
    "ESPNet with its light decoder."

    def __init__(self, num_classes: int = 12, second: int = 2, third: int = 8):
        super().__init__()
        c = num_classes
        self.encoder = Encoder(c, second, third)
        self.level3_C, self.br = Conv(131, c, 1), nn.BatchNorm2d(c, eps=1e-3)
        self.conv = Conv(19 + c, c, 3)
        self.conv.add_module("bn", nn.BatchNorm2d(c, eps=1e-3))
        self.conv.add_module("act", nn.PReLU(c))
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2, bias=False))
        self.combine_l2_l3 = nn.Sequential(Norm(2 * c), Pyramid(2 * c, c, residual=False))
        self.up_l2 = nn.Sequential(nn.ConvTranspose2d(c, c, 2, 2, bias=False), Norm(c))
        self.classifier = nn.ConvTranspose2d(c, c, 2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e, half = self.encoder, nn.functional.avg_pool2d
        small = half(x, 3, 2, 1)
        first = e.b1(torch.cat([e.level1(x), small], 1))
        second = start = e.level2_0(first)
        for layer in e.level2:
            second = layer(second)
        second = e.b2(torch.cat([second, start, half(small, 3, 2, 1)], 1))

        third = start = e.level3_0(second)
        for layer in e.level3:
            third = layer(third)
        third = self.up_l3(self.br(e.classifier(e.b3(torch.cat([start, third], 1)))))
        both = self.up_l2(self.combine_l2_l3(torch.cat([self.level3_C(second), third], 1)))
        return self.classifier(self.conv(torch.cat([both, first], 1)))[:, :11]  # 11 is void


def camvid(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    paths = sorted((folder / split).glob("*.jpg"))
    maps = [folder / f"{split}annot" / f"{path.stem}.png" for path in paths]
    images = [np.array(PIL.Image.open(path).convert("RGB")) for path in paths]
    labels = [np.array(PIL.Image.open(path)) for path in maps]
    label_map = torch.from_numpy(np.stack(labels)).long()
    image = torch.from_numpy(np.stack(images)).movedim(-1, 1) / 127.5 - 1
    return image, label_map.where(label_map < 11, IGNORE_INDEX)


def test_espnet_reaches_its_published_miou_on_camvid(camvid_folder: Path):
    path = WEIGHTS / "espnet_camvid_p2q8.pth"
    if not path.exists():
        pytest.skip("ESPNet's weights are not here: set SEMSYNTH_TEST_WEIGHTS to their folder")
    network = ESPNet()
    network.load_state_dict(torch.load(path, weights_only=True))

    train = ((camvid(camvid_folder, "train")[0] + 1) * 127.5).flip(1)
    mean, std = train.mean((0, 2, 3)), train.std((2, 3)).mean(0) * 255
    read = Preprocessing(None, tuple(mean.tolist()), tuple(std.tolist()), "BGR", 255.0)
    segmenter = Segmenter("ESPNet", network, read)

    image, label_map = camvid(camvid_folder, "test")
    found = torch.cat([segmenter(batch) for batch in image.split(8)])
    real = confusion(found, label_map, 11).sum(0)
    assert mean_iou(real).item() == pytest.approx(0.57, abs=0.01)

    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    assert mean_iou(confusion(found[order], label_map, 11).sum(0)) < 0.25
