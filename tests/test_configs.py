"Configs, weights and runs: what is read, what is refused; every config that ships trains."

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from inspect import Parameter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tiny_stable_diffusion
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import semsynth
from semsynth import configs
from semsynth.configs import (
    DATASETS,
    MODELS,
    argument_comments,
    as_yaml,
    build_dataset,
    build_model,
    checked,
    find_config,
    load_weights,
    model_settings,
    read_config,
    read_value,
    resolved,
    sampling_options,
    save_weights,
    shipped_configs,
)
from semsynth.labels import CITYSCAPES_35, FACADES, InputError
from semsynth.synthesizer import fingerprints, own_state, sampling_state

TINY = {  # Arguments that make a network small, whichever of them it has
    "channels": 4,
    "discriminator_channels": 4,
    "num_downs": 4,
    "num_blocks": 1,
    "patch": 16,
    "noise_channels": 2,
    "perceptual": "none",
    "layers": "normal",
    "hidden_channels": 4,
    "widest": 2,
    "channel_max": 4,
    "discriminator_max": 4,
    "map_channels": 2,
    "map_widest": 4,
    "layout_channels": 4,
    "groups": 1,
}


TINY_OF = {
    # The same word for another thing: SDM's patches are its pixels, not those that are judged.
    "sdm": {"patch": 2},
    "controlnet": {"patch": 4, "base": "latent_diffusion"},
    "vqgan": {"width": 16, "num_layers": 1, "num_heads": 2, "map_stage": "commonest"},
}


