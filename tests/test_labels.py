"Label spaces, files and recovery: what must hold for every dataset, on made-up and on real files."
import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision

from semsynth.labels import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_35,
    COLOUR_VISION,
    FACADES,
    FACADES_BASE,
    IGNORE_INDEX,
    LABEL_SPACES,
    InputError,
    LabelSpace,
    did_you_mean,
    edge_map,
    from_colours,
    null_label_map,
    onehot,
    palette_clearance,
    perceived,
    read_instance_map,
    read_label_map,
    recover_label_map,
    resize_label_map,
    semantics,
    to_colours,
    write_label_map,
)

SPACES = [*LABEL_SPACES.values(), FACADES_BASE]
spaces = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)


def random_map(space: LabelSpace, height: int = 24, width: int = 40) -> torch.Tensor:
    rng = torch.Generator().manual_seed(space.num_classes)
    label_map = torch.randint(0, space.num_classes, (height, width), generator=rng)
    label_map[:2] = IGNORE_INDEX
    return label_map


def blocks(rng: torch.Generator, resolution: int = 128, step: int = 16) -> torch.Tensor:
    "A façade-like map: rectangles of at least 8 pixels, all twelve classes."
    label_map = torch.ones(resolution, resolution, dtype=torch.long)
    for top in range(0, resolution, step):
        for left in range(0, resolution, step):
            high, wide = torch.randint(8, step + 1, (2,), generator=rng).tolist()
            class_id = int(torch.randint(0, 12, (), generator=rng))
            label_map[top : top + high, left : left + wide] = class_id
    return label_map


# Label spaces ------------------------------------------------------------------------------------


def test_cityscapes_is_the_published_table():
    assert CITYSCAPES.file_ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
    assert CITYSCAPES.names[0] == "road" and CITYSCAPES.palette[0] == (128, 64, 128)
    assert CITYSCAPES.names[13] == "car" and CITYSCAPES.palette[13] == (0, 0, 142)
    assert CITYSCAPES_35.names[26] == "car" and CITYSCAPES_35.names[34] == "license plate"
    assert sorted({*CITYSCAPES.file_ids, *CITYSCAPES.void_ids}) == list(range(35))
    assert [space.num_classes for space in SPACES] == [12, 19, 35, 11, 12]


def test_cityscapes_agrees_with_torchvision_in_all_35_rows():
    rows = torchvision.datasets.Cityscapes.classes
    known = {row.id: row for row in rows}
    in_order = [known[i] for i in (*range(34), -1)]  # the license plate is -1 there, and last here
    assert len(rows) == CITYSCAPES_35.num_classes == 35
    assert CITYSCAPES_35.names == tuple(row.name for row in in_order)
    assert CITYSCAPES_35.palette == tuple(row.color for row in in_order)

    evaluated = [row for row in rows if not row.ignore_in_eval]
    evaluated.sort(key=lambda row: row.train_id)
    assert [row.train_id for row in evaluated] == list(range(19))
    assert CITYSCAPES.names == tuple(row.name for row in evaluated)
    assert CITYSCAPES.palette == tuple(row.color for row in evaluated)
    assert CITYSCAPES.file_ids == tuple(row.id for row in evaluated)


@spaces
def test_decode_is_the_inverse_of_encode(space):
    label_map = random_map(space)
    file_ids = space.encode(label_map)
    assert file_ids.dtype == np.uint8
    assert torch.equal(space.decode(file_ids), label_map)
    assert torch.equal(space.decode(file_ids.astype(np.int32)), label_map)


