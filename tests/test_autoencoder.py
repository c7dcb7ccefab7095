"First stages: what they promise, published weights under their names, and others' networks."
import copy
import math

import pytest
import torch
from blocks import Blocks, Breaks, PowerCut, assert_equal, assert_equal_runs, optim, same
from conftest import folder_or_skip, shared
from diffusers import AutoencoderKL, AutoencoderTiny

from semsynth import configs
from semsynth.autoencoder import (
    PRESETS,
    KLAutoencoder,
    LatentStatistics,
    Sizes,
    StableDiffusionAutoencoder,
    TinyAutoencoder,
    autoencoder,
    cosine_basis,
    first_stage_weights,
    load_autoencoder,
    official_sizes,
    psnr,
    shipped_autoencoders,
)
from semsynth.datasets import Facades, Resize, evaluation_batches, training_batches
from semsynth.labels import InputError
from semsynth.metrics import bootstrap, image_scores
from semsynth.synthesizer import training_loop
from semsynth.training import SynthesisData, TrainOptions, fit, make_optimizers

WEIGHTS = shared("SEMSYNTH_TEST_WEIGHTS", "weights")
DATASET = Blocks(num_images=8, resolution=32)


def build(seed: int = 0, **changes) -> KLAutoencoder:
    torch.manual_seed(seed)
    small = {"channels": 8, "multipliers": (1, 2), "groups": 4, "latent_channels": 4}
    return autoencoder(**PRESETS["mini"] | small | changes)


# --- what every Trainable promises

def test_exactly_what_is_trained_moves_and_all_of_it_gets_gradients():
    model = build(perceptual="synthetic", cosines=False, middle_attention=True)
    before = copy.deepcopy(model.state_dict())
    (log,) = training_loop(model, [DATASET.batch()], make_optimizers(model, optim(model)))
    assert set(log) == {f"autoencoder/{term}" for term in ("l1", "perceptual", "kl")}
    assert all(key.startswith("autoencoder.") for key in before)
    for key, weight in model.named_parameters():
        assert weight.grad is not None and not torch.equal(weight, before[key]), key


def options(**changes) -> TrainOptions:
    return TrainOptions(**{
        "num_steps": 4, "batch_size": 2, "lr_schedule": "constant", "log_every": 1,
        "checkpoint_every": 2, "sample_every": 0, "ema_decay": 0.9, **changes,
    })


def run(model, folder, transform=same, resume=False):
    data = SynthesisData(DATASET, transform, options(), DATASET.batch())
    return fit(model, data, optim(model), options(), folder, resume=resume, progress=False)


def test_lightning_adds_nothing_and_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    plain, whole = build(), build()
    batches = training_batches(DATASET, same, batch_size=2, num_steps=4, seed=0)
    torch.manual_seed(options().seed)
    list(training_loop(plain, batches, make_optimizers(plain, optim(plain))))
    run(whole, tmp_path / "whole")
    assert_equal(dict(plain.state_dict()), dict(whole.state_dict()))
    assert (tmp_path / "whole" / "gallery.html").is_file()

    with pytest.raises(PowerCut):
        run(build(), tmp_path / "broken", Breaks(7))
    resumed = build(seed=5)
    run(resumed, tmp_path / "broken", resume=True)
    assert_equal(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_latents_and_images_have_their_sizes_and_encoding_is_deterministic(size, rng):
    model = build().eval()
    image = 2 * torch.rand(2, 3, *size, generator=rng) - 1
    latents = model.encode(image)
    assert latents.shape == (2, 4, size[0] // 4, size[1] // 4)
    assert torch.equal(latents, model.encode(image))
    assert model.decode(100 * latents).abs().max() <= 1
    with pytest.raises(InputError, match="multiples of 4 pixels"):
        model.encode(image[..., :-1])


# --- parts

@pytest.mark.parametrize("count, side", [(3, 1), (4, 4), (48, 4), (12, 2)])
def test_cosines_are_orthonormal(count, side):
    rows = cosine_basis(count, side).flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(count), atol=1e-5)


def test_there_are_no_more_cosines_than_pixels():
    with pytest.raises(InputError, match="hold 12 numbers, not 13"):
        cosine_basis(13, 2)


def test_with_all_cosines_nothing_is_lost_before_the_first_step(rng):
    model = build(latent_channels=48).eval()
    image = 2 * torch.rand(2, 3, 16, 16, generator=rng) - 1
    assert torch.allclose(model.decode(model.encode(image)), image, atol=1e-5)


def test_statistics_find_moments_and_standardise(rng):
    statistics = LatentStatistics(2)
    code = torch.randn(64, 2, 8, 8, generator=rng) * torch.tensor([3.0, 0.5])[:, None, None] + 2
    assert torch.equal(statistics.standardise(code), code), "untouched, until something is seen"
    for part in code.split(2):
        statistics.update(part)
    assert torch.allclose(statistics.std, torch.tensor([3.0, 0.5]), rtol=0.1)
    statistics.measure(code.split(5))
    latents = statistics.standardise(code)
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(2), atol=1e-3)
    assert torch.allclose(statistics.restore(latents), code, atol=1e-4)


