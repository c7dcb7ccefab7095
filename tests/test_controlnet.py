"ControlNet: silent at first, equal to diffusers' on its weights, and the base never moves."
import copy

import pytest
import tiny_stable_diffusion as tiny
import torch
from blocks import Blocks, assert_equal, optim
from safetensors import safe_open
from test_official import scramble
from torch import Tensor

from semsynth.configs import build_model, checked, load_weights, save_weights
from semsynth.controlnet import (
    ADE20K,
    PRESETS,
    ControlEncoder,
    ControlledDiffusion,
    ControlNet,
    LatentDiffusion,
    PublishedTrunk,
    Trunk,
    ade20k_colours,
    controlled,
    controlnet,
    copied,
    first_colours,
    in_colours,
    latent_diffusion,
    load_latent_diffusion,
    question,
    read_control_net,
    read_stable_diffusion,
    stable_diffusion,
)
from semsynth.labels import FACADES, LABEL_SPACES, Batch, InputError, LabelSpace, null_label_map
from semsynth.sdm import SCHEDULES
from semsynth.synthesizer import training_loop
from semsynth.training import make_optimizers

SMALL = {
    "channels": 8, "multipliers": (1.0, 2.0), "num_blocks": 1, "attention_at": (2,),
    "head_channels": 8, "groups": 4, "schedule": "cosine", "prediction": "v_prediction",
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    "The file of a small base without the zeros it starts from."
    torch.manual_seed(0)
    model = latent_diffusion(**SMALL)
    scramble(model.denoiser)
    config = checked({
        "data": {"name": "synthetic"}, "model": {"name": "latent_diffusion", **SMALL},
    })
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    return str(save_weights(path, model, config, FACADES))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("stable_diffusion"))


@pytest.fixture
def batch() -> Batch:
    return Blocks(resolution=32).batch()


def small(base: str, **options) -> ControlledDiffusion:
    torch.manual_seed(0)
    return controlnet(12, base=base, **(PRESETS["mini"] | options))


def loud(model: ControlledDiffusion) -> ControlledDiffusion:
    "The same, without the zeros it starts from."
    scramble(model.control_net)
    return model.eval()


# --- the course's own

def test_a_question_and_its_answer_give_the_data_back():
    schedule, x_0 = SCHEDULES["cosine"](1000), torch.randn(6, 2, 3, 3)
    asked = question(x_0, schedule, "noise", 1000)
    t = (asked.timestep + 1) / 1000
    alpha, sigma = (part(t)[:, None, None, None] for part in (schedule.alpha, schedule.sigma))
    seen = t < 0.9
    found = (asked.x_t - sigma * asked.answer) / alpha
    assert torch.allclose(found[seen], x_0[seen], atol=1e-4)


def test_the_base_comes_back_from_its_file_frozen(base):
    model = load_latent_diffusion(base)
    assert not any(weight.requires_grad for weight in model.parameters())
    torch.manual_seed(0)
    fresh = latent_diffusion(**SMALL)
    scramble(fresh.denoiser)
    for key, value in fresh.denoiser.state_dict().items():  # kernels are kept in 16 bits
        assert torch.allclose(model.denoiser.state_dict()[key], value, rtol=1e-3, atol=1e-6), key
    drawn = [model.draw(2, 32, 48, rng=rng(), num_steps=2) for _ in range(2)]
    assert drawn[0].shape == (2, 3, 32, 48) and torch.equal(*drawn)
    with pytest.raises(InputError, match="multiples of 8 pixels"):
        model.draw(1, 36, 32)


def test_before_the_first_step_it_is_the_base_bitwise(base, batch):
    model = small(base)
    drawing = load_latent_diffusion(base)
    x_t, moment = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    said = model.control_net(x_t, moment, model.condition(batch.label_map, None, 12))
    assert not any(summand.any() for summand in said)
    assert torch.equal(controlled(model.denoiser, x_t, moment, said), drawing.denoiser(x_t, moment))


@pytest.mark.parametrize("volume", [0.0, 1.0])
def test_silence_draws_what_the_base_draws(base, batch, volume):
    model, drawing = small(base), load_latent_diffusion(base)
    model = loud(model) if volume == 0 else model.eval()
    image = model.sample(batch.label_map, rng=rng(), num_steps=3, control_scale=volume)
    assert torch.allclose(image, drawing.draw(2, 32, 32, rng=rng(), num_steps=3), atol=1e-5)


