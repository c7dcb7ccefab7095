"Latent Flow Matching: straight lines, solvers, what its network is told, and its student."
from functools import partial
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from blocks import Blocks
from test_official import TOLERANCE, assert_refused, difference, scramble
from test_sdm import OfficialSDM
from torch import Tensor, nn

from semsynth.diffusion import (
    GaussianMixture,
    Straight,
    add_noise,
    ddim,
    even_times,
    ideal_denoiser,
    last,
    mixed,
    unmixed,
)
from semsynth.labels import Batch, InputError, null_label_map, onehot, semantics
from semsynth.latent_flow import (
    FEW_STEP_PRESETS,
    PRESETS,
    SOLVERS,
    TABLEAUX,
    TIMES,
    DiT,
    FewStepFlow,
    LatentFlow,
    SpatialRescaler,
    VelocityNet,
    adaptive_steps,
    explicit_step,
    few_step_flow,
    flow_network,
    ideal_velocity,
    latent_flow,
    nearest_noise,
    spread_shares,
    spread_steps,
    walk,
)
from semsynth.synthesizer import own_state, training_loop

SMALL = {
    "channels": 8, "multipliers": (1.0, 2.0), "groups": 4, "attention_at": (2,),
    "head_channels": 8, "token_channels": 16, "depth": 2, "condition_channels": 3,
}
LINE = Straight()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alive(network: nn.Module) -> nn.Module:
    "The network without the zeros that it starts from."
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                nn.init.kaiming_normal_(weight)
    return network


def lively(**options) -> LatentFlow:
    torch.manual_seed(0)
    return alive(latent_flow(12, **(PRESETS["mini"] | SMALL | options))).eval()


def student_of(model: LatentFlow, **options) -> FewStepFlow:
    student = few_step_flow(12, **(FEW_STEP_PRESETS["mini"] | SMALL | options)).eval()
    student.load_state_dict(student.state_dict() | student.handed_over(model))
    return student


@pytest.fixture
def batch() -> Batch:
    return Blocks(resolution=64).batch()


@pytest.fixture
def mixture() -> GaussianMixture:
    means = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.1, 0.3, 0.2]).double(),
                           torch.tensor([0.5, 0.2, 0.3]).double())


@pytest.fixture
def x_1() -> Tensor:
    return torch.randn(32, 2, generator=rng(), dtype=torch.float64)


# --- velocities

@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_the_marginal_velocity_is_a_belief_about_data_and_noise(mixture, x_1, t):
    t = torch.tensor(t, dtype=torch.float64)
    velocity = ideal_velocity(mixture)(x_1, t)
    clean, noise = unmixed(velocity, x_1, t, LINE, "velocity")
    assert torch.allclose(noise - clean, velocity)
    assert torch.allclose(clean, x_1 - t * velocity)
    assert torch.allclose(noise, x_1 + (1 - t) * velocity)
    if t > 0:
        assert torch.allclose(clean, ideal_denoiser(mixture, LINE)(x_1, t).clean)


def test_it_is_what_a_regression_finds(mixture):
    x_0, noise = mixture.sample(400_000, rng()), torch.randn(400_000, 2, generator=rng(1)).double()
    place, t = torch.tensor([[0.2, 0.1]]).double(), torch.tensor(0.7).double()
    inside = (add_noise(x_0, noise, t, LINE) - place).norm(dim=1) < 0.15
    found = (noise - x_0)[inside]
    away = (found.mean(0) - ideal_velocity(mixture)(place, t)[0]).abs()
    assert (away < 5 * found.std(0) / inside.sum().sqrt()).all()


@pytest.mark.parametrize("sigma_min", [0.0, 1e-5, 0.1])
def test_the_velocity_is_the_slope_of_the_path(sigma_min):
    schedule = Straight(sigma_min)
    x_0, noise = torch.randn(2, 3, 4, generator=rng()).double()
    t, moved = torch.tensor([0.4, 0.4 + 1e-6], dtype=torch.float64)
    slope = (add_noise(x_0, noise, moved, schedule) - add_noise(x_0, noise, t, schedule)) / 1e-6
    assert torch.allclose(mixed(x_0, noise, t, schedule, "velocity"), slope, atol=1e-6)
    assert torch.allclose(slope, (1 - sigma_min) * noise - x_0, atol=1e-6)