def tiny(model: str) -> list[str]:
    sizes = TINY | TINY_OF.get(model, {})
    return [f"model.{key}={value}" for key, value in sizes.items() if key in model_settings(model)]


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_dataset(name: str, root: Path) -> Path:
    "Four pairs in the layout of a real dataset."
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for n in range(4):
            image = rng.integers(0, 256, (64, 128, 3), np.uint8)
            ids = rng.integers(0, 11, (64, 128)).astype(np.uint8)
            if name == "facades":
                image[:, 64:] = np.array(FACADES.palette, np.uint8)[ids[:, 64:]]
                write_image(root / split / f"{n}.jpg", image)
            if name == "camvid":
                write_image(root / split / f"{n}.jpg", image)
                write_image(root / f"{split}annot" / f"{n}.png", ids)
            if name == "cityscapes":
                stem = f"{split}/town/town_{n:06d}_000019"
                write_image(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", image)
                write_image(root / "gtFine" / f"{stem}_gtFine_labelIds.png", ids)
                write_image(
                    root / "gtFine" / f"{stem}_gtFine_instanceIds.png", ids.astype(np.uint16)
                )
    return root


@pytest.mark.parametrize("name", shipped_configs())
def test_every_config_that_ships_trains(name: str, tmp_path: Path):
    "Two steps at the smallest sizes, through the same door as a person."
    from semsynth.cli import main

    config = read_config(shipped_configs()[name])
    words = [f"--data-root={write_dataset(config.data['name'], tmp_path / 'data')}"]
    words += [
        "data.resolution=32" if config.data["name"] == "synthetic" else "data.resolution=[32, 64]"
    ]
    words += [words[-1].replace("resolution", "load_resolution")] + tiny(config.model["name"])
    words += [
        "train.num_steps=2",
        "train.batch_size=2",
        "train.num_workers=0",
        'train.start_from=""',  # weights that ship are larger than this
        f"--run-dir={tmp_path / 'run'}",
    ]
    if config.data["name"] == "synthetic":
        words.pop(0)
    if config.model["name"] == "stable_diffusion":  # nobody ships it, so a tiny one stands in
        base = tiny_stable_diffusion.write(tmp_path / "stable_diffusion")
        words += [f"model.base={base}", "train.precision=32-true", "train.accumulate=1"]
    assert main(["train", f"--config={shipped_configs()[name]}", "--gpus=0", *words]) == 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2 and "nan" not in rows[1]


@pytest.mark.parametrize("name", shipped_configs())
def test_every_config_says_what_it_costs(name: str):
    text = shipped_configs()[name].read_text()
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ") and len(comment) >= 3 and "semsynth train" in text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_has_a_config(dataset: str, model: str):
    config = find_config(dataset, model)
    assert config.data["name"] == dataset and config.model["name"] == model
    classes = 12 if model == "vqgan" else 3  # as many as its first stage sees
    built = build_model(find_config(dataset, model, tiny(model)), classes)
    assert set(config.optim) == set(built.trained)


@pytest.mark.parametrize("model", MODELS)
def test_every_argument_of_a_builder_can_be_written_and_read(model: str):
    "Whatever a signature holds, a file can say: default and presets come back as they were."
    settings = model_settings(model)
    for preset in MODELS[model].presets.values():
        for key, parameter in settings.items():
            value = preset.get(key, parameter.default)
            written = list(value) if type(value) is tuple else value  # a file knows lists only
            assert read_value(yaml.safe_load(as_yaml(value)), parameter, key) == written
    assert set(argument_comments(MODELS[model].builder)) - {"num_classes"} <= set(settings)


def test_a_resolved_config_reads_back_and_changes_no_more():
    config = resolved(find_config("facades", "pix2pix", ["model.channels=7", "data.root=here"]))
    again = checked(yaml.safe_load(config.to_yaml()))
    assert again == config == resolved(again)
    assert config.model["channels"] == 7 and config.train["seed"] == 0


def test_a_value_beats_the_preset_and_the_preset_beats_the_default():
    preset = MODELS["cgan"].presets["mini"]
    default = model_settings("cgan")["channels"].default
    assert preset["channels"] != default
    for overrides, channels in (
        ([], preset["channels"]),
        (["model.channels=5"], 5),
        (["model.preset=null"], default),
    ):
        assert resolved(find_config("synthetic", "cgan", overrides)).model["channels"] == channels


def parameter(annotation: object) -> Parameter:
    return Parameter("x", Parameter.KEYWORD_ONLY, annotation=annotation)


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("1e-4", float, 1e-4),  # text for YAML 1.1, and what everybody writes
        ("2.0e-4", float, 2e-4),
        ("3", float, 3.0),
        ("3", int, 3),
        ("true", bool, True),
        ("null", int | None, None),
        ("[3, 4]", int | tuple[int, int], [3, 4]),
        ("7", int | tuple[int, int], 7),
        ("[3, 4]", int | Sequence[int], [3, 4]),
        ("hinge", Literal["hinge", "least_squares"], "hinge"),
        ("cityscapes_35", type(FACADES), "cityscapes_35"),
        ("2024", str | Path | None, "2024"),  # a folder may be called so
    ],
)
def test_values_get_the_type_of_their_argument(text: str, annotation: object, value: object):
    read = read_value(yaml.safe_load(text), parameter(annotation), "x")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "annotation", "takes"),
    [
        ("3.5", int, "a whole number"),
        ("true", int, "a whole number"),
        ("true", float, "a number"),
        ("fast", float, "a number"),
        ("yes please", bool, "true or false"),
        ("1", bool, "true or false"),
        ("hing", Literal["hinge", "least_squares"], "one of hinge, least_squares"),
        ("[1, 2, 3]", tuple[int, int], "a list of 2 values, each a whole number"),
        ("[1, x]", int | Sequence[int], "a whole number or a list, each a whole number"),
        (".nan", float, "not negative"),
        (".inf", float, "not negative"),
        ("-1", int, "not negative"),
    ],
)
def test_a_wrong_value_is_a_sentence(text: str, annotation: object, takes: str):
    with pytest.raises(InputError, match=takes):
        read_value(yaml.safe_load(text), parameter(annotation), "x")


def test_objects_have_names_in_a_config(tmp_path: Path):
    config = find_config("cityscapes", "cgan", ["data.label_space=cityscapes_35"])
    config.data["root"] = str(write_dataset("cityscapes", tmp_path))
    assert build_dataset(config, "val").label_space is CITYSCAPES_35
    assert resolved(config).data["label_space"] == "cityscapes_35"


def test_other_data_keep_what_they_understand():
    config = find_config("synthetic", "cgan", ["data.num_images=5"])
    other = configs.with_dataset(config, "facades", "there")
    assert other.data == {
        "name": "facades",
        "resolution": 128,
        "load_resolution": 128,
        "flip": True,
        "root": "there",
    }
    assert config.data["num_images"] == 5


# Weights


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    "A tiny model of each family, and the file that it was saved to."
    config = find_config("synthetic", request.param, tiny(request.param))
    model = build_model(config, FACADES.num_classes).eval()
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    return save_weights(path, model, config, FACADES, "A card.", {"step": 3}), model, config


def test_saving_twice_changes_nothing(saved, tmp_path: Path):
    "Half precision rounds once; what is loaded is saved to the same bytes."
    path, model, config = saved
    loaded = load_weights(path)
    again = save_weights(
        tmp_path / path.name,
        loaded.model,
        loaded.config,
        loaded.label_space,
        "A card.",
        loaded.facts,
    )
    assert again.read_bytes() == path.read_bytes()
    assert (
        loaded.config == config and loaded.label_space == FACADES and loaded.facts == {"step": "3"}
    )


