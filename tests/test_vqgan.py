"VQGAN: the codebook and its gradients, both first stages, a transformer that never looks ahead."
import copy

import pytest
import torch
from blocks import Blocks, optim, same
from conftest import PARITY, folder_or_skip
from safetensors.torch import load_file

from semsynth import configs
from semsynth.autoencoder import EncoderDecoder, Sizes, psnr
from semsynth.datasets import Resize, SyntheticFacades, evaluation_batches, training_batches
from semsynth.labels import IGNORE_INDEX, InputError, null_label_map
from semsynth.metrics import confusion, mean_iou
from semsynth.segmenter import load_segmenter
from semsynth.synthesizer import training_loop
from semsynth.training import make_optimizers
from semsynth.vqgan import (
    FIRST_STAGE_PRESETS,
    GPT,
    MAP_STAGE_PRESETS,
    VQGAN,
    Codebook,
    CommonestClass,
    MapAutoencoder,
    Quantised,
    Reading,
    Taste,
    VQAutoencoder,
    adaptive_weight,
    begin_as_clocks,
    codebook_terms,
    corner,
    exchanged,
    image_token_loss,
    map_autoencoder,
    narrowed,
    nearest,
    perplexity,
    some_cells,
    vqgan,
    vqgan_autoencoder,
    write,
    write_grid,
)

DATASET = Blocks(num_images=8, resolution=32)
NEVER = -torch.inf


def build(seed: int = 0, **changes) -> VQAutoencoder:
    torch.manual_seed(seed)
    small = {"channels": 8, "groups": 4, "patch": 2, "codebook_size": 32, "code_channels": 4,
             "discriminator_channels": 4, "discriminator_layers": 1, "adversarial_start": 0}
    return vqgan_autoencoder(**FIRST_STAGE_PRESETS["mini"] | small | changes)


def gpt(**changes) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocabulary": 20, "longest": 24, "width": 16, "num_layers": 3, "num_heads": 4}
    network = GPT(**sizes | changes).eval()
    for weight in network.parameters():  # beyond the small start, so that everything matters
        torch.nn.init.normal_(weight, 0.0, 0.3)
    return network


# --- the codebook

def test_the_nearest_is_the_nearest(rng):
    book, code = torch.randn(50, 6, generator=rng), torch.randn(2, 6, 5, 7, generator=rng)
    expected = torch.cdist(code.movedim(1, -1).flatten(0, 2), book).argmin(1)
    assert torch.equal(nearest(code, book).flatten(), expected)


def test_straight_through_has_the_value_of_one_side_and_the_gradient_of_the_other(rng):
    told = torch.randn(1, 3, 4, 4, generator=rng, requires_grad=True)
    codebook = Codebook(9, 3)
    quantised = codebook(told)
    weights = torch.randn(1, 3, 4, 4, generator=rng)
    assert torch.allclose(quantised.straight_through, quantised.known, atol=1e-6)
    (weights * quantised.straight_through).sum().backward()
    assert torch.equal(told.grad, weights)
    assert codebook.embedding.weight.grad is None


@pytest.mark.parametrize("legacy", [False, True])
def test_each_term_pulls_its_own_side_and_beta_stands_where_it_should(legacy):
    told = torch.zeros(1, 1, 1, 1, requires_grad=True)
    known = torch.ones(1, 1, 1, 1, requires_grad=True)
    tokens = torch.zeros(1, 1, 1, dtype=torch.int64)
    terms = codebook_terms(Quantised(told, known, tokens), commitment=0.25, legacy=legacy)
    book, encoder = (0.25, 1.0) if legacy else (1.0, 0.25)
    assert (terms["codebook"].item(), terms["commitment"].item()) == (book, encoder)
    terms["codebook"].backward(retain_graph=True)
    assert told.grad is None and known.grad.item() == 2 * book
    terms["commitment"].backward()
    assert told.grad.item() == -2 * encoder and known.grad.item() == 2 * book


@pytest.mark.parametrize("tokens, expected", [
    ([0, 1, 2, 3], 4), ([5] * 7, 1), ([0, 0, 1, 2], 2**1.5),
])
def test_perplexity_counts_as_if_all_were_used_alike(tokens, expected):
    assert perplexity(torch.tensor(tokens), 6).item() == pytest.approx(expected, rel=1e-5)