# --- solvers

@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_exact_on_straight_paths(name, x_1):
    point = GaussianMixture(torch.tensor([[0.3, -2.0]]).double(), torch.zeros(1).double(),
                            torch.ones(1).double())
    # From a little above 0, where a look at the single point itself would divide 0 by 0.
    end = last(SOLVERS[name](ideal_velocity(point), x_1, even_times(1, end=0.25)))
    assert torch.allclose(end, 0.75 * point.means + 0.25 * x_1, atol=1e-9)
    if name == "euler":
        end = last(SOLVERS[name](ideal_velocity(point), x_1, even_times(1)))
        assert torch.allclose(end, point.means.expand_as(end), atol=1e-12)


@pytest.mark.parametrize(("name", "order"), [
    ("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4),
])
def test_orders(name, order):
    "On a pendulum whose swing is known: x'' = -x, and the clock runs uneven."
    field = lambda x, t: 2 * t * torch.stack([-x[:, 1], x[:, 0]], dim=1)  # noqa: E731
    begin = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    angle = torch.tensor(-1.0, dtype=torch.float64)  # of t squared, from 1 to 0
    truth = torch.stack([angle.cos(), angle.sin()])[None]
    misses = [(last(SOLVERS[name](field, begin, even_times(n))) - truth).norm() for n in (32, 64)]
    assert abs((misses[0] / misses[1]).log2().item() - order) < 0.2


@pytest.mark.parametrize(("name", "tolerance"), [
    ("bosh3", 1e-4), ("dopri5", 1e-6), ("dopri8", 1e-6),
])
def test_adaptive_solvers_keep_their_tolerance_and_stop_where_told(name, tolerance, mixture, x_1):
    velocity, times = ideal_velocity(mixture), even_times(4)
    truth = last(SOLVERS["rk4"](velocity, x_1[:8], even_times(200)))
    steps = list(adaptive_steps(velocity, x_1[:8], times, name, tolerance))
    assert [step.t.item() for step in steps] == times[1:].tolist()
    miss, rough = ((last(adaptive_steps(velocity, x_1[:8], times, name, each)) - truth).abs().max()
                   for each in (tolerance, 100 * tolerance))
    assert miss < 1000 * tolerance and miss < rough


@pytest.mark.parametrize(("ours", "theirs"), [
    ("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2"),
])
def test_fixed_solvers_equal_those_of_torchdiffeq(ours, theirs, mixture, x_1):
    from torchdiffeq import odeint

    velocity, times = ideal_velocity(mixture), even_times(5)
    path = odeint(lambda t, x: velocity(x, t), x_1, times, method=theirs)
    for step, expected in zip(SOLVERS[ours](velocity, x_1, times), path[1:], strict=True):
        assert torch.allclose(step.x_t, expected, atol=1e-10)


def test_a_step_of_euler_is_a_step_of_ddim(mixture, x_1):
    steps = zip(SOLVERS["euler"](ideal_velocity(mixture), x_1, even_times(7)),
                ddim(ideal_denoiser(mixture, LINE), x_1, even_times(7), LINE), strict=True)
    for ours, theirs in steps:
        assert torch.allclose(ours.x_t, theirs.x_t) and torch.allclose(ours.clean, theirs.clean)
        assert ours.t == theirs.t


@pytest.mark.parametrize("method", TABLEAUX)
def test_a_walk_has_its_own_interval_for_each_sample(method, mixture, x_1):
    velocity = ideal_velocity(mixture)
    t, length = torch.tensor([1.0, 0.6, 0.5]).double(), torch.tensor([1.0, 0.2, 0.5]).double()
    walked = walk(velocity_of_each(velocity), x_1[:3], t, length, 4, method)
    for n in range(3):
        times = torch.linspace(t[n].item(), (t - length)[n].item(), 5, dtype=torch.float64)
        alone = last(SOLVERS[method](velocity, x_1[n : n + 1], times))
        assert torch.allclose(walked[n : n + 1], alone, atol=1e-10)


def velocity_of_each(velocity):
    "For times that differ from sample to sample."
    return lambda x, t: torch.cat([velocity(x[n : n + 1], t[n]) for n in range(len(x))])


def test_tables_are_consistent():
    for tableau in TABLEAUX.values():
        assert abs(sum(tableau.weights) - 1) < 1e-12
        assert [len(row) for row in tableau.rows] == list(range(len(tableau.weights)))
    still = explicit_step(lambda x, t: torch.ones_like(x), torch.zeros(1, 1), torch.tensor(1.0),
                          torch.tensor(0.25), TABLEAUX["rk4"])
    assert still.item() == pytest.approx(-0.75)


# --- times and pairs

def test_shares_are_spread_and_come_in_any_order():
    drawn = torch.stack([spread_shares(4) for _ in range(200)])
    assert torch.equal((4 * drawn).long().sort(dim=1).values, torch.arange(4).expand(200, 4))
    assert (4 * drawn).long().unique(dim=0).shape[0] > 12


@pytest.mark.parametrize("name", TIMES)
def test_times_lie_inside_and_rise(name):
    t = TIMES[name](torch.linspace(0, 1, 101))
    assert ((t >= 0) & (t <= 1)).all() and (t.diff() > 0).all() and t.isfinite().all()
    assert t[50].item() == pytest.approx(0.5, abs=1e-6)


def test_logit_normal_times_are_what_they_say():
    logits = TIMES["logit_normal"](spread_shares(20_000)).logit()
    assert abs(logits.mean()) < 0.01 and abs(logits.std() - 1) < 0.01


def test_the_nearest_noise_is_the_best_order():
    x_0, noise = torch.randn(2, 4, 3, 2, 2, generator=rng())
    given = nearest_noise(x_0, noise)
    cost = lambda order: (x_0 - noise[list(order)]).square().sum()  # noqa: E731
    best = min(permutations(range(4)), key=cost)
    assert torch.equal(given, noise[list(best)])


# --- the network

@pytest.mark.parametrize("size", [(16, 24), (17, 31)])
def test_the_rescaler_is_its_bilinear_halvings(size):
    rescaler, planes = SpatialRescaler(5, 3, 3), torch.rand(2, 5, *size)
    halved = planes
    for _ in range(3):
        halved = F.interpolate(halved, scale_factor=0.5, mode="bilinear")
    assert torch.allclose(rescaler(planes), rescaler.mix(halved), atol=1e-6)
    assert not rescaler(torch.zeros_like(planes)).any()


@pytest.mark.parametrize("backbone", ["unet", "dit"])
@pytest.mark.parametrize("train_rescaler", [True, False])
def test_the_published_mistake_is_a_switch(backbone, train_rescaler, batch):
    model = lively(backbone=backbone, train_rescaler=train_rescaler)
    ((_, terms),) = model.train().training_losses(batch, 0)
    terms["velocity"].backward()
    gradient = model.velocity_net.rescaler.mix.weight.grad
    assert (gradient is not None and bool(gradient.any())) == train_rescaler
    assert all(w.grad is not None for w in model.velocity_net.backbone.parameters())


@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_maps_times_and_neighbours(backbone):
    network = lively(backbone=backbone).velocity_net
    x_t, t = torch.randn(2, 4, 8, 16, generator=rng()), torch.tensor([0.2, 0.2])
    planes = onehot(torch.randint(12, (2, 32, 64), generator=rng()), 13)
    with torch.no_grad():
        both = network(x_t, t, planes)
        assert both.shape == x_t.shape
        assert (both - network(x_t, t, planes.roll(8, dims=3))).abs().max() > 1e-3
        assert (both - network(x_t, t + 0.1, planes)).abs().max() > 1e-3
        assert torch.allclose(network(x_t[:1], t[:1], planes[:1]), both[:1], atol=1e-5)
        twice = network(x_t, t, planes[:1])
        assert torch.allclose(twice[:1], both[:1], atol=1e-5)
        assert torch.allclose(twice[1:], network(x_t[1:], t[1:], planes[:1]), atol=1e-5)


def test_a_transformer_starts_as_nothing_and_knows_places():
    network = DiT(4, 4, channels=16, num_blocks=2, head_channels=8)
    x, t = torch.randn(2, 4, 8, 12, generator=rng()), torch.tensor([0.1, 0.9])
    assert not network(x, t).any()
    alive(network)
    moved = network(x.roll(2, dims=2), t).roll(-2, dims=2)
    assert (moved - network(x, t)).abs().max() > 1e-3
    with pytest.raises(InputError, match="multiples of 2"):
        network(x[..., :-1], t)
    with pytest.raises(InputError, match="multiple of 4"):
        DiT(4, 4, channels=18)


def test_a_patch_comes_back_where_it_was():
    network = DiT(4, 4, channels=16, num_blocks=0, head_channels=8)
    with torch.no_grad():
        # The sum of all channels of a place, as its one value: of `head`, a row for each value.
        network.stem.weight.zero_()
        network.stem.bias.zero_()
        network.head.bias.copy_(torch.arange(16.0))
    painted = network(torch.zeros(1, 4, 4, 4), torch.zeros(1))
    assert painted[0, 0, :2, :2].flatten().tolist() == [0, 1, 2, 3]
    assert painted[0, 3, 2:, 2:].flatten().tolist() == [12, 13, 14, 15]


def test_the_paper_has_the_published_sizes():
    with torch.device("meta"):
        network = flow_network(19)
    assert sum(weight.numel() for weight in network.backbone.parameters()) == 356_074_244
    assert sum(weight.numel() for weight in network.rescaler.parameters()) == 76


# --- the family

def losses(model: LatentFlow, batch: Batch) -> Tensor:
    torch.manual_seed(0)
    ((name, terms),) = model.training_losses(batch, 0)
    assert name == "velocity_net" and len(terms) == 1
    return next(iter(terms.values()))


@pytest.mark.parametrize("options", [
    {"time_sampling": "uniform"}, {"time_sampling": "logit_normal"}, {"shortest_ways": True},
    {"num_draws": 1}, {"num_draws": 3}, {"edges": False}, {"sigma_min": 0.0},
])
def test_every_option_learns(options, batch):
    assert losses(lively(**options), batch).isfinite()


def test_a_dropped_map_is_the_null_map(batch):
    nothing = null_label_map(batch.label_map)
    silent = batch._replace(label_map=nothing, instance_map=nothing)
    model = lively(null_probability=1.0)
    assert torch.equal(losses(model, batch), losses(model, silent))
    model.null_probability = 0.0
    assert not torch.equal(losses(model, batch), losses(model, silent))


def test_the_first_stage_is_given_and_gets_no_gradient(batch):
    model = lively()
    losses(model.train(), batch).backward()
    assert all(w.grad is None and not w.requires_grad for w in model.first_stage.parameters())
    assert not any(key.startswith("first_stage.") for key in own_state(model))


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "bosh3", "dopri5"])
def test_every_solver_draws(solver):
    model, label_map = lively(), Blocks(resolution=32).batch(1).label_map
    with torch.no_grad():  # Random networks are wild, and adaptive solvers would look very closely.
        model.velocity_net.backbone.head.weight.mul_(0.05)
    image = model.sample(label_map, rng=rng(), num_steps=2, solver=solver)
    path = list(model.steps(label_map, rng=rng(), num_steps=2, solver=solver))
    assert image.shape == (1, 3, 32, 32) and image.abs().max() <= 1 and not image.requires_grad
    assert len(path) == 2 and torch.equal(model.shown(path[-1].x_t), image)