def test_zero_convolutions_learn_first_and_the_rest_one_step_later(base, batch):
    model = small(base)
    control = model.condition(batch.label_map, None, 12)
    x_t, moment = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])

    def moved() -> dict[str, bool]:
        model.zero_grad()
        said = model.control_net(x_t, moment, control)
        controlled(model.denoiser, x_t, moment, said).square().mean().backward()
        return {name: any(bool(weight.grad.any()) for weight in part.parameters())
                for name, part in model.control_net.named_children()}

    assert moved() == {"trunk": False, "control_encoder": False, "zero_convs": True}
    torch.optim.SGD(model.control_net.parameters(), 1.0).step()
    assert all(moved().values())


def test_training_moves_the_copy_and_not_a_bit_of_the_base(base, batch):
    model = small(base)
    before = copy.deepcopy(dict(model.state_dict()))
    assert model.given == ("first_stage", "denoiser")
    list(training_loop(model, [batch] * 3, make_optimizers(model, optim(model))))
    after = dict(model.state_dict())
    for part in model.given:
        inside = [key for key in before if key.startswith(f"{part}.")]
        assert_equal({k: before[k] for k in inside}, {k: after[k] for k in inside})
    for part in ("trunk", "control_encoder", "zero_convs"):
        assert any(not torch.equal(before[key], after[key])
                   for key in before if key.startswith(f"control_net.{part}.")), part


def test_it_learns_the_map_that_it_is_told(base):
    "A base that knows nothing, two maps, two grey images: only the map says which one is meant."
    label_map = torch.arange(2).reshape(2, 1, 1).repeat(1, 32, 32)
    image = torch.tensor([-0.6, 0.6]).reshape(2, 1, 1, 1).repeat(1, 3, 32, 32)
    model = small(base, null_probability=0.0)

    @torch.no_grad()
    def loss(told: Tensor) -> float:
        torch.manual_seed(0)
        rounds = [next(model.training_losses(Batch(image, told, told), 0)) for _ in range(20)]
        return sum(terms["v_prediction"].item() for _, terms in rounds) / len(rounds)

    before = loss(label_map)
    optimizers = {"control_net": torch.optim.Adam(model.control_net.parameters(), 3e-3)}
    list(training_loop(model, [Batch(image, label_map, label_map)] * 240, optimizers))
    after, swapped = loss(label_map), loss(label_map.flip(0))
    assert after < 0.85 * before
    assert after < 0.95 * swapped


def test_guidance_leads_from_the_base_to_the_map(base, batch):
    model = loud(small(base))
    calls = []
    model.control_net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    x_t, timestep = torch.randn(2, 4, 8, 8), torch.tensor([500, 500])
    control = model.condition(batch.label_map, None, 12)
    ones = torch.ones(2, len(model.control_net.zero_convs))
    with torch.no_grad():
        told, alone = (model.predict(x_t, timestep, control, volume * ones) for volume in (1, 0))
        both = model.predict(
            *(torch.cat([part, part]) for part in (x_t, timestep, control)),
            torch.cat([0 * ones, ones]),
        )
    assert calls == [2, 2]  # the null rows never reach the control net
    assert torch.allclose(both, torch.cat([alone, told]), atol=1e-5)
    assert not torch.allclose(told, alone, atol=1e-3)


@pytest.mark.parametrize("picture", ["onehot", "colours"])
def test_an_empty_map_is_told_as_nothing(base, batch, picture):
    model = small(base, picture=picture)
    assert not model.condition(null_label_map(batch.label_map), None, 12).any()
    wrong = batch.label_map.clone()
    wrong[0, 0, 0] = 12
    with pytest.raises(InputError, match="holds id 12"):
        model.sample(wrong)


def test_maps_are_dropped_as_often_as_asked(base, batch):
    for probability, told in ((0.0, True), (1.0, False)):
        (control,) = small(base, null_probability=probability).told(batch)
        assert bool(control.any()) == told