def test_the_dead_are_moved_after_their_patience_and_the_used_are_not(rng):
    codebook, code = Codebook(4, 2, patience=2), 5 + torch.randn(2, 2, 4, 4, generator=rng)
    codebook.embedding.weight.data[0] = 5.0
    assert codebook.revive(code) == 3  # a new book counts as unused
    assert torch.equal(codebook.embedding.weight[0], torch.full((2,), 5.0))
    places = {tuple(place) for place in code.movedim(1, -1).flatten(0, 2).tolist()}
    assert {tuple(row) for row in codebook.embedding.weight[1:].tolist()} <= places

    codebook.embedding.weight.data[1:] = -100.0
    assert [codebook.revive(code) for _ in range(2)] == [0, 3]

    published = Codebook(4, 2)
    before = published.embedding.weight.clone()
    assert sum(published.revive(code) for _ in range(9)) == 0
    assert torch.equal(before, published.embedding.weight)


def test_a_book_of_means_goes_where_its_words_are_told(rng):
    codebook = Codebook(2, 3, patience=9, decay=0.9)
    centres = torch.tensor([[4.0, 0.0, 0.0], [0.0, -4.0, 0.0]])
    for _ in range(100):
        noise = 0.1 * torch.randn(1, 3, 2, 8, generator=rng)
        codebook.learn(centres.T[None, :, :, None] + noise)
    apart = torch.cdist(codebook.embedding.weight, centres)
    assert apart.min(1).values.max() < 0.2 and len(apart.argmin(1).unique()) == 2
    assert not codebook.embedding.weight.requires_grad


def test_the_adaptive_weight_makes_both_push_alike(rng):
    layer = torch.randn(3, 4, generator=rng, requires_grad=True)
    faithful, adversarial = (7 * layer).sum(), (0.01 * layer.square()).sum()
    weight = adaptive_weight(faithful, adversarial, layer)
    push, other = (torch.autograd.grad(loss, layer)[0].norm() for loss in
                   (faithful, weight * adversarial))
    assert other == pytest.approx(push.item(), rel=0.01)
    assert adaptive_weight((7 * layer).sum(), (0 * layer).sum(), layer) == 1e4


# --- first stages

def test_exactly_what_is_trained_moves_and_all_of_it_gets_gradients():
    model = build(cosines=False, decay=0.0)
    before = copy.deepcopy(model.state_dict())
    (log,) = training_loop(model, [DATASET.batch()], make_optimizers(model, optim(model)))
    assert set(log) == {"autoencoder/l1", "autoencoder/adversarial", "autoencoder/codebook",
                        "autoencoder/commitment", "discriminator/adversarial"}
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        # Dead codes stay, and a hinge pushes a judge's last bias up and down alike at first.
        if "codebook" not in key and key != "discriminator.layers.2.0.bias":
            assert not torch.equal(weight, before[key]), key


def test_the_judge_is_silent_before_its_start():
    model = build(adversarial_start=5)
    for step, names in [(4, ["autoencoder"]), (5, ["autoencoder", "discriminator"])]:
        yielded = dict(model.train().training_losses(DATASET.batch(), step))
        assert list(yielded) == names
        assert ("adversarial" in yielded["autoencoder"]) == (step == 5)
    assert build(discriminator_channels=0).trained == ("autoencoder",)


def test_tokens_and_latents_say_the_same(rng):
    model = build().eval()
    image = 2 * torch.rand(2, 3, 16, 24, generator=rng) - 1
    tokens = model.tokens(image)
    assert tokens.shape == (2, 4, 6) and model.downsampling == 4
    assert torch.equal(model.draw(tokens), model.decode(model.encode(image)))
    with pytest.raises(InputError, match="multiples of 4 pixels"):
        model.tokens(image[..., :-2])