def test_a_few_steps_beat_the_best_linear_start(rng):
    "Colours in blocks are easy: the network finds more than four cosines tell."
    data, model = Blocks(num_images=8, resolution=64), build(channels=16)
    image = data.batch(8).image

    def distortion() -> float:
        with torch.no_grad():
            return psnr(model.eval().decode(model.encode(image)), image).mean().item()

    before = distortion()
    batches = training_batches(data, same, batch_size=4, num_steps=40)
    optimizers = make_optimizers(model, {"autoencoder": {"lr": 2e-3}})
    list(training_loop(model, batches, optimizers))
    assert distortion() > before + 2


def test_sizes_that_cannot_be_built_are_sentences():
    with pytest.raises(InputError, match="cannot be normalised in 32 groups"):
        build(groups=32)
    with pytest.raises(InputError, match="at least 1"):
        build(multipliers=())


# --- published weights

def latent_diffusion_names(network: AutoencoderKL) -> dict[str, torch.Tensor]:
    "diffusers' state dict under the names of the published code, restated."
    parts = {"conv_norm_out": "norm_out", "mid_block.resnets.0": "mid.block_1",
             "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
             "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
             "conv_shortcut": "nin_shortcut", "resnets": "block"}
    last = len(network.config.block_out_channels) - 1
    renamed = {}
    for name, value in network.state_dict().items():
        for theirs, ours in parts.items():
            name = name.replace(theirs, ours)
        for n in range(last + 1):
            name = name.replace(f"down_blocks.{n}.downsamplers.0", f"down.{n}.downsample")
            name = name.replace(f"up_blocks.{n}.upsamplers.0", f"up.{last - n}.upsample")
            name = name.replace(f"down_blocks.{n}.", f"down.{n}.")
            name = name.replace(f"up_blocks.{n}.", f"up.{last - n}.")
        attention = "attn_1" in name and name.endswith("weight") and "norm" not in name
        renamed[name] = value[:, :, None, None] if attention else value
    return renamed


def kl_network(**changes) -> AutoencoderKL:
    sizes = {"block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 16, **changes}
    count = len(sizes["block_out_channels"])
    network = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * count,
        up_block_types=["UpDecoderBlock2D"] * count, **sizes,
    )
    for name, weight in network.named_parameters():  # norms that do something
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.2)
    return network.eval()


@pytest.mark.parametrize("sizes", [
    {}, {"block_out_channels": [32, 64, 64], "layers_per_block": 2, "latent_channels": 3},
    {"mid_block_add_attention": False}, {"block_out_channels": [32]},
])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@torch.no_grad()
def test_published_names_give_what_diffusers_computes(sizes, prefix, rng):
    network = kl_network(**sizes)
    weights = {prefix + name: v for name, v in latent_diffusion_names(network).items()}
    if prefix:
        weights["model.diffusion_model.out.2.bias"] = torch.zeros(4)
        weights["first_stage_model.loss.discriminator.main.0.bias"] = torch.zeros(4)
    ours = KLAutoencoder.from_official(weights, scaling_factor=0.5)
    image = 2 * torch.rand(1, 3, 16, 16, generator=rng) - 1
    theirs = network.encode(image).latent_dist
    posterior = ours.posterior(image)
    assert torch.allclose(posterior.mean, theirs.mean, atol=1e-5)
    assert torch.allclose(posterior.log_variance, theirs.logvar, atol=1e-4)
    assert torch.allclose(ours.encode(image), 0.5 * theirs.mean, atol=1e-5)
    decoded = network.decode(theirs.mean).sample.clamp(-1, 1)
    assert torch.allclose(ours.decode(0.5 * theirs.mean), decoded, atol=1e-4)