def test_guidance_walks_along_the_difference(batch):
    model, t = lively(), torch.tensor(0.5)
    x_t = torch.randn(2, 4, 16, 16, generator=rng())
    null = model.velocity(null_label_map(batch.label_map))(x_t, t)
    told = model.velocity(batch.label_map)(x_t, t)
    assert (null - told).abs().max() > 1e-3
    for scale in (0.0, 1.5, 4.0):
        guided = model.velocity(batch.label_map, guidance_scale=scale)(x_t, t)
        assert torch.allclose(guided, null + scale * (told - null), atol=1e-4)


def test_guidance_is_one_call_a_step(batch):
    model, calls = lively(), []
    model.velocity_net.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    for scale in (1.0, 3.0):
        model.sample(batch.label_map, rng=rng(), num_steps=3, guidance_scale=scale)
    assert calls == [2, 2, 2, 4, 4, 4]


def test_edges_are_heard_only_where_they_are_told():
    label_map = torch.full((1, 64, 64), 2)
    ids = torch.full((1, 64, 64), 26001)
    ids[..., 32:] = 26002
    for edges in (True, False):
        model = lively(edges=edges)
        apart, together = (model.sample(label_map, each, rng=rng(), num_steps=2)
                           for each in (ids, torch.full_like(ids, 26001)))
        assert torch.equal(apart, together) != edges