def test_a_few_steps_use_half_of_the_book_and_draw_nearer():
    data, model = Blocks(num_images=8, resolution=64), build(
        channels=16, patience=3, discriminator_channels=0)
    image = data.batch(8).image

    def distance() -> float:
        with torch.no_grad():
            return (model.eval().draw(model.tokens(image)) - image).abs().mean().item()

    before = distance()
    batches = training_batches(data, same, batch_size=4, num_steps=30)
    list(training_loop(model, batches, make_optimizers(model, optim(model))))
    assert distance() < 0.5 * before
    assert len(model.tokens(image).unique()) >= 16


def seeing(**changes) -> VQAutoencoder:
    return build(num_classes=12, layout_channels=8, **changes)


def test_a_decoder_that_sees_the_map_draws_it_where_it_stands(rng):
    model, batch = seeing().eval(), DATASET.batch(1)
    torch.nn.init.normal_(model.autoencoder["networks"].decoder.head.weight)  # begins silent
    tokens, own = model.tokens(batch.image), batch.label_map
    other = own.clone()
    other[:, :4, :4] = (own[:, :4, :4] + 1) % 12
    drawn, moved = model.draw(tokens, own), model.draw(tokens, other)
    changed = (drawn - moved).abs().sum(1)[0]
    # Norms hear of it everywhere, but softly.
    assert changed[:4, :4].mean() > 5 * changed[20:, 20:].mean()
    blank = model.draw(tokens, null_label_map(own))
    assert torch.equal(model.draw(tokens), blank) and not torch.equal(drawn, blank)
    assert torch.equal(model.example(batch), model.draw(tokens, own, batch.instance_map))
    with pytest.raises(InputError, match="must know num_classes"):
        build(layout_channels=8)
    blind = build().eval()
    words = blind.tokens(batch.image)
    assert torch.equal(blind.draw(words, own), blind.draw(words))


def test_what_the_map_says_need_not_be_said_in_words():
    data, losses = Blocks(num_images=8, resolution=32), {}
    batch = data.batch(8)
    for name, make in {"sees": seeing, "blind": build}.items():
        model = make(channels=16, patience=3, codebook_size=4, discriminator_channels=0)
        batches = training_batches(data, same, batch_size=4, num_steps=60)
        list(training_loop(model, batches, make_optimizers(model, optim(model))))
        with torch.no_grad():
            losses[name] = (model.eval().example(batch) - batch.image).abs().mean().item()
            mixed = model.draw(model.tokens(batch.image), batch.label_map.roll(1, 0))
            losses[f"{name}, another map"] = (mixed - batch.image).abs().mean().item()
    assert losses["sees"] < 0.8 * losses["blind"]
    assert losses["sees, another map"] > 1.2 * losses["sees"]


def test_mistakes_exchange_words_of_one_image_and_no_more_than_asked(rng):
    torch.manual_seed(0)
    code = torch.arange(2 * 400.0).view(2, 1, 20, 20)
    assert torch.equal(exchanged(code, 0.0), code)
    moved = exchanged(code.expand(2, 3, 20, 20), 0.6)
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert moved[0].max() < 400 <= moved[1].min()
    share = (moved[:, :1] != code).float().mean((1, 2, 3))
    assert (share > 0).all() and share.max() < 0.65


def test_samples_are_drawn_in_sight_of_their_map(rng):
    model, seen = joined(), []
    model.first_stage.draw = lambda *given: seen.append(given) or DATASET.batch(1).image
    own, instances = DATASET.batch(1).label_map, DATASET.batch(1).instance_map
    model.sample(own, instances, rng=rng, top_k=0)
    assert torch.equal(seen[0][1], own) and torch.equal(seen[0][2], instances)


def test_maps_are_told_and_read_back():
    data = Blocks(num_images=8, resolution=32)
    torch.manual_seed(0)
    networks = EncoderDecoder(Sizes(16, (1,), 1, groups=4, patch=4), 8, 8, False, 12)
    model, batch = MapAutoencoder(networks, Codebook(32, 8, patience=3), 12), data.batch(8)
    batches = training_batches(data, same, batch_size=8, num_steps=100)
    list(training_loop(model, batches, make_optimizers(model, optim(model, lr=5e-3))))
    read = model.eval().read(model.tokens(batch.label_map))
    assert (read == batch.label_map).float().mean() > 0.5  # chance: a twelfth
    void = batch._replace(label_map=torch.full_like(batch.label_map, IGNORE_INDEX))
    (_, terms), = model.train().training_losses(void, 0)
    assert all(value.isfinite() for value in terms.values())