def test_paper_preset_has_the_published_count():
    with torch.device("meta"):
        count = sum(w.numel() for w in autoencoder().autoencoder["networks"].parameters())
    assert count == 83_653_863


def test_attention_and_plain_resampling_are_read_from_names():
    weights = first_stage_weights(latent_diffusion_names(kl_network()))
    assert official_sizes(weights) == Sizes(32, (1, 2), 1)
    without = {name: v for name, v in weights.items() if "sample" not in name}
    assert not official_sizes(without).learned
    block = {name.replace("mid.attn_1", "down.1.attn.0"): v for name, v in weights.items()
             if "encoder.mid.attn_1" in name}
    assert official_sizes(weights | block).attention_levels == (1,)


def test_weights_that_do_not_fit_are_a_sentence():
    weights = latent_diffusion_names(kl_network())
    with pytest.raises(InputError, match="holds encoder.extra.weight, for which there is no place"):
        KLAutoencoder.from_official(weights | {"encoder.extra.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="lacks decoder.conv_out.bias"):
        KLAutoencoder.from_official(
            {name: v for name, v in weights.items() if name != "decoder.conv_out.bias"}
        )


# --- others' networks

@torch.no_grad()
def test_stable_diffusions_autoencoder_is_what_it_wraps(tmp_path, rng):
    network = kl_network(scaling_factor=0.3, shift_factor=0.1)
    network.save_pretrained(tmp_path)
    stage = StableDiffusionAutoencoder.read(tmp_path)
    image = 2 * torch.rand(1, 3, 16, 16, generator=rng) - 1
    latents = stage.encode(image)
    assert torch.allclose(latents, 0.3 * (network.encode(image).latent_dist.mean - 0.1), atol=1e-6)
    code = latents / 0.3 + 0.1
    assert torch.allclose(stage.decode(latents), network.decode(code).sample.clamp(-1, 1))
    assert (stage.latent_channels, stage.downsampling, stage.trained) == (4, 2, ())
    assert not any(weight.requires_grad for weight in stage.parameters())


@torch.no_grad()
def test_taesd_is_what_it_wraps_and_is_read_from_its_authors_files(tmp_path, rng):
    network = AutoencoderTiny(
        encoder_block_out_channels=[8] * 3, decoder_block_out_channels=[8] * 3,
        num_encoder_blocks=[1, 2, 1], num_decoder_blocks=[2, 1, 1], latent_channels=5,
    ).eval()
    network.save_pretrained(tmp_path)
    image = 2 * torch.rand(1, 3, 16, 16, generator=rng) - 1
    latents = network.encode(image).latents
    halves = [network.encoder.layers.state_dict(), {
        f"{int(name.split('.', 1)[0]) + 1}.{name.split('.', 1)[1]}": value
        for name, value in network.decoder.layers.state_dict().items()
    }]
    for stage in (TinyAutoencoder.read(tmp_path), TinyAutoencoder.from_official(*halves)):
        assert (stage.latent_channels, stage.downsampling) == (5, 4)
        assert torch.allclose(stage.encode(image), latents, atol=1e-6)
        expected = network.decode(latents).sample.clamp(-1, 1)
        assert torch.allclose(stage.decode(latents), expected, atol=1e-6)


@torch.no_grad()
def test_published_taesd_reconstructs_real_facades(facades_folder):
    folder = folder_or_skip(WEIGHTS, "SEMSYNTH_TEST_WEIGHTS")
    halves = [torch.load(folder / f"taef2_{half}.pth", weights_only=True)
              for half in ("encoder", "decoder")]
    stage = TinyAutoencoder.from_official(*halves)
    batches = evaluation_batches(Facades(facades_folder, "test"), Resize(256), batch_size=2)
    image = next(iter(batches)).image
    latents = stage.encode(image)
    assert latents.shape == (2, 32, 32, 32)
    assert psnr(stage.decode(latents), image).mean() > 29


# --- trained weights

def test_a_first_stage_draws_nothing_from_maps_and_says_so():
    config = configs.find_config("facades", "autoencoder")
    with pytest.raises(InputError, match="autoencoder is a first stage"):
        configs.sampling_options(config)


def test_the_command_line_trains_and_exports_one_and_says_what_it_cannot_do(tmp_path, capsys):
    from semsynth.cli import main

    run, file = tmp_path / "run", tmp_path / "mine.safetensors"
    words = ["data.resolution=32", "data.load_resolution=32", "model.channels=8", "model.groups=4",
             "train.num_steps=2", "train.batch_size=2", f"--run-dir={run}", "--gpus=0"]
    assert main(["train", "--dataset=synthetic", "--model=autoencoder", *words]) == 0
    assert f"Next: semsynth export {run}" in capsys.readouterr().out
    assert main(["export", str(run), "-o", str(file)]) == 0
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "| PSNR | " in card and "| latents | 4 x 8 x 8, std " in card
    assert file.with_suffix(".png").is_file()
    for verb in (["sample", str(file), "x.png", "-o", str(tmp_path)],
                 ["evaluate", str(file), "-o", str(tmp_path)],
                 ["compare", str(file), "-o", str(tmp_path)], ["paint", str(file)]):
        assert main(verb) == 2
        assert "autoencoder is a first stage" in capsys.readouterr().err, verb


def test_saved_weights_load_by_either_door(tmp_path, rng):
    words = ["model.channels=8", "model.groups=4", "model.perceptual=none"]
    config = configs.resolved(configs.find_config("synthetic", "autoencoder", words))
    model = configs.build_model(config, 12).eval()
    model.autoencoder["statistics"].update(torch.randn(2, 4, 8, 8, generator=rng))
    path = configs.save_weights(tmp_path / "mine.safetensors", model, config, DATASET.label_space)
    image = 2 * torch.rand(1, 3, 32, 32, generator=rng) - 1
    whole, alone = configs.load_weights(path).model, load_autoencoder(path)
    with torch.no_grad():
        assert torch.equal(whole.encode(image), alone.encode(image))
        assert torch.allclose(whole.encode(image), model.encode(image), atol=1e-2)
    assert not any(weight.requires_grad for weight in alone.parameters())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="holds no autoencoder, or is damaged"):
        load_autoencoder(path)
    with pytest.raises(InputError, match="there are no autoencoder weights autoencoder-x"):
        load_autoencoder("autoencoder-x")


@pytest.mark.parametrize("name", shipped_autoencoders() or [
    pytest.param("none", marks=pytest.mark.skip(reason="no first stage ships"))
])
@torch.no_grad()
def test_shipped_weights_reconstruct_as_their_cards_say(name, test_data):
    path = shipped_autoencoders()[name]
    weights = configs.load_weights(path)
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    for fact in ("step", "minutes", "machine", "commit", "terms of the data", "PSNR", "latents"):
        assert f"| {fact}" in card, fact
    assert path.stat().st_size < 4e6

    data = configs.with_dataset(weights.config, root=str(test_data / "facades")
                                if weights.config.data["name"] == "facades" else None)
    dataset = configs.build_dataset(data, "test")
    batch = next(iter(evaluation_batches(dataset, configs.build_resize(data), batch_size=8)))
    latents = weights.model.encode(batch.image)
    image = weights.model.decode(latents)
    assert math.isclose(latents.std().item(), 1, abs_tol=0.15)
    waves = cosine_basis(weights.model.latent_channels, weights.model.downsampling)
    code = torch.nn.functional.conv2d(batch.image, waves, stride=4)
    linear = torch.nn.functional.conv_transpose2d(code, waves, stride=4).clamp(-1, 1)
    assert psnr(image, batch.image).mean() > psnr(linear, batch.image).mean() + 1
    told = float(weights.facts["L1"].split()[0])
    measured = bootstrap(image_scores(image, batch.image)["L1"]).value
    assert math.isclose(told, measured, rel_tol=0.25)
