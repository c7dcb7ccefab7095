"The command line: what works, and what is said when something does not."

import errno
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from semsynth import cli
from semsynth.cli import main
from semsynth.configs import load_run, save_weights
from semsynth.datasets import Folder

TINY = [
    "data.resolution=32",
    "data.load_resolution=32",
    "model.channels=4",
    "model.num_downs=4",
    "model.patch=16",
    "train.num_steps=4",
    "train.batch_size=2",
    "train.log_every=1",
]
CLASSES = "wall 0 48 255\nwindow 2 127 255\ndoor 2 207 255\n"


def write_png(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_pairs(folder: Path, count: int = 4, size: int = 32) -> Path:
    "A dataset for `folder`: noise for photos, stripes for label maps."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text(CLASSES)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for n in range(count):
            write_png(
                folder / split / "images" / f"{n}.png",
                rng.integers(0, 256, (size, size, 3), np.uint8),
            )
            write_png(
                folder / split / "labels" / f"{n}.png",
                (np.arange(size * size) % 3).reshape(size, size).astype(np.uint8),
            )
    return folder


def first_label(folder: Path) -> Path:
    return folder / "train" / "labels" / "0.png"


def first_image(folder: Path) -> Path:
    return folder / "train" / "images" / "0.png"


class World(NamedTuple):
    "What the tests find: a dataset, a run that was trained on it, its weights, and a label map."

    folder: Path
    pairs: Path
    run: Path
    weights: Path
    label: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pairs, run = write_pairs(folder / "pairs"), folder / "run"
    assert train(pairs, f"--run-dir={run}") == 0
    trained = load_run(run)
    weights = save_weights(
        folder / "tiny.safetensors", *trained[:3], card="A tiny model for tests."
    )
    return World(folder, pairs, run, weights, first_label(pairs))


def train(root: Path, *more: str) -> int:
    return main(
        [
            "train",
            "--dataset=folder",
            "--model=pix2pix",
            f"--data-root={root}",
            "--gpus=0",
            *TINY,
            *more,
        ]
    )


def fingerprint(folder: Path) -> dict[Path, str]:
    "The content of every file."
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# What is wrong with each command line, and the words that the sentence about it must hold.


class Bad(NamedTuple):
    words: list[str]
    says: tuple[str, ...]


BAD: dict[str, Callable[[World, Path], Bad]] = {}


def bad(make: Callable[[World, Path], Bad]) -> Callable[[World, Path], Bad]:
    BAD[make.__name__] = make
    return make


def training(
    world: World,
    folder: Path,
    *more: str,
    says: tuple[str, ...],
    model: str = "pix2pix",
    dataset: str = "folder",
    root: Path | None = None,
) -> Bad:
    "A training that would work but for `more`."
    words = [
        "train",
        "--dataset",
        dataset,
        "--model",
        model,
        "--data-root",
        str(root or world.pairs),
        "--gpus",
        "0",
        "--run-dir",
        str(folder / "new"),
        *TINY,
        *more,
    ]
    return Bad(words, says)


@bad
def no_verb_of_this_name(world, folder):
    return Bad(["trian"], ("trian", "train", "sample"))


@bad
def misspelt_option(world, folder):
    return Bad(["train", "--modle", "pix2pix"], ("--modle", "--model"))


@bad
def option_without_value(world, folder):
    return Bad(["train", "--dataset"], ("--dataset", "--help"))


@bad
def nothing_to_train(world, folder):
    return Bad(["train", "--gpus", "0"], ("--dataset", "--model", "--config"))


@bad
def unknown_model(world, folder):
    return training(
        world, folder, model="pix2pux", says=("pix2pux", "did you mean pix2pix", "cgan")
    )


@bad
def unknown_dataset(world, folder):
    return training(world, folder, dataset="facade", says=("facade", "did you mean facades"))


@bad
def unknown_preset(world, folder):
    return training(world, folder, "model.preset=papr", says=("papr", "did you mean paper"))


@bad
def a_style_for_a_family_without_styles(world, folder):
    words = ["sample", str(world.weights), str(world.label), "-o", str(folder / "new")]
    return Bad([*words, "--style-image", str(first_image(world.pairs))],
               ("--style-image", "pix2pix takes no style", "spade"))


@bad
def no_such_photo_for_a_style(world, folder):
    words = ["sample", "spade", str(world.label), "-o", str(folder / "new")]
    return Bad([*words, "--style-image", str(folder / "none.jpg")], ("none.jpg",))


@bad
def nothing_to_start_from(world, folder):
    return training(world, folder, "train.start_from=nowhere", says=("nowhere", "a run folder"))


@bad
def another_size_to_start_from(world, folder):
    return training(
        world, folder, "model.channels=8", f"train.start_from={world.run}",
        says=("start_from", "no place there or another shape", "same family"),
    )


@bad
def unknown_key(world, folder):
    return training(
        world, folder, "train.num_stesp=3", says=("num_stesp", "did you mean num_steps")
    )


@bad
def unknown_section(world, folder):
    return training(world, folder, "trian.num_steps=3", says=("trian", "did you mean train"))


@bad
def unknown_choice(world, folder):
    return training(
        world, folder, "model.norm=bach", says=("model.norm", "bach", "batch", "instance")
    )


@bad
def assignment_without_value(world, folder):
    return training(world, folder, "num_steps", says=("num_steps", "train.num_steps=100"))


@bad
def text_for_a_number(world, folder):
    return training(
        world, folder, "train.num_steps=many", says=("train.num_steps", "many", "a whole number")
    )


@bad
def fraction_for_a_whole_number(world, folder):
    return training(
        world, folder, "train.batch_size=1.5", says=("train.batch_size", "1.5", "a whole number")
    )


@bad
def list_for_a_number(world, folder):
    return training(
        world, folder, "model.channels=[4,4]", says=("model.channels", "a whole number")
    )


@bad
def unreadable_value(world, folder):
    return training(world, folder, "model.channels=[4", says=("model.channels", "[4"))


@bad
def negative_size(world, folder):
    return training(
        world, folder, "data.resolution=-32", says=("data.resolution", "-32", "not negative")
    )


@bad
def size_of_zero(world, folder):
    return training(world, folder, "model.channels=0", says=("channels", "0"))


@bad
def empty_batches(world, folder):
    return training(world, folder, "train.batch_size=0", says=("batch_size", "0", "at least 1"))


@bad
def resolution_that_the_network_cannot_take(world, folder):
    return training(
        world,
        folder,
        "data.resolution=40",
        "data.load_resolution=40",
        says=("40 x 40", "multiples of 16", "32 x 32"),
    )


@bad
def crop_larger_than_the_image(world, folder):
    return training(world, folder, "data.load_resolution=16", says=("load_resolution", "16", "32"))


@bad
def learning_rate_that_is_no_number(world, folder):
    return training(world, folder, "optim.generator.lr=fast", says=("optim.generator.lr", "fast"))


@bad
def optimizer_for_nothing(world, folder):
    return training(world, folder, "optim.generatr.lr=0.1", says=("generatr", "generator"))


@bad
def more_gpus_than_there_are(world, folder):
    return training(world, folder, "--gpus", "99", says=("--gpus 99", "would work"))


@bad
def gpus_in_words(world, folder):
    return training(world, folder, "--gpus", "all", says=("--gpus", "all"))


@bad
def missing_folder(world, folder):
    return training(world, folder, root=folder / "nowhere", says=("nowhere", "classes.txt"))


@bad
def empty_folder(world, folder):
    (folder / "empty").mkdir()
    return training(world, folder, root=folder / "empty", says=("empty", "classes.txt"))


@bad
def empty_facades_folder(world, folder):
    (folder / "empty").mkdir()
    return training(
        world, folder, dataset="facades", root=folder / "empty", says=("empty", "train")
    )


@bad
def cityscapes_without_a_folder(world, folder):
    words = ["train", "--dataset", "cityscapes", "--model", "pix2pix", "--gpus", "0"]
    return Bad(words, ("ityscapes", "leftImg8bit", "gtFine"))


@bad
def unpaired_files(world, folder):
    pairs = write_pairs(folder / "pairs")
    first_label(pairs).unlink()
    return training(world, folder, root=pairs, says=("1", "label map", "0"))


@bad
def corrupt_image(world, folder):
    pairs = write_pairs(folder / "pairs")
    first_image(pairs).write_bytes(b"not an image at all")
    return training(world, folder, root=pairs, says=("0.png", "cannot be read"))


@bad
def truncated_image(world, folder):
    pairs = write_pairs(folder / "pairs")
    first_image(pairs).write_bytes(first_image(pairs).read_bytes()[:-200])
    return training(world, folder, root=pairs, says=("0.png", "cannot be read"))


@bad
def label_id_out_of_range(world, folder):
    pairs = write_pairs(folder / "pairs")
    ids = np.zeros((32, 32), np.uint8)
    ids[0, :5] = 77
    write_png(first_label(pairs), ids)
    return training(world, folder, root=pairs, says=("0.png", "77", "5 pixels", "0 wall", "2 door"))


@bad
def colour_of_no_class(world, folder):
    pairs = write_pairs(folder / "pairs")
    write_png(first_label(pairs), np.full((32, 32, 3), 9, np.uint8))
    return training(world, folder, root=pairs, says=("0.png", "9"))


@bad
def sizes_that_differ(world, folder):
    pairs = write_pairs(folder / "pairs")
    write_png(first_label(pairs), np.zeros((16, 32), np.uint8))
    return training(world, folder, root=pairs, says=("0.png", "32 x 32", "32 x 16"))


@bad
def label_map_with_transparency(world, folder):
    pairs = write_pairs(folder / "pairs")
    write_png(first_label(pairs), np.zeros((32, 32, 4), np.uint8))
    return training(world, folder, root=pairs, says=("0.png", "RGBA"))


@bad
def image_in_ink(world, folder):
    pairs = write_pairs(folder / "pairs")
    first_image(pairs).unlink()
    Image.new("CMYK", (32, 32)).save(first_image(pairs).with_suffix(".jpg"))
    return training(world, folder, root=pairs, says=("0.jpg", "CMYK"))


@bad
def animated_image(world, folder):
    pairs = write_pairs(folder / "pairs")
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(first_image(pairs), save_all=True, append_images=frames[1:])
    return training(world, folder, root=pairs, says=("0.png", "frames"))


@bad
def huge_image(world, folder):
    "A header that promises 10 gigapixels, in 100 bytes."
    pairs = write_pairs(folder / "pairs")

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4)
        return len(content).to_bytes(4) + kind + content + checksum

    header = (100_000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    first_image(pairs).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return training(world, folder, root=pairs, says=("0.png", "pixels"))


@bad
def classes_with_a_bad_colour(world, folder):
    pairs = write_pairs(folder / "pairs")
    (pairs / "classes.txt").write_text("wall 0 48 999\n")
    return training(world, folder, root=pairs, says=("classes.txt", "line 1", "999"))


@bad
def run_folder_in_use(world, folder):
    return training(world, folder, "--run-dir", str(world.run), says=(str(world.run), "--resume"))


@bad
def run_folder_is_a_file(world, folder):
    (folder / "file").write_text("mine")
    return training(world, folder, "--run-dir", str(folder / "file"), says=("file", "folder"))


@bad
def run_folder_below_a_file(world, folder):
    (folder / "file").write_text("mine")
    return training(
        world, folder, "--run-dir", str(folder / "file" / "run"), says=("file", "choose another")
    )


def with_config(world: World, folder: Path, content: str | bytes, says: tuple[str, ...]) -> Bad:
    path = folder / "own.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Bad(
        ["train", "--config", str(path), "--gpus", "0", "--run-dir", str(folder / "new")], says
    )