# --- the transformer

@torch.no_grad()
def test_nothing_looks_ahead(rng):
    network, tokens = gpt(), torch.randint(20, (2, 15), generator=rng)
    whole = network(tokens)
    for place in range(15):
        other = tokens.clone()
        other[:, place:] = torch.randint(20, other[:, place:].shape, generator=rng)
        assert torch.allclose(network(other)[:, :place], whole[:, :place], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[15], [1] * 15, [7, 1, 1, 6], [3, 12]])
def test_a_cache_changes_nothing(pieces, rng):
    network, tokens = gpt(), torch.randint(20, (2, 15), generator=rng)
    cache = network.cache()
    parts = [network(part, cache) for part in tokens.split(pieces, dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), network(tokens), atol=1e-5)
    assert cache.length == 15


def test_too_long_a_sentence_is_a_sentence():
    network, cache = gpt(), gpt().cache()
    with pytest.raises(InputError, match="reads 24 tokens at most, not 25"):
        network(torch.zeros(1, 25, dtype=torch.int64))
    network(torch.zeros(1, 20, dtype=torch.int64), cache)
    with pytest.raises(InputError, match="not 26"):
        network(torch.zeros(1, 6, dtype=torch.int64), cache)
    with pytest.raises(InputError, match="3 heads cannot share a width of 16"):
        gpt(num_heads=3)


@torch.no_grad()
def test_only_the_words_of_the_image_count(rng):
    network = gpt()
    maps, image = (torch.randint(20, (3, length), generator=rng) for length in (5, 7))
    sentence = torch.cat([maps, image], dim=1)
    chances = network(sentence).log_softmax(-1)
    told = [-chances[:, place - 1].gather(1, sentence[:, place, None]) for place in range(5, 12)]
    assert torch.allclose(image_token_loss(network, maps, image), torch.stack(told).mean())


@pytest.mark.parametrize("options, expected", [
    ({}, [0.5, 0.25, 0.15, 0.1]), ({"top_k": 1}, [1, 0, 0, 0]),
    ({"temperature": 0.0}, [1, 0, 0, 0]),
    ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]), ({"top_p": 0.5}, [1, 0, 0, 0]),
    ({"top_p": 0.51}, [2 / 3, 1 / 3, 0, 0]), ({"top_k": 9, "top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
    ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
])
def test_the_next_word_is_narrowed_as_asked(options, expected):
    order = torch.tensor([2, 0, 3, 1])  # likelihoods need not be sorted
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()[order][None]
    chances = narrowed(logits, **options).softmax(-1)[0]
    assert torch.allclose(chances, torch.tensor(expected, dtype=torch.float32)[order], atol=1e-6)


def test_equal_logits_do_not_let_more_than_k_pass():
    assert (narrowed(torch.zeros(2, 6), top_k=2) > NEVER).sum(1).tolist() == [2, 2]


@torch.no_grad()
def test_writing_follows_the_rng_and_greed_is_deterministic():
    network, prompt = gpt(), torch.zeros(3, 2, dtype=torch.int64)

    def written(seed: int, **options) -> torch.Tensor:
        return write(network, prompt, 12, rng=torch.Generator().manual_seed(seed), **options)

    assert written(0).shape == (3, 12)
    assert torch.equal(written(0), written(0)) and not torch.equal(written(0), written(1))
    assert torch.equal(written(0), written(0, cached=False))
    greedy = written(0, temperature=0.0)
    assert torch.equal(greedy, written(1, temperature=0.0))
    sentence = torch.cat([prompt, greedy], dim=1)
    assert torch.equal(network(sentence)[:, 1:-1].argmax(-1), greedy)
    assert written(0, choices=slice(8, None)).min() >= 8


# --- both stages

def joined(side: int = 4, cell: int = 4, asides: int = 0, **options) -> VQGAN:
    torch.manual_seed(0)
    map_stage = CommonestClass(12, cell)
    transformer = GPT(32 + 13, side**2 + (side * 4 // cell) ** 2, width=16, num_layers=2,
                      num_heads=2, outputs=32, asides=asides)
    for weight in transformer.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3)
    return VQGAN(build(), map_stage, transformer, side=side, **options).eval()


