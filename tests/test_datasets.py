"Data sets, transforms and the order of batches; every bad folder is one sentence."
import gzip
import hashlib
import io
import multiprocessing
import shutil
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from semsynth import datasets, downloads
from semsynth.datasets import (
    Augment,
    CamVid,
    Cityscapes,
    Facades,
    Folder,
    InMemory,
    Resize,
    SemanticDataset,
    Steps,
    SyntheticFacades,
    balancing_weights,
    classes_of,
    evaluation_batches,
    instance_components,
    training_batches,
)
from semsynth.downloads import Download, fetch, unpack
from semsynth.labels import (
    CAMVID,
    CITYSCAPES_35,
    FACADES,
    IGNORE_INDEX,
    Batch,
    InputError,
    LabelSpace,
    write_label_map,
)
from semsynth.synthetic import LAYERS, Look, draw_layout, draw_maps, paint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    "No test sees the cache of the person who runs it, or another test's."
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SEMSYNTH_CACHE", str(folder))
    return folder


def equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def sentence(error: pytest.ExceptionInfo) -> str:
    "The message of an error, which has to be one line."
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# --- synthetic façades

def rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


@pytest.mark.parametrize("resolution", [32, 64, 100, 128, 256, 400])
def test_synthetic_samples_are_sound(resolution):
    dataset = SyntheticFacades("val", num_images=6, resolution=resolution)
    for index in range(len(dataset)):
        image, label_map, instance_map = dataset[index]
        assert image.shape == (3, resolution, resolution) and image.dtype == torch.float32
        assert image.abs().max() <= 1 and image.std() > 0.1
        assert label_map.dtype == instance_map.dtype == torch.int64
        assert 0 <= label_map.min() and label_map.max() < 12
        assert torch.equal(classes_of(instance_map), label_map)
        assert torch.equal(dataset.label_map(index), label_map)


MAPS_OF_8, PIXELS_OF_8 = "dc6a9dc6159c93a1", "7dbb474b6cb153ad"


def test_synthetic_images_are_the_same_everywhere():
    "If this fails on another platform or numpy, the data set of the whole course has changed."
    dataset = SyntheticFacades("train", resolution=64)
    maps, pixels = hashlib.sha256(), hashlib.sha256()
    for index in range(8):
        image, label_map, instance_map = dataset[index]
        maps.update(label_map.numpy().tobytes() + instance_map.numpy().tobytes())
        pixels.update((127.5 * (image + 1)).round().byte().numpy().tobytes())
    assert (maps.hexdigest()[:16], pixels.hexdigest()[:16]) == (MAPS_OF_8, PIXELS_OF_8)


def test_synthetic_does_not_depend_on_order_or_number():
    few, many = SyntheticFacades(num_images=5, resolution=64), SyntheticFacades(resolution=64)
    last = few[4]
    assert equal(last, many[4]) and equal(last, few[4])


def test_synthetic_splits_share_no_house():
    seen = {}
    for split in ("train", "val", "test"):
        dataset = SyntheticFacades(split, num_images=40, resolution=64)
        for index in range(40):
            key = dataset.label_map(index).numpy().tobytes()
            assert key not in seen, f"{split} {index} is {seen[key]}"
            seen[key] = f"{split} {index}"


def test_one_label_map_has_many_looks():
    dataset = SyntheticFacades(resolution=64)
    looks = [dataset.with_look(3, look) for look in range(6)]
    assert all(torch.equal(look.label_map, looks[0].label_map) for look in looks)
    assert all(torch.equal(look.instance_map, looks[0].instance_map) for look in looks)
    assert len({look.image.numpy().tobytes() for look in looks}) == 6
    apart = [(looks[0].image - look.image).abs().mean() for look in looks[1:]]
    assert min(apart) > 0.05


def test_every_class_is_common_enough_to_learn():
    dataset = SyntheticFacades(num_images=150, resolution=64)
    holds = torch.zeros(12)
    for index in range(len(dataset)):
        holds[dataset.label_map(index).unique()] += 1
    assert holds.min() >= 0.15 * len(dataset), dict(zip(FACADES.names, holds.tolist(), strict=True))


@pytest.mark.parametrize("name", ["window", "door", "cornice", "shop", "pillar", "deco"])
def test_image_and_label_map_agree_to_the_pixel(name):
    "An object that is left out changes pixels of its class, its shadow apart, and no others."
    class_id, checked = FACADES.names.index(name), 0
    for number in range(10):
        layout, look = draw_layout(rng(number), 128), Look.draw(rng(number, 1))
        look = replace(look, weather=look.weather._replace(sun=0.0))
        without = replace(layout, boxes=layout.boxes | {name: []})
        if not layout.boxes[name]:
            continue
        one, other = (paint(each, look, rng(number, 2)).astype(int) for each in (layout, without))
        changed = np.abs(one - other).max(axis=0)
        label_map = draw_maps(layout)[0]

        # A railing of iron lets the window behind it shine through.
        through = label_map == FACADES.names.index("balcony")
        outside = (label_map != class_id) & ~through
        shadow = {"cornice": 0.15, "deco": 0.15}.get(name, 0.0)
        assert (changed[outside] > 0).mean() <= shadow
        assert (changed[label_map == class_id] > 0).mean() > 0.9
        checked += 1
    assert checked >= 2