@bad
def missing_config(world, folder):
    return Bad(["train", "--config", str(folder / "none.yaml")], ("none.yaml", "semsynth models"))


@bad
def config_that_is_not_yaml(world, folder):
    return with_config(
        world, folder, "data: {name: synthetic\nmodel: ]", ("own.yaml", "not YAML", "line 2")
    )


@bad
def config_that_is_not_text(world, folder):
    return with_config(world, folder, bytes(range(128, 256)), ("own.yaml", "not text"))


@bad
def config_that_is_a_list(world, folder):
    return with_config(
        world, folder, "- data\n- model\n", ("own.yaml", "data, model, optim, train")
    )


@bad
def config_with_a_key_twice(world, folder):
    content = "data: {name: synthetic, resolution: 64, resolution: 128}\n"
    return with_config(world, folder, content, ("own.yaml", "resolution", "twice"))


@bad
def config_without_a_model(world, folder):
    return with_config(world, folder, "data: {name: synthetic}\n", ("model.name", "missing"))


@bad
def config_that_makes_objects(world, folder):
    content = "data: !!python/object/apply:os.system ['touch harm']\n"
    return with_config(world, folder, content, ("own.yaml", "line 1"))


@bad
def nothing_to_resume(world, folder):
    return Bad(["train", "--resume", str(folder / "none")], ("none", "checkpoint.pt"))