def wide_map(rng: torch.Generator, height: int = 24, width: int = 40) -> torch.Tensor:
    cells = torch.randint(12, (2, height // 8, width // 8), generator=rng)
    return cells.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.mark.parametrize("length", [3, 16, 17, 40])
def test_a_window_stands_as_published(length):
    "taming-transformers scripts/sample_conditional: local places, from which windows begin."
    for place in range(length):
        local = place if place <= 8 else 16 - (length - place) if length - place < 8 else 8
        expected = 0 if length <= 16 else place - local
        assert corner(place, length) == expected
        assert corner(place, length, 16, 4) == expected // 4 * 4


@torch.no_grad()
@pytest.mark.parametrize("asides", [0, 13])
@pytest.mark.parametrize("cell", [4, 8])
def test_a_window_never_looks_ahead_nor_outside(cell, asides, rng):
    model, label_map = joined(cell=cell, asides=asides), wide_map(rng)
    told = model.map_tokens(label_map)
    grid = torch.randint(32, (2, 6, 10), generator=rng)
    for row, column in [(0, 0), (0, 9), (2, 4), (3, 0), (5, 9)]:
        logits = Reading(model, told).logits(grid, row, column)
        seen = model.window(told, grid, row, column)
        top, left = seen.corner
        other = torch.randint(32, grid.shape, generator=rng)
        past = torch.arange(60).view(6, 10) < row * 10 + column
        inside = torch.zeros(6, 10, dtype=torch.bool)
        inside[top : top + 4, left : left + 4] = True
        changed = grid.where(past & inside, other)
        assert torch.equal(Reading(model, told).logits(changed, row, column), logits)
        if (row, column) != (0, 0):
            before = grid.where(~(past & inside), other)
            assert not torch.allclose(Reading(model, told).logits(before, row, column), logits)


@torch.no_grad()
def test_a_window_reads_what_a_whole_pass_reads(rng):
    "As published: the whole window goes through, and the logits at the place are taken."
    model, label_map = joined(), wide_map(rng)
    told, grid = model.map_tokens(label_map), torch.randint(32, (2, 6, 10), generator=rng)
    for row, column in [(0, 0), (2, 4), (5, 9)]:
        seen = model.window(told, grid, row, column)
        sentence = torch.cat([seen.map_tokens, seen.image_tokens], dim=1)
        whole = model.transformer(sentence, places=seen.places)[:, seen.map_tokens.shape[1] - 1 :]
        logits = Reading(model, told).logits(grid, row, column)
        assert torch.allclose(whole[:, seen.before], logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("asides", [0, 13])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_grids_are_written_alike_with_and_without_a_cache(scale, asides, rng):
    model, label_map = joined(cell=8, asides=asides), wide_map(rng)

    def written(seed: int, cached: bool = True, **taste) -> torch.Tensor:
        taste = Taste(guidance_scale=scale, **taste)
        return write_grid(model, label_map, taste, torch.Generator().manual_seed(seed), cached)

    assert written(0).shape == (2, 6, 10)
    assert torch.equal(written(0), written(0)) and not torch.equal(written(0), written(1))
    assert torch.equal(written(0), written(0, cached=False))
    greedy = written(0, temperature=0.0)
    assert torch.equal(greedy, written(1, temperature=0.0))
    assert torch.equal(greedy, written(1, top_k=1))


@torch.no_grad()
def test_guidance_of_one_reads_no_empty_map_and_of_none_only_that(rng):
    model, label_map = joined(), wide_map(rng)
    empty = write_grid(model, null_label_map(label_map), rng=torch.Generator().manual_seed(0))
    unguided = write_grid(model, label_map, Taste(guidance_scale=0.0),
                          torch.Generator().manual_seed(0))
    assert torch.equal(empty, unguided)
    assert not torch.equal(
        empty, write_grid(model, label_map, rng=torch.Generator().manual_seed(0)))


def test_only_the_transformer_learns_and_maps_are_dropped(rng):
    model, batch = joined(null_probability=1.0), DATASET.batch(4)
    batch = batch._replace(image=batch.image[..., :16, :16], label_map=batch.label_map[:, :16, :16])
    assert model.train().first_stage.training is False and model.transformer.training
    assert not any(w.requires_grad for w in model.first_stage.parameters())
    (name, terms), = model.training_losses(batch, 0)
    empty = batch._replace(label_map=null_label_map(batch.label_map))
    model.null_probability = 0.0
    assert name == "transformer"
    assert next(model.training_losses(empty, 0))[1]["cross_entropy"] == terms["cross_entropy"]
    assert next(model.training_losses(batch, 0))[1]["cross_entropy"] != terms["cross_entropy"]


def test_a_blank_cell_has_a_word_of_its_own():
    label_map = torch.full((1, 8, 8), 3)
    label_map[:, :4, :4] = IGNORE_INDEX
    label_map[:, 4:, 4:7] = 5
    assert CommonestClass(12, 4).tokens(label_map).tolist() == [[[12, 3], [3, 5]]]
    kept = some_cells(torch.zeros(300, 12, 16, 16), 4, 0.3)
    cells = kept[:, :, ::4, ::4]
    assert torch.equal(cells.repeat_interleave(4, 2).repeat_interleave(4, 3), kept)
    assert 0.2 < (kept.mean((1, 2, 3)) < 1).float().mean() < 0.4


@pytest.mark.parametrize("cell", [4, 8])
def test_each_word_is_told_what_the_map_says_where_the_next_will_stand(cell, rng):
    model, label_map = joined(cell=cell, asides=13), wide_map(rng)
    told, grid = model.map_tokens(label_map), torch.zeros(2, 6, 10, dtype=torch.int64)
    for row, column in [(0, 0), (2, 4), (3, 0), (5, 9)]:
        seen = model.window(told, grid, row, column)
        place = seen.map_tokens.shape[1] - 1 + seen.before
        expected = told[:, row * 4 // cell, column * 4 // cell] - 32
        assert torch.equal(seen.asides[:, place], expected)
        assert seen.asides.shape[1] == seen.map_tokens.shape[1] + seen.image_tokens.shape[1] - 1
    (_, terms), = model.train().training_losses(DATASET.batch(2), 0)
    terms["cross_entropy"].backward()
    assert model.transformer.asides.weight.grad.abs().sum() > 0


def stages(folder, **changes) -> dict[str, str]:
    "Two small first stages in files; changes are of the one for images."
    config = {"data": {"name": "synthetic"}, "optim": {}, "train": {}}
    sizes = {"channels": 8, "groups": 4, "codebook_size": 16}
    files = {}
    for key, name in {"first_stage": "vqgan_autoencoder", "map_stage": "map_autoencoder"}.items():
        chosen = {"name": name, "preset": "mini"} | sizes
        chosen |= changes if key == "first_stage" else {}
        values = configs.resolved(configs.checked(config | {"model": chosen}))
        torch.manual_seed(0)
        model = configs.build_model(values, 12).eval()
        path = folder / f"{name}.safetensors"
        files[key] = str(configs.save_weights(path, model, values, DATASET.label_space))
    return files


def test_places_begin_alike_one_row_up_wherever_that_is():
    transformer = GPT(8, 36 + 9, width=16, num_layers=1, num_heads=2)
    begin_as_clocks(transformer, 6, 3)
    small, large = transformer.places.weight.detach().split([9, 36])
    near = large @ large.T
    one_up = [near[row * 6 + column, row * 6 - 6 + column]
              for row in range(1, 6) for column in range(6)]
    assert torch.allclose(torch.stack(one_up), one_up[0], atol=1e-5)
    assert near[7, 1] > near[7, 3] and near[7, 8] > near[7, 20]
    # The place of a map whose cells are two of the image's is nearest to those four.
    nearest = (small @ large.T)[4].topk(4).indices.sort().values
    assert nearest.tolist() == [14, 15, 20, 21]


def test_the_builder_loads_both_stages_by_name(tmp_path):
    files = stages(tmp_path)
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2}
    model = vqgan(12, **files, **sizes)
    assert (model.first_stage.downsampling, model.map_stage.downsampling, model.ratio) == (8, 8, 1)
    assert model.transformer.tokens.num_embeddings == 32
    begun = vqgan(12, **files, **sizes, from_codes=True, from_clocks=True).transformer
    book = model.first_stage.autoencoder["codebook"].embedding.weight
    alike = torch.cdist(book, book)[0].argsort()
    for words in (begun.tokens.weight, begun.head.weight):
        away = torch.cdist(words[:16], words[:16])[0]
        assert away[alike[:5]].mean() < away[alike[-5:]].mean()
    assert model.transformer.head.out_features == 16
    assert vqgan(12, **files, **sizes, vocabulary=20).transformer.head.out_features == 20
    assert vqgan(3, **files | {"map_stage": "commonest"}, **sizes).num_classes == 3
    with pytest.raises(InputError, match="knows 12 classes, and these maps have 3"):
        vqgan(3, **files, **sizes)
    (tmp_path / "seeing").mkdir()
    seeing = stages(tmp_path / "seeing", layout_channels=4)["first_stage"]
    assert vqgan(12, **files | {"first_stage": seeing}, **sizes).first_stage.num_classes == 12
    with pytest.raises(InputError, match="sees maps of 12 classes, and these maps have 3"):
        vqgan(3, first_stage=seeing, map_stage="commonest", **sizes)
    with pytest.raises(InputError, match="vocabulary of 15 words is too small"):
        vqgan(12, **files, **sizes, vocabulary=15)
    with pytest.raises(InputError, match="it holds map_autoencoder, not vqgan_autoencoder"):
        vqgan(12, **files | {"first_stage": files["map_stage"]}, **sizes)
    with pytest.raises(InputError, match="there are no vqgan_autoencoder weights vqgan-x"):
        vqgan(12, **files | {"first_stage": "vqgan-x"}, **sizes)
    with pytest.raises(InputError, match="cells of 4 pixels in the map, of 8 in the image"):
        VQGAN(model.first_stage, CommonestClass(12, 4), model.transformer)


def test_maps_with_holes_are_told_too():
    torch.manual_seed(0)
    sizes = {"channels": 8, "groups": 4, "codebook_size": 16}
    model = map_autoencoder(12, **MAP_STAGE_PRESETS["mini"] | sizes | {"blank": 1.0}).train()
    (log,) = training_loop(model, [DATASET.batch()], make_optimizers(model, optim(model)))
    assert set(log) == {"autoencoder/classes", "autoencoder/codebook", "autoencoder/commitment"}
    assert model.example(DATASET.batch()).shape == (2, 3, 32, 32)


# --- published weights

def test_counts_are_the_published_ones():
    with torch.device("meta"):
        first = vqgan_autoencoder(perceptual="none")
        parts = [first.autoencoder["networks"], first.autoencoder["codebook"]]
        assert sum(w.numel() for part in parts for w in part.parameters()) == 72_141_699
        assert sum(w.numel() for w in first.discriminator.parameters()) == 2_765_633
        assert sum(w.numel() for w in GPT(1024).parameters()) == 304_932_864


def test_a_published_checkpoint_of_both_stages_is_read(rng):
    folder = folder_or_skip(PARITY, "SEMSYNTH_PARITY")
    stage, gpt_weights = (load_file(folder / name / "weights.safetensors")
                          for name in ("vqgan-autoencoder", "vqgan-gpt"))
    weights = {f"{prefix}.{key}": value for prefix, part in [
        ("first_stage_model", stage), ("cond_stage_model", stage), ("transformer", gpt_weights)
    ] for key, value in part.items()}
    model = VQGAN.from_official(weights, num_heads=4)
    assert (model.num_classes, model.side, model.shared, model.ratio) == (3, 5, True, 1)
    label_map = torch.randint(3, (2, 20, 28), generator=rng)
    told = model.map_tokens(label_map)
    seen = model.window(told, torch.zeros_like(told), 2, 2)
    published = torch.cat([seen.map_tokens, seen.image_tokens], dim=1)[:, :-1]
    assert seen.places.tolist() == list(range(50))
    expected = GPT.from_official(gpt_weights, 4)(published)[:, 24 + 12, :64]
    found = Reading(model, told[:, :5, :5]).logits(torch.zeros(2, 5, 5, dtype=torch.int64), 2, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.sample(label_map, rng=rng).shape == (2, 3, 20, 28)


def test_weights_that_do_not_fit_are_a_sentence():
    with pytest.raises(InputError, match="quantize.embedding should be its codebook"):
        VQAutoencoder.from_official({"conv.weight": torch.zeros(1, 1, 3, 3)})
    with pytest.raises(InputError, match="tok_emb, pos_emb and blocks.0"):
        GPT.from_official({"tok_emb.weight": torch.zeros(3, 4)})


# --- trained weights

STAGES = configs.shipped_weights(["vqgan_autoencoder", "map_autoencoder"])
NONE_SHIPS = pytest.param("none", marks=pytest.mark.skip(reason="no such weights ship"))


@pytest.mark.parametrize("name", STAGES or [NONE_SHIPS])
@torch.no_grad()
def test_shipped_first_stages_do_as_their_cards_say(name, test_data):
    weights = configs.load_weights(STAGES[name])
    card = STAGES[name].with_suffix(".md").read_text(encoding="utf-8")
    for fact in ("step", "minutes", "machine", "commit", "terms of the data", "codes in use"):
        assert f"| {fact}" in card, fact
    assert STAGES[name].stat().st_size < 4e6
    used, size = weights.facts["codes in use"].split(",")[0].split(" of ")
    assert int(used) >= int(size) / 2

    data = configs.with_dataset(weights.config, root=str(test_data / "facades")
                                if weights.config.data["name"] == "facades" else None)
    dataset = configs.build_dataset(data, "test")
    batch = next(iter(evaluation_batches(dataset, configs.build_resize(data), batch_size=8)))
    if isinstance(weights.model, MapAutoencoder):
        read = weights.model.read(weights.model.tokens(batch.label_map))
        told = float(weights.facts["pixel accuracy"])
        kept = batch.label_map != IGNORE_INDEX
        measured = (read == batch.label_map)[kept].float().mean().item()
        assert told > 0.85 and measured == pytest.approx(told, abs=0.05)
    else:
        image = weights.model.example(batch)
        told = float(weights.facts["PSNR"].split()[0])
        assert psnr(image, batch.image).mean().item() == pytest.approx(told, abs=1.5)


@pytest.fixture(scope="module")
def houses():
    dataset = SyntheticFacades("test", num_images=4, resolution=128)
    return next(iter(evaluation_batches(dataset, Resize(128), batch_size=4)))


@pytest.mark.skipif("vqgan" not in configs.shipped_weights(), reason="no such weights ship")
@torch.no_grad()
def test_samples_have_the_layout_of_their_maps_well_above_chance(houses):
    model, judge = configs.load("vqgan"), load_segmenter("segmenter-synthetic")
    image = model.sample(houses.label_map, rng=torch.Generator().manual_seed(0))
    read = judge(image, (128, 128))
    own = mean_iou(confusion(read, houses.label_map, 12).sum(0))
    other = mean_iou(confusion(read, houses.label_map.roll(1, 0), 12).sum(0))
    assert own > other + 0.1
    for options in ({"temperature": 0.0}, {"top_k": 1}):
        one, two = (model.sample(houses.label_map[:1], rng=torch.Generator().manual_seed(seed),
                                 **options) for seed in (1, 2))
        assert torch.equal(one, two)
    looks = model.sample(houses.label_map[:1].expand(3, -1, -1), rng=torch.Generator())
    assert (looks[0] - looks[1]).abs().mean() > 0.02


def test_who_never_read_an_empty_map_is_not_guided_away_from_it():
    label_map = DATASET.batch(2).label_map
    model = joined(null_probability=0.0)
    alone, guided = (
        model.sample(label_map, guidance_scale=scale, rng=torch.Generator().manual_seed(0))
        for scale in (1.0, 5.0)
    )
    assert torch.equal(alone, guided)
    model.null_probability = 0.1
    changed = model.sample(label_map, guidance_scale=5.0, rng=torch.Generator().manual_seed(0))
    assert not torch.equal(alone, changed)