def test_instances_are_counted_apart():
    layout = draw_layout(rng(11), 128)
    label_map, instance_map = draw_maps(layout)
    windows = np.unique(instance_map[label_map == 2])
    assert len(windows) >= 6 and (windows // 1000 == 2).all()
    hidden_at_most = len(layout.boxes["window"]) - len(windows)
    assert 0 <= hidden_at_most <= len(layout.boxes["balcony"])
    assert set(layout.boxes) == set(LAYERS)


@pytest.mark.parametrize("arguments, words", [
    ({"split": "validation"}, "no split 'validation'"),
    ({"num_images": 0}, "num_images is 0"),
    ({"num_images": -5}, "num_images is -5"),
    ({"resolution": 16}, "resolution is 16"),
    ({"resolution": -128}, "resolution is -128"),
    ({"resolution": 4096}, "resolution is 4096"),
])
def test_synthetic_refuses(arguments, words):
    with pytest.raises(InputError) as error:
        SyntheticFacades(**arguments)
    assert words in sentence(error)


def test_synthetic_ends_like_a_sequence():
    with pytest.raises(IndexError):
        SyntheticFacades(num_images=3)[3]


# --- transforms

def sample_of(height: int, width: int) -> Batch:
    "The image holds the place of each pixel; the maps hold it too, beyond 8 bits."
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y / height, x / width, torch.zeros(height, width)])
    return Batch(image, (y // 4 + x // 4) % 12, 26_000 + y * width + x)


def test_augment_moves_all_three_together():
    sample, augment = sample_of(40, 40), Augment(24, load_resolution=40)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, label_map, instance_map = augment(sample)
        place = instance_map - 26_000
        y, x = place // 40, place % 40
        assert torch.equal(image[0], (y / 40)) and torch.equal(image[1], (x / 40))
        assert torch.equal(label_map, (y // 4 + x // 4) % 12)
        seen.add((int(y[0, 0]), bool(x[0, 1] > x[0, 0])))
    assert len(seen) > 6 and {turned for _, turned in seen} == {True, False}


def test_augment_keeps_types_and_contiguity():
    batch = Augment(24)(sample_of(40, 40))
    assert [type(tensor) for tensor in batch] == [torch.Tensor] * 3
    assert all(tensor.is_contiguous() for tensor in batch)
    assert [tensor.dtype for tensor in batch] == [torch.float32, torch.int64, torch.int64]
    assert batch.label_map.shape == (24, 24) and type(batch) is Batch


def test_no_flip_means_no_flip():
    for seed in range(8):
        torch.manual_seed(seed)
        x = (Augment(24, 40, flip=False)(sample_of(40, 40)).instance_map - 26_000) % 40
        assert x[0, 1] > x[0, 0]


@pytest.mark.parametrize("size", [(20, 20), (33, 70), (80, 160)])
def test_resizing_invents_no_id(size):
    sample = sample_of(40, 40)._replace(label_map=torch.randint(0, 2, (40, 40)) * 4 + 2)
    image, label_map, instance_map = Resize(size)(sample)
    assert image.shape[1:] == label_map.shape == instance_map.shape == size
    assert set(label_map.unique().tolist()) <= {2, 6}
    assert set(instance_map.unique().tolist()) <= set(sample.instance_map.unique().tolist())
    assert image.abs().max() <= 1


def test_resizing_shifts_neither_half():
    "The centre of mass of a square stays where it is, in the photo and in the label map alike."
    label_map = torch.zeros(64, 64, dtype=torch.int64)
    label_map[16:48, 16:48] = 1
    sample = Batch((label_map * 2.0 - 1).expand(3, 64, 64), label_map, label_map)
    small = Resize(21)(sample)
    places = torch.arange(21) + 0.5
    light = (small.image[0] + 1) / 2
    for plane in (light, small.label_map.float()):
        assert abs((plane.sum(0) * places).sum() / plane.sum() - 10.5) < 0.05


def test_ignored_pixels_stay_ignored():
    sample = sample_of(40, 40)
    sample.label_map[:20] = IGNORE_INDEX
    assert (Resize(20)(sample).label_map[:10] == IGNORE_INDEX).all()


@pytest.mark.parametrize("make, words", [
    (lambda: Resize(0), "resolution is 0"),
    (lambda: Resize(-64), "resolution is -64"),
    (lambda: Resize((64, 0)), "resolution is (64, 0)"),
    (lambda: Resize((1, 2, 3)), "resolution is (1, 2, 3)"),
    (lambda: Augment(-1), "resolution is -1"),
    (lambda: Augment(128, load_resolution=100), "smaller than the resolution"),
    (lambda: Augment(128, load_resolution=0), "resolution is 0"),
])
def test_transforms_refuse(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in sentence(error)


# --- the order of batches

def small() -> SyntheticFacades:
    return SyntheticFacades(num_images=10, resolution=32)


def batches(**options) -> list[Batch]:
    options = {"batch_size": 4, "num_steps": 6} | options
    return list(training_batches(small(), Augment(32), **options))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("start_step", [0, 1, 5])
def test_batches_depend_on_seed_and_step_alone(num_workers, start_step):
    torch.manual_seed(1234 + num_workers)  # Whatever went before
    expected = batches()
    found = batches(num_workers=num_workers, start_step=start_step)
    assert len(found) == 6 - start_step
    for first, second in zip(expected[start_step:], found, strict=True):
        assert equal(first, second)


def test_loading_leaves_the_global_source_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    batches(num_workers=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_seeds_differ():
    assert not equal(batches(num_steps=1)[0], batches(num_steps=1, seed=1)[0])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_every_epoch_shows_every_image_once(batch_size):
    steps = Steps(10, batch_size=batch_size, num_steps=20)
    order = [index for draws in steps for index, _ in draws]
    for first in range(0, len(order) - 10, 10):
        assert sorted(order[first : first + 10]) == list(range(10))


def test_every_draw_has_its_own_seed():
    numbers = [seed for draws in Steps(5, batch_size=4, num_steps=50) for _, seed in draws]
    assert len(set(numbers)) == 200
    assert len({datasets.mixed_seed(*seed) for seed in numbers}) == 200


def test_ranks_share_a_batch():
    whole = batches(num_steps=2)
    parts = [batches(num_steps=2, rank=rank, num_ranks=2) for rank in range(2)]
    for step in range(2):
        for rank in range(2):
            rows = Batch(*(tensor[rank::2] for tensor in whole[step]))
            assert equal(parts[rank][step], rows)


def test_evaluation_is_one_pass_in_order():
    found = list(evaluation_batches(small(), Resize(32), batch_size=4))
    assert [len(batch.image) for batch in found] == [4, 4, 2]
    labels = torch.cat([batch.label_map for batch in found])
    assert torch.equal(labels, torch.stack([small().label_map(n) for n in range(10)]))
    again = list(evaluation_batches(small(), Resize(32), batch_size=4, num_workers=2))
    assert all(equal(*pair) for pair in zip(found, again, strict=True))


class Shares(SemanticDataset):
    "Class 0 everywhere, class 1 in one image of ten, class 2 nowhere."

    name, split = "shares", "train"
    label_space = LabelSpace("shares", ("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)))

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Batch:
        ids = torch.tensor([[0, int(index == 7), IGNORE_INDEX]])
        return Batch(torch.zeros(3, 1, 3), ids, ids)


def test_rare_classes_come_more_often():
    weights = balancing_weights(Shares())
    assert np.allclose(weights, [0.05] * 7 + [0.55] + [0.05] * 2)
    loader = training_batches(
        Shares(), lambda batch: batch, batch_size=10, num_steps=40, class_balanced=True
    )
    rare = sum(int((batch.label_map == 1).any(dim=2).sum()) for batch in loader)
    assert 0.45 < rare / 400 < 0.65


def test_balanced_batches_are_reproducible():
    first = batches(class_balanced=True)
    again = batches(class_balanced=True, num_workers=2, start_step=2)
    assert all(equal(*pair) for pair in zip(first[2:], again, strict=True))


def test_loaders_can_be_sent_to_another_process():
    "macOS and Windows start workers by pickling; here that is asked for."
    loader = training_batches(small(), Augment(32), batch_size=2, num_steps=1, num_workers=1)
    loader.multiprocessing_context = multiprocessing.get_context("spawn")
    assert equal(next(iter(loader)), batches(batch_size=2, num_steps=1)[0])


@pytest.mark.parametrize("options, words", [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 1, "num_ranks": 2}, "batch_size is 1: expected at least 2"),
    ({"num_steps": -1}, "num_steps is -1"),
    ({"start_step": -1}, "start_step is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"num_workers": -1}, "num_workers is -1"),
])
def test_training_batches_refuse(options, words):
    with pytest.raises(InputError) as error:
        batches(**options)
    assert words in sentence(error)


def test_evaluation_batches_refuse_an_empty_batch():
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluation_batches(small(), Resize(32), batch_size=0)


# --- your own folder

def make_folder(root: Path, *parts: str, count: int = 3, classes: str | None = None) -> Path:
    "A folder of synthetic pairs, per split where splits are named."
    for part in parts or (".",):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for n in range(count):
            pixels = small()[n].image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
            PIL.Image.fromarray(pixels).save(root / part / "images" / f"h{n:02d}.png")
            label = root / part / "labels" / f"h{n:02d}.png"
            PIL.Image.fromarray(small()[n].label_map.numpy().astype(np.uint8)).save(label)
    (root / "classes.txt").write_text("\n".join(FACADES.names) if classes is None else classes)
    return root


def test_folder_with_splits(tmp_path):
    root = make_folder(tmp_path, "train", "test")
    dataset = Folder(root, "test")
    assert (dataset.name, dataset.split, len(dataset)) == ("folder", "test", 3)
    assert dataset.label_space.names == FACADES.names
    assert equal(dataset[1], small()[1]._replace(instance_map=small()[1].label_map))


def test_folder_without_splits_keeps_every_tenth_pair(tmp_path):
    root = make_folder(tmp_path, count=10)
    train, val = Folder(root), Folder(root, "val")
    assert (len(train), len(val)) == (9, 1)
    assert {pair.image for pair in train.pairs}.isdisjoint(pair.image for pair in val.pairs)


def test_folder_reads_palette_colours(tmp_path):
    classes = zip(FACADES.names, FACADES.palette, strict=True)
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in classes]
    root = make_folder(tmp_path, "train", classes="\n".join(lines))
    for n in range(3):
        path = root / "train" / "labels" / f"h{n:02d}.png"
        colours = np.array(FACADES.palette, np.uint8)[small()[n].label_map.numpy()]
        PIL.Image.fromarray(colours).save(path)
    dataset = Folder(root)
    assert dataset.label_space.palette == FACADES.palette
    assert torch.equal(dataset[2].label_map, small()[2].label_map)


def test_folder_reads_sixteen_bit_instances(tmp_path):
    root = make_folder(tmp_path, "train")
    (root / "train" / "instances").mkdir()
    for n in range(3):
        ids = small()[n].instance_map.numpy().astype(np.uint16) + 24_000
        PIL.Image.fromarray(ids).save(root / "train" / "instances" / f"h{n:02d}.png")
    assert torch.equal(Folder(root)[0].instance_map, small()[0].instance_map + 24_000)
    (root / "train" / "instances" / "h01.png").unlink()
    with pytest.raises(InputError, match="1 instance maps are missing: h01.png"):
        Folder(root)


def spoil(root: Path, what: str) -> None:
    "Makes one thing wrong with a folder that was right."
    image, label = root / "train/images/h01.png", root / "train/labels/h01.png"
    size = (32, 32)
    match what:
        case "no images": shutil.rmtree(root / "train"), (root / "train").mkdir()
        case "no label": label.unlink()
        case "no image": image.unlink()
        case "no split": shutil.rmtree(root / "train"), (root / "test").mkdir()
        case "no classes": (root / "classes.txt").unlink()
        case "text for an image": image.write_text("not an image")
        case "empty file": image.write_bytes(b"")
        case "truncated image": image.write_bytes(image.read_bytes()[:700])
        case "truncated label": label.write_bytes(label.read_bytes()[:80])
        case "size": PIL.Image.new("L", (32, 30)).save(label)
        case "16 bits": PIL.Image.fromarray(np.zeros(size, np.uint16)).save(image)
        case "CMYK": PIL.Image.new("CMYK", size).save(image, format="TIFF")
        case "float label": PIL.Image.new("F", size).save(label, format="TIFF")
        case "id out of range": PIL.Image.new("L", size, 77).save(label)
        case "foreign colour": PIL.Image.new("RGB", size, (1, 2, 3)).save(label)
        case "animation":
            frames = [PIL.Image.new("RGB", size, (n, 0, 0)) for n in (0, 200)]
            frames[0].save(image, format="PNG", save_all=True, append_images=frames[1:])
        case "huge": image.write_bytes(huge_png())


def huge_png() -> bytes:
    "A PNG whose header promises 100,000 x 100,000 pixels."
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        size, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
        return size + kind + content + check

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize("what, words", [
    ("no images", "holds no images: expected classes.txt"),
    ("no label", "1 samples have no label map: h01"),
    ("no image", "1 samples have no image: h01"),
    ("no split", "train holds no images"),
    ("no classes", "classes.txt cannot be read"),
    ("text for an image", "h01.png cannot be read as an image"),
    ("empty file", "h01.png cannot be read as an image"),
    ("truncated image", "h01.png cannot be read as an image"),
    ("truncated label", "h01.png cannot be read as an image"),
    ("size", "is 32 x 32 pixels, but its label map is 32 x 30"),
    ("16 bits", "is in mode I;16"),
    ("CMYK", "is in mode CMYK"),
    ("float label", "h01.png"),
    ("id out of range", "77"),
    ("foreign colour", "h01.png"),
    ("animation", "animated"),
    ("huge", "pixels"),
])
def test_folder_says_what_is_wrong(tmp_path, what, words):
    root = make_folder(tmp_path, "train")
    spoil(root, what)
    with pytest.raises(InputError) as error:
        dataset = Folder(root)
        for index in range(len(dataset)):
            dataset[index]
    message = sentence(error)
    assert words in message and str(tmp_path) in message


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_file_is_one_sentence_from_a_worker_too(tmp_path, num_workers):
    root = make_folder(tmp_path, "train")
    (root / "train/images/h01.png").write_text("not an image")
    with pytest.raises(InputError) as error:
        list(evaluation_batches(Folder(root), Resize(32), batch_size=3, num_workers=num_workers))
    assert "h01.png cannot be read as an image" in sentence(error)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("lines, words", [
    ("wall\n\ndoor", "line 2: '' is neither"),
    ("wall\ndoor 1 2", "line 2: 'door 1 2' is neither"),
    ("wall\n1 2 3", "line 2: '1 2 3' is neither"),
    ("wall\ndoor 1 2 256", "line 2: the colour (1, 2, 256)"),
    ("wall\ndoor -1 2 25", "line 2: the colour (-1, 2, 25)"),
    ("wall\ndoor\nwall", "line 3: 'wall' repeats"),
    ("wall 1 2 3\ndoor 1 2 3", "line 2: 'door 1 2 3' repeats"),
    ("wall 1 2 3\ndoor", "line 2: give every class a colour"),
    ("wall\ndoor 1 2 3", "line 2: give every class a colour"),
    ("", "has 0 classes"),
    ("\n".join(f"class {n}" for n in range(255)), "has 255 classes"),
])
def test_bad_lines_of_classes_are_numbered(tmp_path, lines, words):
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(InputError) as error:
        Folder(tmp_path)
    assert words in sentence(error)


def test_classes_may_have_spaces_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufefftraffic light 250 170 30\r\nphase 2 0 0 9\r\n".encode())
    space = datasets.read_classes(path)
    assert space.names == ("traffic light", "phase 2")
    assert space.palette == ((250, 170, 30), (0, 0, 9))


def test_classes_that_are_no_text(tmp_path):
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="cannot be read as text"):
        Folder(tmp_path)


def test_spread_palette_has_no_colour_twice():
    assert len(set(datasets.spread_palette(254))) == 254


@pytest.mark.parametrize("make", [Folder, Facades, Cityscapes, CamVid])
def test_missing_and_empty_folders(make, tmp_path):
    with pytest.raises(InputError) as error:
        make(tmp_path / "nowhere")
    assert "There is no folder" in sentence(error) and "nowhere" in str(error.value)
    with pytest.raises(InputError) as error:
        make(tmp_path)
    assert str(tmp_path) in sentence(error)
    with pytest.raises(InputError, match="no split 'training'"):
        make(tmp_path, "training")


# --- Cityscapes

def lay_out_cityscapes(root: Path, samples: Path, count: int = 2) -> Path:
    "The samples, under links, in the official layout."
    for image in sorted((samples / "train_img").glob("*.png"))[:count]:
        stem = image.name.removesuffix("_leftImg8bit.png")
        files = {
            root / "leftImg8bit/train/aachen" / image.name: image,
            **{root / "gtFine/train/aachen" / f"{stem}_gtFine_{kind}Ids.png":
               samples / f"train_{folder}" / f"{stem}_gtFine_{kind}Ids.png"
               for kind, folder in (("label", "label"), ("instance", "inst"))},
        }
        for link, target in files.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target.resolve())
    return root


def test_cityscapes(cityscapes_folder, tmp_path):
    dataset = Cityscapes(lay_out_cityscapes(tmp_path, cityscapes_folder))
    assert len(dataset) == 2
    image, label_map, instance_map = dataset[0]
    assert image.shape == (3, 1024, 2048) and label_map.shape == (1024, 2048)
    assert set(label_map.unique().tolist()) <= {*range(19), IGNORE_INDEX}
    cars = instance_map[instance_map >= 26_000]
    assert len(cars.unique()) >= 2 and (label_map[instance_map >= 26_000] >= 11).all()

    small_batch = Resize((128, 256))(dataset[0])
    assert set(small_batch.instance_map.unique().tolist()) <= set(instance_map.unique().tolist())


def test_cityscapes_with_all_classes(cityscapes_folder, tmp_path):
    root = lay_out_cityscapes(tmp_path, cityscapes_folder)
    dataset = Cityscapes(root, label_space=CITYSCAPES_35)
    assert dataset.label_space.num_classes in (34, 35)
    assert dataset[1].label_map.unique().numel() > Cityscapes(root)[1].label_map.unique().numel()


def make_cityscapes(root: Path) -> Path:
    "One small pair in the official layout."
    for folder in ("leftImg8bit/train/ulm", "gtFine/train/ulm"):
        (root / folder).mkdir(parents=True)
    PIL.Image.new("RGB", (8, 4)).save(root / "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    ids = PIL.Image.fromarray(np.full((4, 8), 26, np.uint8))
    ids.save(root / "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png")
    instances = PIL.Image.fromarray(np.full((4, 8), 26_001, np.uint16))
    instances.save(root / "gtFine/train/ulm/ulm_0_1_gtFine_instanceIds.png")
    return root


def test_cityscapes_instances_have_sixteen_bits(tmp_path):
    sample = Cityscapes(make_cityscapes(tmp_path))[0]
    assert (sample.instance_map == 26_001).all() and (sample.label_map == 13).all()


@pytest.mark.parametrize("file, words", [
    ("gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png", "1 samples have no label map: ulm_0_1"),
    ("leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png", "1 samples have no image: ulm_0_1"),
    ("gtFine/train/ulm/ulm_0_1_gtFine_instanceIds.png", "1 instance maps are missing: ulm_0_1"),
])
def test_cityscapes_names_what_is_missing(tmp_path, file, words):
    (make_cityscapes(tmp_path) / file).unlink()
    with pytest.raises(InputError) as error:
        Cityscapes(tmp_path)
    assert words in sentence(error)


def test_cityscapes_tells_how_to_register():
    with pytest.raises(InputError) as error:
        Cityscapes()
    for word in ["cityscapes-dataset.com", "leftImg8bit_trainvaltest.zip", "--data-root"]:
        assert word in sentence(error)


# --- CamVid

def test_camvid(camvid_folder):
    dataset = CamVid(camvid_folder, "val")
    image, label_map, instance_map = dataset[0]
    assert dataset.label_space is CAMVID and image.shape == (3, 360, 480)
    assert set(label_map.unique().tolist()) <= {*range(11), IGNORE_INDEX}
    assert torch.equal(instance_map, label_map)


def make_camvid(root: Path) -> Path:
    "Two pairs without a class, one photo in each format."
    for folder in ("train", "trainannot"):
        (root / folder).mkdir(parents=True)
    PIL.Image.new("RGB", (8, 4)).save(root / "train/a.jpg")
    PIL.Image.new("RGB", (8, 4)).save(root / "train/b.png")
    for name in "ab":
        PIL.Image.new("L", (8, 4), 11).save(root / f"trainannot/{name}.png")
    return root


def test_camvid_reads_either_format(tmp_path):
    dataset = CamVid(make_camvid(tmp_path))
    assert len(dataset) == 2 and (dataset[0].label_map == IGNORE_INDEX).all()


# --- façades

def save_abreast(path: Path, sample: Batch, **options) -> None:
    "A pair as the pix2pix version stores it."
    photo = sample.image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    colours = np.array(FACADES.palette, np.uint8)[sample.label_map.numpy()]
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.concatenate([photo, colours], axis=1)).save(path, **options)


def test_facades_recover_blurred_labels(tmp_path, capsys):
    houses = SyntheticFacades("test", resolution=256)
    for n in (1, 2, 10):
        save_abreast(tmp_path / f"train/{n}.jpg", houses[n], quality=75)
    dataset = Facades(tmp_path)
    assert dataset.split_name == "pix2pix_400_100_106"
    assert [pair.image.name for pair in dataset.pairs] == ["1.jpg", "2.jpg", "10.jpg"]
    for index, n in enumerate((1, 2, 10)):
        image, label_map, instance_map = dataset[index]
        assert image.shape == (3, 256, 256)
        assert (label_map != houses[n].label_map).float().mean() < 0.03
        assert torch.equal(classes_of(instance_map), label_map)
    assert capsys.readouterr().err.count("Reading facades/train, once") >= 1


def test_recovered_maps_are_kept_and_follow_the_content(tmp_path, cache, monkeypatch):
    houses = SyntheticFacades("test", resolution=64)
    save_abreast(tmp_path / "train/1.jpg", houses[1], quality=95)
    first = Facades(tmp_path)[0].label_map
    kept = list(cache.glob("maps/*.png"))
    assert len(kept) == 1

    recovered = []
    monkeypatch.setattr(datasets, "make_map", recovered.append)
    assert torch.equal(Facades(tmp_path)[0].label_map, first) and not recovered
    monkeypatch.undo()

    monkeypatch.setenv("SEMSYNTH_CACHE", str(cache))
    save_abreast(tmp_path / "train/1.jpg", houses[2], quality=95)
    assert not torch.equal(Facades(tmp_path)[0].label_map, first)
    assert not list(cache.glob("maps/*.part"))


def test_workers_share_the_recovery(tmp_path, cache):
    houses = SyntheticFacades("test", resolution=64)
    for n in range(4):
        save_abreast(tmp_path / f"train/{n}.jpg", houses[n], quality=95)
    loader = evaluation_batches(Facades(tmp_path), Resize(64), batch_size=1, num_workers=2)
    assert len(list(loader)) == 4 and len(list(cache.glob("maps/*.png"))) == 4


def make_original(root: Path, numbers: tuple[int, ...], folder: str = "base") -> Path:
    (root / folder).mkdir(parents=True)
    for number in numbers:
        stem = root / folder / f"cmp_b{number:04d}"
        house = SyntheticFacades("val", resolution=64)[number]
        photo = house.image.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        PIL.Image.fromarray(photo).save(f"{stem}.jpg")
        PIL.Image.fromarray((house.label_map + 1).numpy().astype(np.uint8)).save(f"{stem}.png")
        Path(f"{stem}.xml").write_text("<object></object>")
    return root


@pytest.mark.parametrize("folder", ["base", "."])
def test_facades_in_the_original_layout(tmp_path, folder):
    root = make_original(tmp_path / "cmp", (1, 60, 61, 378), folder)
    train, test = Facades(root), Facades(root, "test")
    assert train.split_name == test.split_name == "base_318_60"
    assert [pair.image.stem for pair in test.pairs] == ["cmp_b0001", "cmp_b0060"]
    assert [pair.image.stem for pair in train.pairs] == ["cmp_b0061", "cmp_b0378"]
    house = SyntheticFacades("val", resolution=64)[61]
    assert torch.equal(train[0].label_map, house.label_map)
    with pytest.raises(InputError, match="split into train and test, not val"):
        Facades(root, "val")
    (root / folder / "cmp_b0061.png").unlink()
    with pytest.raises(InputError, match="1 photos have no .png beside them: cmp_b0061.jpg"):
        Facades(root)


def test_facades_refuse_a_picture_that_is_no_pair(tmp_path):
    (tmp_path / "train").mkdir()
    PIL.Image.new("RGB", (256, 256)).save(tmp_path / "train/1.jpg")
    with pytest.raises(InputError) as error:
        Facades(tmp_path)[0]
    assert "256 x 256 pixels: expected photo and labels abreast" in sentence(error)


def test_facades_refuse_other_ids(tmp_path):
    root = make_original(tmp_path, (61,))
    PIL.Image.new("L", (64, 64), 13).save(root / "base/cmp_b0061.png")
    with pytest.raises(InputError) as error:
        Facades(root)[0]
    assert "cmp_b0061.png" in sentence(error) and "13" in str(error.value)


def test_facades_with_sizes_that_differ(tmp_path):
    root = make_original(tmp_path, (61,))
    PIL.Image.new("L", (64, 60), 2).save(root / "base/cmp_b0061.png")
    with pytest.raises(InputError, match="is 64 x 64 pixels, but its label map is 64 x 60"):
        Facades(root)[0]


def test_real_facades(facades_folder, tmp_path):
    (tmp_path / "test").mkdir()
    for n in (1, 2):
        (tmp_path / f"test/{n}.jpg").symlink_to((facades_folder / f"test/{n}.jpg").resolve())
    sizes = [len(Facades(facades_folder, split)) for split in ("train", "val", "test")]
    assert sizes == [400, 100, 106]
    image, label_map, instance_map = Facades(tmp_path, "test")[0]
    assert image.shape == (3, 256, 256) and label_map.max() < 12
    assert (label_map == FACADES.names.index("window")).float().mean() > 0.02
    assert instance_map.unique().numel() > 10


def test_components_are_numbered_apart():
    label_map = torch.tensor([[2, 1, 2], [2, 1, 1], [1, 1, 2], [255, 0, 2]])
    found = instance_components(label_map, FACADES)
    expected = torch.tensor([[2001, 1, 2002], [2001, 1, 1], [1, 1, 2003], [255, 0, 2003]])
    assert torch.equal(found, expected) and torch.equal(classes_of(found), label_map)


def test_in_memory_is_the_same_and_reads_once(tmp_path):
    dataset = Folder(make_folder(tmp_path, "train"))
    kept = InMemory(dataset)
    assert (kept.name, kept.split, len(kept)) == ("folder", "train", 3)
    first = kept[0]
    shutil.rmtree(tmp_path / "train")
    assert equal(kept[0], first)
    assert equal(InMemory(small())[4], small()[4])


def test_samples_are_named_by_their_photos(tmp_path):
    folder = Folder(make_folder(tmp_path / "folder", "train"))
    assert [folder.name_of(index) for index in range(3)] == ["h00", "h01", "h02"]
    assert InMemory(folder).name_of(1) == "h01"
    facades = Facades(make_original(tmp_path / "cmp", (61, 378)))
    assert facades.name_of(1) == "cmp_b0378"
    assert Cityscapes(make_cityscapes(tmp_path / "streets")).name_of(0) == "ulm_0_1_leftImg8bit"
    assert CamVid(make_camvid(tmp_path / "camvid")).name_of(1) == "b"
    assert small().name_of(7) == "00007"


def test_written_maps_are_read_back(tmp_path):
    path = tmp_path / "map.png"
    write_label_map(path, small()[0].label_map, FACADES)
    root = make_folder(tmp_path / "own", "train", count=1)
    shutil.copy(path, root / "train/labels/h00.png")
    assert torch.equal(Folder(root)[0].label_map, small()[0].label_map)


# --- downloads

class Serving:
    "A server on this machine that can break off, refuse ranges, or send something else."

    def __init__(self, content: bytes, *, break_after: int = 0, ranges: bool = True):
        outer = self
        self.content, self.break_after, self.ranges = content, break_after, ranges
        self.asked: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *words):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/facades.tar.gz"
        self.pool = ThreadPoolExecutor(1)

    def answer(self, request) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        rest = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        request.wfile.write(rest[: self.break_after] if self.break_after else rest)

    def __enter__(self):
        self.pool.submit(self.server.serve_forever)
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
        self.pool.shutdown()


CONTENT = bytes(range(256)) * 40


def test_a_cut_connection_is_taken_up_again(tmp_path):
    with Serving(CONTENT, break_after=4000) as server:
        path = fetch(server.url, tmp_path / "a.bin")
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=4000-", "bytes=8000-"]
    assert not list(tmp_path.glob("*.part"))


def test_another_day_goes_on_with_the_part(tmp_path):
    with Serving(CONTENT, break_after=6000) as server:
        with pytest.raises(InputError) as error:
            fetch(server.url, tmp_path / "a.bin", attempts=1)
        assert "broke off after 6,000 of 10,240 bytes" in sentence(error)
        assert not (tmp_path / "a.bin").exists()
        assert fetch(server.url, tmp_path / "a.bin", attempts=1).read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 100)
    with Serving(CONTENT, ranges=False) as server:
        assert fetch(server.url, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 20_000)
    with Serving(CONTENT) as server:
        assert fetch(server.url, tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_an_error(tmp_path, monkeypatch):
    with Serving(CONTENT) as server:
        good = hashlib.sha256(CONTENT).hexdigest()
        monkeypatch.setitem(downloads.KNOWN_SHA256, server.url, good)
        assert fetch(server.url, tmp_path / "a.bin").exists()
        monkeypatch.setitem(downloads.KNOWN_SHA256, server.url, "0" * 64)
        with pytest.raises(InputError) as error:
            fetch(server.url, tmp_path / "b.bin")
    assert good in sentence(error) and not list(tmp_path.glob("b.bin*"))


def archive_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def whole(tmp_path) -> dict[str, bytes]:
    "The files of a small copy of the pix2pix version."
    files = {}
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for n in range(1, count + 1):
            path = tmp_path / f"made/{split}/{n}.jpg"
            save_abreast(path, SyntheticFacades(split, resolution=64)[n], quality=95)
            files[f"facades/{split}/{n}.jpg"] = path.read_bytes()
    return files


@pytest.fixture
def described(monkeypatch):
    "Facades as lying on another server, with the counts of the small copy."
    def describe(url: str) -> None:
        counts = {"train": 3, "val": 2, "test": 1}
        monkeypatch.setattr(
            datasets, "FETCH_FACADES", Download("facades", url, "facades/", "terms of use", counts)
        )
    return describe


def test_facades_download_once(whole, described, cache, capsys):
    with Serving(archive_of(whole), break_after=5000) as server:
        described(server.url)
        server.break_after = len(server.content) // 2 + 1
        assert len(Facades()) == 3
        said = capsys.readouterr().err
        assert "terms of use" in said and "Downloading" in said
        requests = len(server.asked)
        assert Facades(split="test")[0].image.shape == (3, 64, 64)
        assert len(server.asked) == requests
    assert sorted(path.name for path in cache.iterdir()) == ["facades", "maps"]


def test_a_copy_that_is_not_whole_is_refused(whole, described, cache):
    del whole["facades/train/2.jpg"]
    with Serving(archive_of(whole)) as server:
        described(server.url)
        with pytest.raises(InputError) as error:
            Facades()
    message = sentence(error)
    assert "holds 2 files in train, not 3" in message and "--data-root" in message
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    "content", [b"<html>moved</html>", gzip.compress(b"not a tar", mtime=0), b"\x1f\x8b"],
    ids=["html", "gzip of something else", "two bytes"],
)
def test_wrong_content_is_refused(content, described, cache):
    with Serving(content) as server:
        described(server.url)
        with pytest.raises(InputError) as error:
            Facades()
    assert "--data-root" in sentence(error) and not (cache / "facades").exists()
    assert not list(cache.glob("*.gz"))


def test_a_damaged_archive_is_refused(whole, described, cache):
    content = archive_of(whole)
    with Serving(content[: len(content) // 2]) as server:
        described(server.url)
        with pytest.raises(InputError, match="not a sound tar or zip archive"):
            Facades()
    assert not (cache / "facades").exists()


def test_without_a_network_the_steps_are_told(described):
    with Serving(b"") as server:
        url = server.url
    described(url)
    with pytest.raises(InputError) as error:
        Facades()
    message = sentence(error)
    assert "cannot be downloaded" in message and "by hand: download http://127.0.0.1" in message


@pytest.mark.parametrize(
    "name", ["../outside", "facades/../../outside", "/outside", "facades/..\\outside"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_member_leaves_its_folder(tmp_path, name, kind):
    archive = tmp_path / "deep" / "trap"
    archive.parent.mkdir()
    if kind == "tar":
        archive.write_bytes(archive_of({"facades/a.jpg": b"a", name: b"trap"}))
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("facades/a.jpg", b"a")
            file.writestr(name, b"trap")
    with pytest.raises(InputError, match="would leave its folder"):
        unpack(archive, tmp_path / "deep" / "facades", "facades/")
    assert not (tmp_path / "deep" / "facades").exists()
    assert not [path for path in tmp_path.rglob("*") if "outside" in path.name]


def test_links_in_an_archive_are_left_out(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        link = tarfile.TarInfo("facades/passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        member = tarfile.TarInfo("facades/a.jpg")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"a"))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    folder = unpack(tmp_path / "a.tar", tmp_path / "facades", "facades/")
    assert [path.name for path in folder.iterdir()] == ["a.jpg"]


def test_progress_is_quiet_in_a_log(capsys):
    for done in range(1, 11):
        downloads.show_progress(done, 10, "Counting")
    assert capsys.readouterr().err == "\rCounting: 100 %\n"