@spaces
@pytest.mark.parametrize("wrong", [-1, 77, 300, 70_000])
def test_an_unknown_file_id_is_named_with_its_pixels(space, wrong):
    file_ids = space.encode(random_map(space)).astype(np.int64)
    file_ids[5, :3] = wrong
    with pytest.raises(InputError) as caught:
        space.decode(file_ids, "a/b.png")
    message = str(caught.value)
    assert f"a/b.png holds id {wrong} (3 pixels)" in message
    assert all(name in message for name in space.names)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"names": ("a", "b")}, "2 class names, 3 colours"),
        ({"names": ("a", "a", "b")}, "the class name 'a' twice"),
        ({"file_ids": (1, 2, 2)}, "the file id 2 twice"),
        ({"file_ids": (1, 2, 300)}, "8-bit"),
        ({"void_ids": (1,)}, "the file id 1 twice"),
        ({"palette": ((0, 0, 1), (0, 0, 2), (0, 0, 256))}, "(0, 0, 256)"),
        ({"names": (), "palette": ()}, "0 classes"),
    ],
)
def test_a_label_space_that_could_be_read_wrongly_is_refused(change, words):
    good = LabelSpace("mine", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    with pytest.raises(InputError) as caught:
        replace(good, **change)
    assert words in str(caught.value)


# Colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [FACADES, CITYSCAPES, CAMVID], ids=lambda space: space.name)
def test_colours_round_trip(space):
    label_map = random_map(space)
    for variant in (space, space.colour_blind_safe):
        painted = to_colours(label_map[None], variant)[0]
        assert torch.equal(from_colours(painted, variant), label_map)


def test_equal_colours_give_the_first_class():
    label_map = torch.arange(35)[None]
    back = from_colours(to_colours(label_map[None], CITYSCAPES_35)[0], CITYSCAPES_35)
    assert back[0, :5].tolist() == [0] * 5 and back[0, 18] == 17 and back[0, 34] == 26
    rest = [i for i in range(5, 34) if i != 18]
    assert back[0, rest].tolist() == rest


def test_a_foreign_colour_is_named_with_its_pixels_and_the_nearest_class():
    rgb = to_colours(torch.zeros(1, 8, 8, dtype=torch.long), FACADES)[0]
    rgb[:, 0, :3] = torch.tensor([250, 8, 8], dtype=torch.uint8)[:, None]
    rgb[:, 1, 0] = 99
    with pytest.raises(InputError) as caught:
        from_colours(rgb, FACADES, "map.png")
    words = ("map.png", "(250, 8, 8) in 3 pixels", "1 further colour", "nearest is pillar")
    assert all(part in str(caught.value) for part in words)


@spaces
def test_the_safe_palette_is_safer_for_every_eye(space):
    safe = space.colour_blind_safe
    assert safe.names == space.names and safe.file_ids == space.file_ids
    with_void = (*safe.palette, safe.void_colour)
    assert len(set(with_void)) == len(with_void)
    assert palette_clearance(with_void) > palette_clearance((*space.palette, space.void_colour))
    assert palette_clearance(with_void) > 0.05
    for vision in COLOUR_VISION:
        assert palette_clearance(with_void, (vision,)) > 0.05


def test_colour_vision_keeps_grey_and_oklab_knows_white():
    greys = np.array([[0, 0, 0], [128, 128, 128], [255, 255, 255]])
    for vision in COLOUR_VISION:
        assert np.allclose(perceived(greys, vision), perceived(greys), atol=1e-3)
    assert np.allclose(perceived(greys)[2], [1, 0, 0], atol=1e-6)
    red_and_green = np.array([[255, 0, 0], [0, 255, 0]])
    apart = {v: np.linalg.norm(np.diff(perceived(red_and_green, v), axis=0)) for v in COLOUR_VISION}
    assert apart["deuteranopia"] < 0.6 * apart["normal"]


# Recovery ----------------------------------------------------------------------------------------


def after_jpeg(label_map: torch.Tensor, quality: int = 75) -> torch.Tensor:
    painted = to_colours(label_map[None], FACADES)[0].movedim(0, -1).numpy()
    content = io.BytesIO()
    PIL.Image.fromarray(painted).save(content, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(PIL.Image.open(content))).movedim(-1, 0)


@pytest.mark.parametrize("times, least", [(2, 0.99), (1, 0.96)])  # rectangles from 16 and 8 pixels
def test_recovers_what_a_jpeg_has_blurred(times, least):
    right = []
    for seed in range(4):
        small = blocks(torch.Generator().manual_seed(seed), 128 // times)
        label_map = resize_label_map(small[None], (128, 128))[0]
        recovered, ambiguous = recover_label_map(after_jpeg(label_map), FACADES)
        right.append((recovered == label_map).float().mean().item())
        assert 0 < ambiguous < 0.35
    assert np.mean(right) > least, right


def test_recovery_of_exact_colours_changes_nothing():
    label_map = blocks(torch.Generator().manual_seed(7))
    recovered, ambiguous = recover_label_map(to_colours(label_map[None], FACADES)[0], FACADES)
    assert torch.equal(recovered, label_map) and ambiguous == 0


def test_recovery_survives_an_image_without_any_palette_colour():
    grey = torch.full((3, 16, 16), 140, dtype=torch.uint8)
    recovered, ambiguous = recover_label_map(grey, FACADES)
    assert recovered.shape == (16, 16) and ambiguous == 1


def test_recovers_the_shares_of_the_real_facades(facades_folder):
    "A few of the 606 maps; all of them together come within 0.3 percentage points."
    published = [18.1, 39.2, 12.9, 1.4, 3.0, 2.6, 4.9, 1.3, 2.0, 9.5, 2.0, 3.3]
    files = sorted(facades_folder.glob("*/*.jpg"))
    pixels, unsure = torch.zeros(12), []
    for path in files[::10]:
        rgb = torch.from_numpy(np.array(PIL.Image.open(path))[:, 256:]).movedim(-1, 0)
        label_map, ambiguous = recover_label_map(rgb, FACADES)
        pixels += torch.bincount(label_map.flatten(), minlength=12)
        unsure.append(ambiguous)
    shares = 100 * pixels / pixels.sum()
    assert (shares - torch.tensor(published)).abs().max() < 2.5, shares
    assert 0.03 < np.mean(unsure) < 0.12, unsure


# Files -------------------------------------------------------------------------------------------


@spaces
def test_a_written_label_map_is_read_back(space, tmp_path):
    label_map = random_map(space)
    write_label_map(tmp_path / "map.png", label_map, space)
    assert torch.equal(read_label_map(tmp_path / "map.png", space), label_map)
    image = PIL.Image.open(tmp_path / "map.png")
    assert np.array_equal(np.asarray(image), space.encode(label_map))
    shown = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)
    assert torch.equal(shown, to_colours(label_map[None], space)[0])


def test_ids_colours_and_a_paint_programs_indices_read_the_same(tmp_path):
    label_map = random_map(FACADES)
    colours = PIL.Image.fromarray(to_colours(label_map[None], FACADES)[0].movedim(0, -1).numpy())
    colours.save(tmp_path / "colours.png")
    colours.quantize(13, dither=PIL.Image.Dither.NONE).save(tmp_path / "indexed.png")
    PIL.Image.fromarray(FACADES.encode(label_map)).save(tmp_path / "ids.png")
    for name in ("colours.png", "indexed.png", "ids.png"):
        assert torch.equal(read_label_map(tmp_path / name, FACADES), label_map), name


def test_instances_keep_sixteen_bits(tmp_path):
    ids = np.array([[26001, 26002], [7, 65535]], dtype=np.uint16)
    PIL.Image.fromarray(ids).save(tmp_path / "instances.png")
    instance_map = read_instance_map(tmp_path / "instances.png")
    assert instance_map.tolist() == ids.tolist()
    assert edge_map(instance_map[None])[0, 0, 0].tolist() == [1, 1]
    resized = resize_label_map(instance_map[None], (4, 4))
    assert set(resized.unique().tolist()) == set(ids.ravel().tolist())


def test_real_cityscapes_files_agree(cityscapes_folder):
    "Instance ids from 24000 are class * 1000 + number: the label file says the same class."
    path = sorted((cityscapes_folder / "train_inst").glob("*.png"))[0]
    beside = cityscapes_folder / "train_label" / path.name.replace("instanceIds", "labelIds")
    instance_map, label_map = read_instance_map(path), read_label_map(beside, CITYSCAPES_35)
    class_of = torch.where(instance_map >= 1000, instance_map // 1000, instance_map)
    assert torch.equal(class_of, label_map)
    assert instance_map.max() > 255 and len(instance_map.unique()) > 20

    evaluated = read_label_map(beside, CITYSCAPES)
    assert evaluated[evaluated != IGNORE_INDEX].max() < 19
    assert torch.equal(evaluated == 13, label_map == 26)


def test_real_camvid_files_are_read(camvid_folder):
    path = sorted((camvid_folder / "trainannot").glob("*.png"))[0]
    label_map = read_label_map(path, CAMVID)
    assert label_map.shape == (360, 480) and (label_map == IGNORE_INDEX).any()
    largest = CAMVID.names[int(label_map.flatten().mode().values)]
    assert largest in ("road", "building", "tree", "sky")


def huge_png() -> bytes:
    "A header that promises 100,000 x 100,000 pixels, and no more."
    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def large_png() -> bytes:
    content = io.BytesIO()
    PIL.Image.new("1", (9000, 9000)).save(content, "PNG")
    return content.getvalue()


def saved(image: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise_png() -> bytes:
    ids = np.random.default_rng(0).integers(0, 12, (64, 64), dtype=np.uint8)
    return saved(PIL.Image.fromarray(ids))


def animation() -> bytes:
    frames = [PIL.Image.new("L", (8, 8), shade) for shade in (0, 1, 2)]
    return saved(frames[0], save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "content, words",
    [
        pytest.param(lambda: b"", "cannot be read", id="empty"),
        pytest.param(lambda: b"not an image", "cannot be read", id="text"),
        pytest.param(lambda: noise_png()[:400], "cannot be read", id="truncated"),
        pytest.param(lambda: noise_png()[:40], "cannot be read", id="header only"),
        pytest.param(
            lambda: noise_png().replace(b"IDAT", b"IDAX"), "cannot be read", id="broken chunk"
        ),
        pytest.param(huge_png, "pixels", id="bomb"),
        pytest.param(large_png, "9000 x 9000", id="large"),
        pytest.param(animation, "animated (3 frames)", id="animated"),
        pytest.param(lambda: saved(PIL.Image.new("RGBA", (4, 4))), "mode RGBA", id="rgba"),
        pytest.param(lambda: saved(PIL.Image.new("LA", (4, 4))), "mode LA", id="grey with alpha"),
        pytest.param(lambda: saved(PIL.Image.new("F", (4, 4)), "TIFF"), "mode F", id="float"),
        pytest.param(lambda: saved(PIL.Image.new("RGB", (4, 4)), "JPEG"), "JPEG", id="jpeg"),
        pytest.param(lambda: saved(PIL.Image.new("L", (4, 4), 40)), "id 40 (16 pixels)", id="id"),
        pytest.param(
            lambda: saved(PIL.Image.new("RGB", (4, 4), (9, 9, 9))), "(9, 9, 9)", id="colour"
        ),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(content, words, tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(content())
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        read_label_map(path, FACADES)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("read", [lambda p: read_label_map(p, FACADES), read_instance_map])
def test_missing_files_and_folders_are_refused(read, tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_a_coloured_instance_map_is_refused(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "instances.png")
    with pytest.raises(InputError, match="mode RGB"):
        read_instance_map(tmp_path / "instances.png")


# What a network reads ----------------------------------------------------------------------------


def test_an_ignored_pixel_is_zero_in_every_plane():
    label_map = random_map(FACADES)[None]
    planes = onehot(label_map, 12)
    assert torch.equal(planes.sum(dim=1), (label_map != IGNORE_INDEX).float())
    assert torch.equal(planes.argmax(dim=1)[:, 2:], label_map[:, 2:])
    assert semantics(null_label_map(label_map), None, 12).abs().max() == 0


@pytest.mark.parametrize("wrong", [-1, 12, 254, 256])
def test_an_id_out_of_range_is_refused_before_any_kernel(wrong):
    label_map = torch.zeros(1, 4, 4, dtype=torch.long)
    label_map[0, 0, :2] = wrong
    for call in (lambda: onehot(label_map, 12), lambda: to_colours(label_map, FACADES)):
        with pytest.raises(InputError, match=rf"id {wrong} \(2 pixels\)"):
            call()


def test_edges_are_symmetric_and_only_where_instances_meet():
    rng = torch.Generator().manual_seed(0)
    instance_map = torch.randint(0, 3, (2, 9, 11), generator=rng)
    edges = edge_map(instance_map)
    assert torch.equal(edge_map(instance_map.flip(2)), edges.flip(3))
    assert torch.equal(edge_map(instance_map.mT), edges.mT)
    for row in range(9):
        for column in range(11):
            around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [(r, c) for r, c in around if 0 <= r < 9 and 0 <= c < 11]
            other = any(instance_map[0, r, c] != instance_map[0, row, column] for r, c in inside)
            assert edges[0, 0, row, column] == other


@pytest.mark.parametrize("size", [(5, 7), (24, 40), (48, 80), (12, 20)])
def test_resizing_invents_no_class(size):
    label_map = random_map(CITYSCAPES)[None]
    resized = resize_label_map(label_map, size)
    assert resized.shape == (1, *size) and resized.dtype == torch.long
    assert set(resized.unique().tolist()) <= set(label_map.unique().tolist())
    image = PIL.Image.fromarray(label_map[0].numpy().astype(np.uint8))
    pillow = np.asarray(image.resize(size[::-1], PIL.Image.Resampling.NEAREST))
    assert np.array_equal(resized[0].numpy(), pillow)


def test_a_wrong_word_is_answered_with_the_right_ones():
    assert did_you_mean("vla", ["train", "val"]) == "did you mean val (of train, val)?"
    assert did_you_mean("tset", iter(["train"])) == "there are train"
    assert did_you_mean(3, []) == "there are none"