def test_a_loaded_model_draws_what_the_saved_one_drew(saved):
    path, model, config = saved
    label_map = torch.arange(1024).reshape(1, 32, 32) % FACADES.num_classes
    rng = torch.Generator()
    images = [
        m.sample(label_map, rng=rng.manual_seed(0)) for m in (model, load_weights(path).model)
    ]
    assert (images[0] - images[1]).abs().max() < 0.02
    assert images[1].dtype is torch.float32


def test_weights_are_small_and_leave_the_judge_at_home(saved):
    path, model, _ = saved
    with safe_open(path, framework="pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}
    assert not any(key.startswith("discriminator") for key in kinds) and set(kinds.values()) >= {
        "F16"
    }
    numbers = sum(value.numel() for value in sampling_state(model).values())
    assert path.stat().st_size < 2.5 * numbers + 20_000


def test_what_was_given_stays_at_home_and_must_be_the_same(saved, monkeypatch, tmp_path: Path):
    _, model, config = saved
    learned = model.trained[-1]
    monkeypatch.setattr(type(model), "given", (learned,))
    path = save_weights(tmp_path / "small.safetensors", model, config, FACADES)
    with safe_open(path, framework="pt") as file:
        assert not any(key.startswith(f"{learned}.") for key in file.keys())
        kept = json.loads(file.metadata()["semsynth"])["given"]
    assert kept == fingerprints(model)
    torch.manual_seed(1)  # other weights than those of `saved`
    with pytest.raises(InputError, match=f"was trained with another {learned}"):
        load_weights(path)
    monkeypatch.setattr(configs, "build_model", lambda *_: model)
    assert load_weights(path).model is model


def test_a_card_lies_beside_the_weights(saved):
    path, _, config = saved
    card = path.with_suffix(".md").read_text()
    assert card.startswith(f"# {path.stem}\n\nA card.\n") and "| step | 3 |" in card
    assert config.to_yaml().strip() in card


def test_a_number_too_large_for_half_precision_survives(saved, tmp_path: Path):
    path, _, config = saved
    model = load_weights(path).model
    name, weight = next(
        (name, value) for name, value in model.named_parameters()
        if value.ndim > 1 and name in own_state(model)
    )
    with torch.no_grad():
        weight[(0,) * weight.ndim] = 1e6
    loaded = load_weights(
        save_weights(tmp_path / "large.safetensors", model, config, FACADES)
    ).model
    assert torch.equal(loaded.get_parameter(name), weight)


def test_load_says_what_ships():
    with pytest.raises(InputError, match="no weights ship as 'pix2pux'"):
        semsynth.load("pix2pux")


@pytest.mark.parametrize("dataset", ["synthetic", "facades"])
def test_one_of_each_family_stands_for_a_dataset(dataset: str):
    found = configs.shipped_synthesizers(dataset)
    families = [weights.config.model["name"] for weights in found.values()]
    assert sorted(families) == sorted(MODELS) and "sdm-64" not in found


def test_load_serves_what_ships(saved, monkeypatch: pytest.MonkeyPatch):
    path, _, _ = saved
    monkeypatch.setattr(configs, "WEIGHTS", path.parent)
    assert not semsynth.load(path.stem).training


@pytest.mark.parametrize("model", MODELS)
def test_sampling_options_are_those_of_the_signature(model: str):
    options = sampling_options(find_config("synthetic", model))
    assert "rng" not in options and all(p.kind is Parameter.KEYWORD_ONLY for p in options.values())


# The package


def test_importing_semsynth_imports_nothing_heavy():
    code = "import sys, semsynth; print(sorted({'torch', 'semsynth.configs'} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_wheel_holds_the_module_and_the_files_beside_it(root: Path, tmp_path: Path):
    "configs.py and the folder configs/ share a name: the module is imported, the folder is data."
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
    ]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(root), str(source)], check=True, capture_output=True)
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")

    code = "import semsynth.configs as c; print(c.__file__, *c.shipped_configs())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert (
        answer[0] == str(tmp_path / "site" / "semsynth" / "configs.py")
        and "pix2pix-facades" in answer
    )


def test_a_config_holds_plain_values_only():
    for path in shipped_configs().values():
        assert yaml.safe_load(yaml.safe_dump(asdict(read_config(path)))) == asdict(
            read_config(path)
        )