def test_a_size_that_does_not_fit_is_a_sentence():
    with pytest.raises(InputError, match="multiples of 8 pixels.* nearest"):
        lively().sample(torch.zeros(1, 60, 64, dtype=torch.long))


def test_an_unknown_first_stage_is_a_sentence():
    with pytest.raises(InputError, match="autoencoder"):
        latent_flow(12, **(PRESETS["mini"] | {"first_stage": "autoencodr"}))


# --- the student

@pytest.mark.parametrize("most_steps", [1, 2, 4, 8])
def test_steps_begin_where_a_step_may_begin(most_steps):
    t, length = spread_steps(4000, most_steps)
    kinds = [1 / n for n in (1, 2, 4, 8) if n <= most_steps]
    assert sorted(length.unique().tolist()) == sorted(kinds)
    assert ((t - length) >= 0).all() and (t <= 1).all() and ((t / length) % 1 == 0).all()
    shortest = (length == 1 / most_steps).float().mean().item()
    assert shortest == pytest.approx(1.0 if most_steps == 1 else 0.5, abs=0.001)
    for size in kinds:
        assert len(t[length == size].unique()) == round(1 / size)


def test_a_number_of_steps_that_cannot_be_halved_is_a_sentence():
    with pytest.raises(InputError, match="power of two"):
        few_step_flow(12, **(FEW_STEP_PRESETS["mini"] | SMALL | {"most_steps": 3}))