def test_sizes_that_do_not_fit_are_sentences(base, batch):
    with pytest.raises(InputError, match="8 times smaller, but latents of .* are 4 times"):
        controlnet(12, base=base, widths=(4, 8), patch=4)
    narrow = batch._replace(image=batch.image[..., :20], label_map=batch.label_map[..., :20])
    with pytest.raises(InputError, match="multiples of 8 pixels"):
        next(small(base).training_losses(narrow, 0))
    with pytest.raises(InputError, match="no latent_diffusion weights nowhere"):
        controlnet(12, base="nowhere")


def test_a_damaged_base_is_a_sentence(base, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(open(base, "rb").read()[:500])
    with pytest.raises(InputError, match="holds no latent_diffusion, or is damaged"):
        load_latent_diffusion(broken)


def test_a_trunk_is_the_network_up_to_its_middle(base):
    unet = load_latent_diffusion(base).denoiser
    trunk = copied(Trunk(unet))
    assert all(weight.requires_grad for weight in trunk.parameters())
    x_t, moment = torch.randn(1, 4, 8, 8), torch.tensor([40])
    features = trunk(x_t, moment, torch.zeros(1, 1, 1, 1))
    assert [feature.shape[1] for feature in features] == trunk.widths
    with torch.no_grad():
        said = [torch.zeros_like(feature) for feature in features]
        assert torch.equal(controlled(unet, x_t, moment, said), unet(x_t, moment))


def test_the_base_learns_in_its_denoiser_alone(batch):
    model = latent_diffusion(**SMALL)
    before = copy.deepcopy(dict(model.state_dict()))
    logs = list(training_loop(model, [batch] * 2, make_optimizers(model, optim(model))))
    after = model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("denoiser.") for key in moved)
    assert all(log["denoiser/v_prediction"] > 0 for log in logs) and model.given == ("first_stage",)


@pytest.mark.parametrize("name", ["controlnet", "stable_diffusion"])
def test_weights_hold_the_copy_alone_and_find_their_base_again(name, base, folder, tmp_path, batch):
    where = {"controlnet": base, "stable_diffusion": str(folder)}[name]
    preset = {"controlnet": "mini", "stable_diffusion": "paper"}[name]
    config = checked({
        "data": {"name": "synthetic"}, "model": {"name": name, "preset": preset, "base": where},
    })
    model = loud(build_model(config, 12))
    path = save_weights(tmp_path / "weights.safetensors", model, config, FACADES)
    with safe_open(path, "pt") as file:
        assert all(key.startswith("control_net.") for key in file.keys())
    again = load_weights(path).model
    images = [m.sample(batch.label_map, rng=rng(), num_steps=2) for m in (model, again)]
    assert (images[0] - images[1]).abs().mean() < 0.02  # kernels are kept in 16 bits


# --- colours

@pytest.mark.parametrize("space", LABEL_SPACES.values(), ids=LABEL_SPACES)
def test_every_label_space_has_its_colours(space):
    table = ade20k_colours(space)
    known = {tuple(colour) for colour in ADE20K.palette} | {(0, 0, 0)}
    assert {tuple(row) for row in (255 * table).round().long().tolist()} <= known
    assert not table[space.num_classes:].any()


def test_ade20k_itself_is_told_in_its_own_colours():
    table = ade20k_colours(ADE20K)
    assert torch.equal((255 * table[:150]).round().long(), torch.tensor(ADE20K.palette))
    assert torch.equal(table, first_colours(150))
    with pytest.raises(InputError, match="150 classes, but num_classes is 151"):
        first_colours(151)
    with pytest.raises(InputError, match="has a class chair leg.*did you mean"):
        ade20k_colours(LabelSpace("mine", ("wall", "chair leg"), ((0, 0, 0), (1, 1, 1))))


def test_colours_stand_where_the_labels_do():
    label_map = torch.tensor([[[0, 1], [255, 1]]])
    picture = in_colours(label_map, None, 2, first_colours(2))
    assert picture.shape == (1, 3, 2, 2) and not picture[..., 1, 0].any()
    assert torch.equal(picture[0, :, 0, 1] * 255, torch.tensor(ADE20K.palette[1]).float())


# --- published weights