@bad
def resume_with_another_model(world, folder):
    return Bad(["train", "--resume", str(world.run), "--model", "cgan"], ("--resume", "leave"))


@bad
def resume_with_another_size(world, folder):
    return Bad(
        ["train", "--resume", str(world.run), "model.channels=8"],
        ("model.channels=8", "train.num_steps"),
    )


@bad
def resume_to_fewer_steps(world, folder):
    words = ["train", "--resume", str(world.run), "train.num_steps=2", "--gpus", "0"]
    return Bad(words, ("4 steps", "train.num_steps=2"))


def with_checkpoint(world: World, folder: Path, content: bytes) -> Path:
    run = folder / "run"
    run.mkdir()
    (run / "checkpoint.pt").write_bytes(content)
    (run / "config.yaml").write_bytes((world.run / "config.yaml").read_bytes())
    return run


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class Bomb:
    "Would write a file when unpickled."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@bad
def truncated_checkpoint(world, folder):
    content = (world.run / "checkpoint.pt").read_bytes()
    run = with_checkpoint(world, folder, content[: len(content) // 2])
    return Bad(["train", "--resume", str(run), "--gpus", "0"], ("checkpoint.pt", "cut short"))


@bad
def empty_checkpoint(world, folder):
    run = with_checkpoint(world, folder, b"")
    return Bad(["train", "--resume", str(run), "--gpus", "0"], ("checkpoint.pt", "cut short"))


@bad
def foreign_checkpoint(world, folder):
    run = with_checkpoint(world, folder, torch_bytes({"state_dict": {"w": torch.zeros(1)}}))
    return Bad(["train", "--resume", str(run), "--gpus", "0"], ("checkpoint.pt", "semsynth"))


@bad
def malicious_checkpoint(world, folder):
    run = with_checkpoint(world, folder, torch_bytes({"model": Bomb(folder / "harm")}))
    return Bad(
        ["train", "--resume", str(run), "--gpus", "0"], ("checkpoint.pt", "refused", "safetensors")
    )


@bad
def checkpoint_of_other_networks(world, folder):
    state = torch.load(world.run / "checkpoint.pt", weights_only=True)
    state["config"]["model"]["channels"] = 6
    run = with_checkpoint(world, folder, torch_bytes(state))
    return Bad(
        ["sample", str(run), str(world.label), "-o", str(folder / "out")],
        ("run", "tensors", "shape"),
    )


def sampling(
    world: World,
    folder: Path,
    *more: str,
    says: tuple[str, ...],
    source: Path | None = None,
    label: Path | None = None,
) -> Bad:
    "A sampling that would work but for `more`."
    words = [
        "sample",
        str(source or world.weights),
        str(label or world.label),
        "-o",
        str(folder / "out"),
        *more,
    ]
    return Bad(words, says)


@bad
def unknown_weights(world, folder):
    return sampling(
        world, folder, source=Path("pix2pux"), says=("pix2pux", "run folder", ".safetensors")
    )


@bad
def truncated_weights(world, folder):
    path = folder / "half.safetensors"
    path.write_bytes(world.weights.read_bytes()[:3000])
    return sampling(world, folder, source=path, says=("half.safetensors", "copy"))


@bad
def foreign_weights(world, folder):
    path = folder / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    return sampling(
        world, folder, source=path, says=("foreign.safetensors", "config", "from_official")
    )


@bad
def malicious_weights(world, folder):
    path = folder / "weights.pt"
    path.write_bytes(pickle.dumps(Bomb(folder / "harm")))
    return sampling(world, folder, source=path, says=("weights.pt", "refused", "safetensors"))


@bad
def official_weights_without_their_network(world, folder):
    path = folder / "latest_net_G.pth"
    path.write_bytes(torch_bytes({"model.model.0.weight": torch.zeros(1)}))
    return sampling(world, folder, source=path, says=("latest_net_G.pth", "config"))


@bad
def folder_that_is_no_run(world, folder):
    return sampling(world, folder, source=world.pairs, says=("pairs", "checkpoint.pt"))


@bad
def missing_label_map(world, folder):
    return sampling(world, folder, label=folder / "none.png", says=("none.png", "missing"))


@bad
def label_map_in_foreign_colours(world, folder):
    path = write_png(folder / "painted.png", np.full((32, 32, 3), 200, np.uint8))
    return sampling(world, folder, label=path, says=("painted.png", "200"))


@bad
def label_map_as_a_jpeg(world, folder):
    path = folder / "blurred.jpg"
    Image.new("RGB", (32, 32)).save(path)
    return sampling(world, folder, label=path, says=("blurred.jpg", "PNG"))


@bad
def image_that_is_there_already(world, folder):
    write_png(folder / "out" / "0.png", np.zeros((2, 2), np.uint8))
    return sampling(world, folder, says=("0.png", "--overwrite"))


@bad
def two_label_maps_of_one_name(world, folder):
    return sampling(
        world, folder, str(world.pairs / "test" / "labels" / "0.png"), says=("0.png", "rename")
    )


@bad
def too_few_instance_maps(world, folder):
    return sampling(
        world,
        folder,
        str(world.pairs / "train" / "labels" / "1.png"),
        "--instances",
        str(world.label),
        says=("--instances", "1", "2"),
    )


@bad
def instance_map_of_another_size(world, folder):
    path = write_png(folder / "small.png", np.zeros((8, 8), np.uint8))
    return sampling(world, folder, "--instances", str(path), says=("small.png", "8 x 8", "32 x 32"))


@bad
def no_samples_at_all(world, folder):
    return sampling(world, folder, "--num-samples", "0", says=("--num-samples", "1 or more"))


@bad
def resolution_in_words(world, folder):
    return sampling(world, folder, "--resolution", "big", says=("--resolution", "big", "256x512"))


@bad
def resolution_between_two_that_fit(world, folder):
    return sampling(world, folder, "--resolution", "40", says=("40", "multiples of 16"))


@bad
def option_of_another_family(world, folder):
    return sampling(world, folder, "--guidance-scale", "2", says=("--guidance-scale", "--help"))


@bad
def option_of_the_wrong_type(world, folder):
    return sampling(
        world, folder, "--dropout", "perhaps", says=("--dropout", "perhaps", "true or false")
    )


def evaluating(world: World, folder: Path, *more: str, says: tuple[str, ...]) -> Bad:
    "An evaluation that would work but for `more`."
    return Bad(
        ["evaluate", str(world.run), "--out", str(folder / "out"), "--gpus", "0", *more], says
    )


@bad
def other_classes(world, folder):
    return evaluating(
        world, folder, "--dataset", "synthetic", says=("3 classes", "12", "same classes")
    )


@bad
def report_that_is_there_already(world, folder):
    (folder / "out").mkdir()
    (folder / "out" / "report.json").write_text("{}")
    return evaluating(world, folder, says=("report.json", "--overwrite"))


@bad
def more_images_than_there_are(world, folder):
    return evaluating(world, folder, "--num-images", "9", says=("--num-images", "9", "4 images"))


@bad
def split_of_another_name(world, folder):
    words = ["--dataset", "synthetic", "--split", "tset"]
    return evaluating(world, folder, *words, says=("tset", "train", "test"))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_harms_nothing(
    name: str,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    words, says = BAD[name](world, tmp_path)
    before = fingerprint(tmp_path) | fingerprint(world.folder)
    capsys.readouterr()

    code = main(words)
    out, err = capsys.readouterr()
    sentence = err.strip()

    assert code == 2, err
    assert (
        sentence.startswith("semsynth: ") and "\n" not in sentence and "Traceback" not in sentence
    )
    assert len(sentence) < 700
    for word in says:
        assert word in sentence
    after = fingerprint(tmp_path) | fingerprint(world.folder)
    assert before == {path: after.get(path) for path in before}
    assert not (tmp_path / "harm").exists()


def test_there_are_at_least_thirty_bad_inputs():
    assert len(BAD) >= 30


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "may write"), (errno.ENOSPC, "free some space"), (errno.EROFS, "disk")],
)
def test_a_disk_that_refuses_is_one_sentence(
    number: int,
    remedy: str,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def refuse(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("semsynth.evaluation.write_text", refuse)
    code = train(world.pairs, f"--run-dir={tmp_path / 'new'}")
    sentence = capsys.readouterr().err.strip()
    assert code == 2 and "\n" not in sentence
    assert "config.yaml" in sentence and os.strerror(number) in sentence and remedy in sentence


def test_debug_shows_where(world: World):
    with pytest.raises(ValueError, match="pix2pux"):
        main(["train", "--dataset", "synthetic", "--model", "pix2pux", "--debug"])


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(args):
        raise ValueError("a bug")

    monkeypatch.setitem(cli.VERBS, "datasets", cli.VERBS["datasets"]._replace(run=broken))
    with pytest.raises(ValueError, match="a bug"):
        main(["datasets"])


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "datasets", cli.VERBS["datasets"]._replace(run=interrupted))
    assert main(["datasets"]) == 130
    assert "Traceback" not in capsys.readouterr().err


# What works.


def test_train_resume_sample_evaluate(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    "Each verb hands on what the next one needs, on the data that need no download."
    monkeypatch.chdir(tmp_path)
    words = [
        "train",
        "--dataset",
        "synthetic",
        "--model",
        "cgan",
        "--gpus",
        "0",
        "data.resolution=32",
        "data.load_resolution=32",
        "data.num_images=8",
        "model.channels=4",
        "model.num_blocks=1",
        "model.patch=16",
        "train.batch_size=2",
        "train.num_steps=4",
        "train.ema_decay=0",
        "optim.generator.lr=0.01",  # so that z shows after a few steps
    ]
    assert main(words) == 0
    run = Path("runs/cgan-synthetic-1")
    assert {"config.yaml", "checkpoint.pt", "metrics.csv", "samples", "gallery.html"} <= {
        path.name for path in run.iterdir()
    }
    assert "cgan-synthetic-1/gallery.html" in capsys.readouterr().out

    assert main(["train", "--resume", str(run), "--gpus", "0", "train.num_steps=6"]) == 0
    assert load_run(run).facts["step"] == "6"
    assert "num_steps: 6" in (run / "config.yaml").read_text()

    ids = write_png(tmp_path / "ids.png", np.arange(1024).reshape(32, 32).astype(np.uint8) % 12)
    assert (
        main(["sample", str(run), str(ids), "-o", "drawn", "--num-samples", "2", "--gpus", "0"])
        == 0
    )
    drawn = [np.asarray(Image.open(tmp_path / "drawn" / f"ids_{n}.png")) for n in (0, 1)]
    assert drawn[0].shape == (32, 32, 3) and (drawn[0] != drawn[1]).any()

    assert main(["evaluate", str(run), "--out", "report", "--num-images", "3", "--gpus", "0"]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["images"]) == report["protocol"]["num_images"] == 3
    assert report["protocol"]["split"] == "test" and report["facts"]["step"] == "6"
    mean, low, high = report["scores"]["L1"]
    assert mean == pytest.approx(np.mean([row["L1"] for row in report["images"]]), rel=1e-5)
    assert low <= mean <= high and report["cost"]["ms an image"] > 0
    assert "segmenter-synthetic-strict" in report["protocol"]["segmenter"]
    assert (tmp_path / "report" / "gallery.html").is_file()

    out = ["-o", "small.safetensors", "--report", "report/report.json"]
    assert main(["export", str(run), *out]) == 0
    card = (tmp_path / "small.md").read_text()
    assert "mIoU of the real images" in card and "minutes" in card
    words = ["--dataset", "synthetic", "--out", "table", "--num-images", "3", "--gpus", "0"]
    assert main(["compare", str(run), "small.safetensors", *words]) == 0
    rows = (tmp_path / "table" / "table.md").read_text().splitlines()
    models = [row.split(" | ")[0].strip("| ") for row in rows]
    trivial = ["real photographs", "class mean", "another look"]
    assert models == ["model", "---", "cgan-synthetic-1", "small", *trivial]
    assert (tmp_path / "table" / "index.html").is_file()


def test_fewer_images_are_the_first_of_all(world: World, tmp_path: Path):
    "Each image is drawn with a seed of its own, so the number of others changes nothing."
    reports = []
    for count in ("2", "4"):
        out = tmp_path / count
        words = ["evaluate", str(world.run), "--out", str(out), "--num-images", count, "--gpus=0"]
        assert main([*words, "--dropout"]) == 0
        reports.append(json.loads((out / "report.json").read_text()))
    assert reports[0]["images"] == reports[1]["images"][:2]
    pairs = Folder(world.pairs, "test")
    names = [row["name"] for row in reports[1]["images"]]
    assert names == [pairs.name_of(index) for index in range(4)]
    options = [["batch_statistics", False], ["dropout", True]]
    assert reports[0]["protocol"]["sampler"] == options
    assert reports[0]["protocol"]["dropout"] == "on"


def test_weights_draw_what_the_run_drew(world: World, tmp_path: Path):
    "Up to the half precision in which they are stored."
    drawn = []
    for source in (world.run, world.weights):
        out = tmp_path / source.name
        assert main(["sample", str(source), str(world.label), "-o", str(out), "--gpus=0"]) == 0
        drawn.append(np.asarray(Image.open(out / "0.png")).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


def test_ids_and_palette_colours_draw_the_same(world: World, tmp_path: Path):
    palette = np.array(
        [[int(part) for part in line.split()[1:]] for line in CLASSES.splitlines()], np.uint8
    )
    painted = write_png(tmp_path / "painted.png", palette[np.asarray(Image.open(world.label))])
    assert (
        main(
            [
                "sample",
                str(world.run),
                str(world.label),
                str(painted),
                "-o",
                str(tmp_path / "out"),
                "--gpus=0",
            ]
        )
        == 0
    )
    assert (tmp_path / "out" / "0.png").read_bytes() == (
        tmp_path / "out" / "painted.png"
    ).read_bytes()


def test_overwrite_replaces(world: World, tmp_path: Path):
    write_png(tmp_path / "0.png", np.zeros((2, 2), np.uint8))
    words = ["sample", str(world.weights), str(world.label), "-o", str(tmp_path), "--gpus=0"]
    assert main(words) == 2 and main([*words, "--overwrite"]) == 0
    assert Image.open(tmp_path / "0.png").size == (32, 32)


def test_a_training_can_start_from_another(world: World, tmp_path: Path):
    "Without a step to speak of, the new run holds what the old one learnt, judges included."
    run = tmp_path / "second"
    still = ["train.num_steps=1", "optim.generator.lr=0.0", "optim.discriminator.lr=0.0"]
    start = f"train.start_from={world.run}"
    assert train(world.pairs, f"--run-dir={run}", start, *still) == 0
    before, after = load_run(world.run), load_run(run)
    learnt = {name for name, _ in before.model.named_parameters()}
    assert any(name.startswith("discriminator.") for name in learnt)
    state = after.model.state_dict()
    assert all(torch.equal(state[name], before.model.state_dict()[name]) for name in learnt)
    card = save_weights(tmp_path / "second.safetensors", *after[:3]).with_suffix(".md").read_text()
    assert "start_from: run" in card and str(world.folder) not in card
    assert train(world.pairs, f"--run-dir={tmp_path / 'third'}", "train.start_from=nowhere") == 2


def test_the_style_of_a_photo(world: World, tmp_path: Path):
    "Two photos, two looks; the same photo and the same seed, the same image."
    photos = [
        write_png(tmp_path / f"{name}.png", np.full((48, 40, 3), value, np.uint8))
        for name, value in (("dark", 20), ("light", 230))
    ]
    drawn = []
    for number, photo in enumerate([*photos, photos[0]]):
        out = tmp_path / str(number)
        given = ["sample", "spade", str(world.label), "-o", str(out), "--gpus=0"]
        assert main([*given, "--style-image", str(photo), "--resolution=64"]) == 0
        drawn.append((out / "0.png").read_bytes())
    assert drawn[0] == drawn[2] != drawn[1]


def test_another_size_than_trained(world: World, tmp_path: Path):
    words = ["sample", str(world.weights), str(world.label), "-o", str(tmp_path), "--gpus=0"]
    assert main([*words, "--resolution", "32x64"]) == 0
    assert Image.open(tmp_path / "0.png").size == (64, 32)


def test_help_lists_the_options_of_the_family(world: World, capsys: pytest.CaptureFixture):
    assert main(["sample", str(world.weights), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--dropout" in text and "--batch-statistics" in text and "default: false" in text


def test_overviews(capsys: pytest.CaptureFixture):
    assert main(["models"]) == 0 and main(["models", "pix2pix"]) == 0 and main(["datasets"]) == 0
    text = capsys.readouterr().out
    assert "model.l1_weight" in text and "pix2pix-facades" in text and "cityscapes" in text
    assert main(["--help"]) == 0 and main(["--version"]) == 0 and main([]) == 2


def test_doctor_is_content(capsys: pytest.CaptureFixture):
    assert main(["doctor"]) == 0
    assert "Ready." in capsys.readouterr().out


def test_doctor_names_what_is_missing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        cli.importlib.metadata, "requires", lambda name: ["torch>=999", "not-a-package>=1"]
    )
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "pip install 'not-a-package>=1'" in text and "Not ready: torch, not-a-package" in text


def run_python(root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_train_py_is_semsynth_train(root: Path, tmp_path: Path):
    "As the README writes it; the sentence is all that a shell sees."
    words = [
        "--dataset",
        "cityscapes",
        "--model",
        "pix2pix",
        "--gpus",
        "0",
        "--data-root",
        "nowhere",
    ]
    result = run_python(root, tmp_path, str(root / "train.py"), *words)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert (
        "nowhere" in result.stderr
        and "leftImg8bit" in result.stderr
        and not any(tmp_path.iterdir())
    )


def test_help_needs_no_torch(root: Path, tmp_path: Path):
    "Help is there at once, also where PyTorch is broken."
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    result = run_python(
        root, tmp_path, "-c", "from semsynth.cli import main; print(main(['--help']))"
    )
    assert result.returncode == 0 and "evaluate" in result.stdout and result.stdout.endswith("0\n")


# Real data, where they are.


def test_camvid_trains(camvid_folder: Path, tmp_path: Path):
    words = [
        "train",
        "--dataset=camvid",
        "--model=pix2pix",
        f"--data-root={camvid_folder}",
        "--gpus=0",
        f"--run-dir={tmp_path / 'run'}",
        *TINY,
        "train.num_steps=2",
    ]
    assert main(words) == 0


def test_cityscapes_trains(cityscapes_folder: Path, tmp_path: Path):
    root = tmp_path / "cityscapes"
    for source, target in {
        "train_img": "leftImg8bit",
        "train_label": "gtFine",
        "train_inst": "gtFine",
    }.items():
        for path in sorted((cityscapes_folder / source).glob("*.png")):
            link = root / target / "train" / path.name.split("_")[0] / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    words = [
        "train",
        "--dataset=cityscapes",
        "--model=pix2pix",
        f"--data-root={root}",
        "--gpus=0",
        f"--run-dir={tmp_path / 'run'}",
        *TINY,
        "data.resolution=[32, 64]",
        "data.load_resolution=[32, 64]",
        "train.num_steps=2",
    ]
    assert main(words) == 0