@pytest.mark.parametrize("backbone", ["unet", "dit"])
def test_a_student_begins_as_its_teacher(backbone):
    model = lively(backbone=backbone)
    student = student_of(model, backbone=backbone)
    x_t, t = torch.randn(2, 4, 16, 16, generator=rng()), torch.tensor([0.3, 0.9])
    planes = torch.rand(2, 13, 64, 64, generator=rng())
    expected = model.velocity_net(x_t, t, planes)
    assert torch.equal(student.teacher(x_t, t, planes), expected)
    for length in (None, torch.tensor([0.25, 1.0])):
        assert torch.allclose(student.velocity_net(x_t, t, planes, length), expected, atol=1e-5)
    assert student.handed_over(student).keys() == student.state_dict().keys()


def test_a_student_hears_the_length():
    student = student_of(lively())
    nn.init.normal_(student.velocity_net.backbone.stem.weight)
    x_t, t, planes = torch.randn(1, 4, 16, 16), torch.tensor([1.0]), torch.zeros(1, 13, 64, 64)
    short, long = (student.velocity_net(x_t, t, planes, torch.tensor([n])) for n in (0.25, 1.0))
    assert (short - long).abs().max() > 1e-3


def test_where_steps_should_end(batch):
    model = lively()
    student = student_of(model, guidance_scale=2.0, teacher_steps=3)
    planes = semantics(batch.label_map, batch.instance_map, 12)
    x_t = torch.randn(2, 4, 16, 16, generator=rng())
    t, length = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0])
    with torch.no_grad():
        x_s = student.landing(x_t, t, length, planes)
        taught = model.velocity(batch.label_map[:1], batch.instance_map[:1], 2.0)
        times = torch.linspace(0.5, 0.25, 4)
        assert torch.allclose(x_s[:1], last(SOLVERS["midpoint"](taught, x_t[:1], times)), atol=1e-5)
        x, half = x_t[1:], torch.tensor([0.5])
        for moment in (1.0, 0.5):
            x = x - half * student.velocity_net(x, torch.tensor([moment]), planes[1:], half)
        assert torch.allclose(x_s[1:], x, atol=1e-5)


def test_a_student_is_asked_where_its_own_steps_come_by(batch):
    student = student_of(lively())
    nn.init.normal_(student.velocity_net.backbone.stem.weight)
    planes = semantics(batch.label_map, batch.instance_map, 12)
    noise = student.start(batch.label_map, rng())
    t, length = torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.5])
    with torch.no_grad():
        x_t = student.arrival(noise, t, length, planes)
    path = list(student.steps(batch.label_map, batch.instance_map, rng=rng(), num_steps=4))
    assert torch.allclose(x_t[0], path[1].x_t[0], atol=1e-5)
    assert torch.equal(x_t[1], noise[1])