CONFIGS = {
    "two levels": {},
    "three levels, two blocks": {
        "block_out_channels": (8, 8, 16), "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "conditioning_embedding_out_channels": (4, 8, 12),
    },
    "as published, narrow": {
        "block_out_channels": (8, 16, 16, 16), "layers_per_block": 2, "attention_head_dim": 8,
        "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "conditioning_embedding_out_channels": (4, 8, 8, 12),
    },
    "linear, deeper": {
        "use_linear_projection": True, "transformer_layers_per_block": 2,
        "cross_attention_dim": 12, "attention_head_dim": (2, 4),
    },
    "one-hot": {"conditioning_channels": 13, "in_channels": 5},
}
each_config = pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
AT = {"num_heads": "attention_head_dim", "groups": "norm_num_groups"}


def told(theirs) -> dict:
    "What weights cannot tell."
    return {name: theirs.config[option] for name, option in AT.items()}


def worst(theirs, ours: ControlNet) -> float:
    "The largest difference of any feature, relative to the largest output."
    config = theirs.config
    side = 2 ** (len(config.block_out_channels) - 1)
    pixels = 2 * side * 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    given = torch.randn(2, config.in_channels, 2 * side, 2 * side), torch.tensor([7, 800])
    control = torch.rand(2, config.conditioning_channels, pixels, pixels)
    words = torch.randn(2, 5, config.cross_attention_dim)
    with torch.no_grad():
        down, middle = theirs(*given, words, control, return_dict=False)
        said = ours(*given, control, words)
    expected = [*down, middle]
    largest = max(feature.abs().max() for feature in expected)
    return max(((a - b).abs().max() / largest).item()
               for a, b in zip(said, expected, strict=True))


@each_config
def test_a_folder_of_diffusers_answers_as_diffusers(options, tmp_path):
    theirs = tiny.control_net(**options)
    theirs.save_pretrained(tmp_path)
    assert worst(theirs, read_control_net(tmp_path).eval()) < 1e-4


@each_config
def test_their_state_dict_answers_as_diffusers(options):
    theirs = tiny.control_net(**options)
    ours = ControlNet.from_official(theirs.state_dict(), **told(theirs)).eval()
    assert worst(theirs, ours) < 1e-4


IN_BLOCK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
            "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def single_file(theirs) -> dict[str, Tensor]:
    "The names that the authors' file has, restated block by block."
    per_level, found = theirs.config.layers_per_block + 1, {}
    deepest = len(theirs.config.conditioning_embedding_out_channels)
    ends = {"conv_in": "input_blocks.0.0", "controlnet_mid_block": "middle_block_out.0",
            "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
            "controlnet_cond_embedding.conv_in": "input_hint_block.0",
            "controlnet_cond_embedding.conv_out": f"input_hint_block.{4 * deepest - 2}"}
    for name, value in theirs.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        parts = layer.split(".")
        if layer in ends:
            place = ends[layer]
        elif parts[0] == "controlnet_down_blocks":
            place = f"zero_convs.{parts[1]}.0"
        elif parts[0] == "controlnet_cond_embedding":
            place = f"input_hint_block.{2 * int(parts[2]) + 2}"
        else:
            middle = parts[0] == "mid_block"
            kind, n = parts[1:3] if middle else parts[2:4]
            inside = ".".join(parts[3:] if middle else parts[4:])
            if middle:
                where = f"middle_block.{1 if kind == 'attentions' else 2 * int(n)}"
            elif kind == "downsamplers":
                where, inside = f"input_blocks.{per_level * (int(parts[1]) + 1)}.0", "op"
            else:
                number = per_level * int(parts[1]) + int(n) + 1
                where = f"input_blocks.{number}.{int(kind == 'attentions')}"
            place = f"{where}.{IN_BLOCK.get(inside, inside)}"
        found[f"control_model.{place}.{leaf}"] = value
    return found


@each_config
def test_a_single_file_answers_as_diffusers(options):
    theirs = tiny.control_net(**options)
    whole = single_file(theirs) | {
        "model.diffusion_model.out.2.bias": torch.zeros(4), "first_stage_model.loss": torch.ones(1),
    }
    assert worst(theirs, ControlNet.from_official(whole, **told(theirs)).eval()) < 1e-4