@pytest.mark.parametrize("straighten", [False, True])
@pytest.mark.parametrize("most_steps", [1, 4])
def test_a_student_comes_nearer_to_its_teacher(straighten, most_steps):
    batch = Blocks(resolution=64).batch(4)
    model = lively()
    student = student_of(model, straighten=straighten, most_steps=most_steps)
    optimizer = torch.optim.Adam(student.velocity_net.parameters(), 2e-3)
    torch.manual_seed(0)
    logs = list(training_loop(student, [batch] * 40, {"velocity_net": optimizer}))
    terms = [log["velocity_net/slope"] for log in logs]
    assert sum(terms[-10:]) < 0.8 * sum(terms[:10])
    stems = (net.backbone.stem.weight for net in (student.teacher, model.velocity_net))
    assert torch.equal(*stems)


def test_a_student_calls_once_a_step(batch):
    student, calls = student_of(lively()), []
    note = lambda _, given: calls.append(given[3][0].item())  # noqa: E731
    student.velocity_net.register_forward_pre_hook(note)
    for num_steps in (1, 2, 4):
        image = student.sample(batch.label_map, rng=rng(), num_steps=num_steps)
        assert image.shape == (2, 3, 64, 64) and image.isfinite().all()
    assert calls == [1.0] + [0.5] * 2 + [0.25] * 4


def test_its_file_holds_the_student_alone():
    kept = own_state(student_of(lively()))
    assert kept and all(key.startswith("velocity_net.") for key in kept)


# --- published weights: their layout, restated from the published names

class OfficialLFM(nn.Module):
    def __init__(self, classes=7, condition=2, **sizes):
        super().__init__()
        self.model = OfficialSDM(told=None, out=3 - condition, **sizes)
        self.cond_stage_model = nn.Module()
        mapper = nn.Conv2d(classes, condition, 1, bias=False)
        self.cond_stage_model.channel_mapper = mapper

    def forward(self, x: Tensor, t: Tensor, planes: Tensor) -> Tensor:
        for _ in range(3):
            planes = F.interpolate(planes, scale_factor=0.5, mode="bilinear")
        small = self.cond_stage_model.channel_mapper(planes)
        return self.model(torch.cat([x, small], dim=1), t, None)


LAYOUTS = {
    "as published": {"resize": "convolution", "mult": (1, 2, 2), "rates": (2, 4)},
    "residual": {"blocks": 2},
    "plain, time added": {"resize": "plain", "scale_shift": False},
    "one level": {"mult": (1,), "rates": (1,), "blocks": 2},
    "another condition": {"condition": 1, "classes": 35},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_read(name):
    torch.manual_seed(0)
    official = scramble(OfficialLFM(**LAYOUTS[name])).eval()
    classes, condition = (LAYOUTS[name].get(key, default)
                          for key, default in (("classes", 7), ("condition", 2)))
    loaded = VelocityNet.from_official(official.state_dict(), 3, 0, 2).eval()
    x, t = torch.randn(2, 3 - condition, 8, 12), torch.tensor([0.0, 0.7])
    planes = onehot(torch.randint(classes, (2, 64, 96)), classes)
    with torch.no_grad():
        assert difference(loaded(x, t, planes), official(x, t, planes)) <= TOLERANCE


def test_what_does_not_fit_is_refused():
    weights = OfficialLFM().state_dict()
    reader = partial(VelocityNet.from_official, head_channels=0, num_heads=2)
    network = type("Reader", (), {"from_official": staticmethod(reader)})
    for name, value in weights.items():
        assert_refused(network, {other: w for other, w in weights.items() if other != name})
        assert_refused(network, weights | {name: torch.zeros(*value.shape, 1)})
    assert_refused(network, weights | {"other.weight": torch.zeros(1)}, "other.weight")
    wide = torch.zeros(5, 7, 1, 1)
    assert_refused(network, weights | {"cond_stage_model.channel_mapper.weight": wide}, "channels")
    for wrong in ({}, {"epoch": 3}, {"a": torch.zeros(1)}):
        assert_refused(network, wrong)