def test_diffusers_reads_our_restated_names_alike():
    "So that the names of the test above are the published ones, and not only ours."
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    theirs = tiny.control_net(**CONFIGS["as published, narrow"])
    again = convert_controlnet_checkpoint(single_file(theirs), theirs.config)
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_are_read_and_damaged_ones_refused(suffix, tmp_path):
    from safetensors.torch import save_file

    theirs = tiny.control_net(**CONFIGS["as published, narrow"])
    weights = {key: value.contiguous() for key, value in single_file(theirs).items()}
    path = tmp_path / f"control{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    with pytest.raises(InputError, match="groups|norm|divis"):
        read_control_net(path)  # the published file has 32 groups, this one cannot have them
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="is no file of weights, or damaged"):
        read_control_net(path)


def test_foreign_and_damaged_checkpoints_are_refused():
    theirs = tiny.control_net()
    weights, told_about = theirs.state_dict(), told(theirs)
    with pytest.raises(InputError, match="is not a ControlNet on Stable Diffusion as published"):
        ControlNet.from_official({"conv.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="no place"):
        ControlNet.from_official(weights | {"down_blocks.0.more.weight": torch.zeros(1)},
                                 **told_about)


@pytest.mark.parametrize("layout", [single_file, lambda theirs: dict(theirs.state_dict())],
                         ids=["single file", "folder"])
def test_every_tensor_that_is_missing_or_of_another_shape_is_refused(layout):
    theirs = tiny.control_net()
    weights = layout(theirs)
    for name, value in weights.items():
        less = {key: other for key, other in weights.items() if key != name}
        wider = weights | {name: torch.cat([value, value[:1]])}
        for changed in (less, wider):
            with pytest.raises(InputError) as caught:
                ControlNet.from_official(changed, **told(theirs))
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_order_of_colours_is_kept(tmp_path):
    theirs = tiny.control_net(controlnet_conditioning_channel_order="bgr")
    theirs.save_pretrained(tmp_path)
    assert worst(theirs, read_control_net(tmp_path).eval()) < 1e-4
    tiny.control_net(global_pool_conditions=True).save_pretrained(tmp_path / "pooled")
    with pytest.raises(InputError, match="told whole images"):
        read_control_net(tmp_path / "pooled")


def test_it_has_the_published_number_of_weights():
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        trunk = copied(PublishedTrunk(unet))
        ours = ControlNet(trunk, ControlEncoder(3, trunk.widths[0]))
        theirs = ControlNetModel.from_unet(unet)
    count = sum(weight.numel() for weight in ours.parameters())
    assert count == 361_279_120 == sum(weight.numel() for weight in theirs.parameters())


# --- Stable Diffusion

def on_stable_diffusion(folder, **options):
    return stable_diffusion(12, base=str(folder), **options)


CASES = {
    "one branch": {"guidance_scale": 1.0},
    "guidance": {"guidance_scale": 7.5},
    "a soft control": {"guidance_scale": 5.0, "control_scale": 0.35},
    "guess mode": {"guidance_scale": 4.0, "guess_mode": True},
    "guess mode, loud, one branch":
        {"guidance_scale": 1.0, "guess_mode": True, "control_scale": 1.5},
    "all of it": {"guidance_scale": 9.0, "guess_mode": True, "control_scale": 0.7,
                  "negative_prompt": "night, rain"},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_it_draws_what_the_pipeline_of_diffusers_draws(folder, batch, options):
    from diffusers import StableDiffusionControlNetPipeline

    model = on_stable_diffusion(folder, control=f"{folder}/controlnet").eval()
    pipe = StableDiffusionControlNetPipeline.from_pretrained(
        folder, safety_checker=None, requires_safety_checker=False, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    label_map = batch.label_map
    ours = model.sample(label_map, rng=rng(), prompt="a house in Prague", num_steps=5, **options)
    names = {"control_scale": "controlnet_conditioning_scale"}
    options = {names.get(name, name): value for name, value in options.items()}
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * 2
    theirs = pipe(
        ["a house in Prague"] * 2, model.condition(label_map, None, 12), num_inference_steps=5,
        generator=rng(), output_type="pt", **options,
    ).images
    assert (ours - (2 * theirs - 1)).abs().max() < 1e-3
    assert ours.std() > 0.05


def test_a_silent_copy_draws_what_the_base_draws(folder, batch):
    model = on_stable_diffusion(folder).eval()
    drawn = [model.sample(batch.label_map, rng=rng(), num_steps=2, control_scale=volume)
             for volume in (0.0, 1.0)]
    assert torch.allclose(*drawn, atol=1e-5)
    assert all(map(torch.equal, model.control_net.trunk.parameters(),
                   PublishedTrunk(model.denoiser).parameters()))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_training_moves_the_copy_alone(folder, batch, checkpointing):
    model = on_stable_diffusion(folder, checkpointing=checkpointing, prompt="a house")
    before = copy.deepcopy(dict(model.state_dict()))
    assert model.given == ("first_stage", "denoiser", "text_encoder")
    list(training_loop(model, [batch] * 3, make_optimizers(model, optim(model))))
    after = model.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("control_net.") for key in moved)
    assert any(key.startswith("control_net.trunk.") for key in moved)


def test_checkpointing_changes_memory_and_no_gradient(folder, batch):
    slopes = []
    for checkpointing in (True, False):
        model = on_stable_diffusion(folder, checkpointing=checkpointing).train()
        torch.manual_seed(0)
        scramble(model.control_net)
        ((_, terms),) = model.training_losses(batch, 0)
        sum(terms.values()).backward()
        slopes.append({key: weight.grad for key, weight in model.control_net.named_parameters()})
    assert all(torch.allclose(value, slopes[1][key], atol=1e-6) for key, value in slopes[0].items())


def test_half_of_the_prompts_are_empty(folder, batch):
    model = on_stable_diffusion(folder, prompt="a house")
    many = Batch(*(part[:1].expand(200, *part.shape[1:]) for part in batch))
    torch.manual_seed(0)
    control, words = model.told(many)
    empty = (words == model.words("")).flatten(1).all(1)
    assert 70 < int(empty.sum()) < 130
    assert torch.equal(words[~empty][:1], model.words("a house"))
    assert control.flatten(1).any(1).all()  # maps are never dropped


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_mixed_precision_draws_and_learns(folder, batch, precision):
    model = on_stable_diffusion(folder)
    with torch.autocast("cpu", precision):
        ((_, terms),) = model.train().training_losses(batch, 0)
        image = model.eval().sample(batch.label_map, rng=rng(), num_steps=2)
    assert torch.isfinite(sum(terms.values())) and image.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_runs_on_a_gpu_in_half_precision(folder, batch):
    model = on_stable_diffusion(folder).to("cuda")
    there = Batch(*(part.cuda() if part.is_cpu else part for part in batch))
    with torch.autocast("cuda", torch.float16):
        ((_, terms),) = model.train().training_losses(there, 0)
        image = model.eval().sample(there.label_map, rng=rng(), num_steps=2)
    assert torch.isfinite(sum(terms.values())) and image.isfinite().all()


def test_a_long_prompt_is_a_sentence_and_not_cut_off(folder, batch):
    model = on_stable_diffusion(folder).eval()
    with pytest.raises(InputError, match="122 tokens long, and its encoder reads 77"):
        model.sample(batch.label_map, prompt="a " * 120)


def test_wrong_label_spaces_and_pictures_are_sentences(folder):
    with pytest.raises(InputError, match="facades has 12 classes, but the data has 19"):
        stable_diffusion(19, base=str(folder))
    with pytest.raises(InputError, match="onehot has 13 channels, but .*controlnet reads 3"):
        on_stable_diffusion(folder, control=f"{folder}/controlnet", picture="onehot")
    assert on_stable_diffusion(folder, picture="onehot").control_net.control_encoder.layers[
        0].in_channels == 13


def test_what_cannot_be_fetched_is_one_sentence_with_the_steps(monkeypatch, tmp_path, folder):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for read in (read_stable_diffusion, read_control_net):
        with pytest.raises(InputError, match="on a machine with internet, download") as caught:
            read("nobody/has-this")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="holds none .*download the folder scheduler"):
        read_stable_diffusion(tmp_path)


def test_the_base_is_told_nothing_it_was_not_given(base, batch):
    "A latent diffusion never reads its maps."
    model = load_latent_diffusion(base)
    other = batch._replace(label_map=(batch.label_map + 1) % 12)
    images = [model.example(pairs, rng()) for pairs in (batch, other)]
    assert isinstance(model, LatentDiffusion) and torch.equal(*images)
