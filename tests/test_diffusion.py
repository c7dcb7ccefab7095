"""Schedules and samplers against diffusers, step by step, and against closed forms."""
import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import Tensor

from semsynth.diffusion import (
    BETAS,
    PREDICTIONS,
    SAMPLERS,
    Denoised,
    GaussianMixture,
    Schedule,
    Straight,
    add_noise,
    ancestral,
    bound_term,
    clipped,
    cosine_schedule,
    ddim,
    ddim_inversion,
    dpm_solver,
    even_times,
    guided,
    heun,
    hybrid_losses,
    ideal_denoiser,
    karras_times,
    keeping,
    last,
    leading_times,
    level_likelihood,
    linear_betas,
    linear_schedule,
    log_variance,
    mixed,
    network_denoiser,
    posterior_variance,
    repaint,
    scaled_linear_schedule,
    schedule_betas,
    tabulated,
    timestep_times,
    to_time,
    to_timestep,
    transition,
    unmixed,
)
from semsynth.labels import InputError

THEIR_TABLES = {
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
THEIR_KINDS = {"noise": "epsilon", "clean": "sample", "v_prediction": "v_prediction"}
every_table = pytest.mark.parametrize("table", THEIR_TABLES)
every_kind = pytest.mark.parametrize("kind", THEIR_KINDS)


# --- schedules

@every_table
@pytest.mark.parametrize("theirs", [
    diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler,
    diffusers.HeunDiscreteScheduler,
])
def test_tables_equal_those_of_diffusers(table: str, theirs: type):
    scheduler, betas = theirs(**THEIR_TABLES[table]), BETAS[table]()
    every = to_time(torch.arange(1000))
    alpha_bar = tabulated(betas).alpha(every) ** 2
    assert torch.allclose(betas.float(), scheduler.betas, rtol=0, atol=1e-7)
    assert torch.allclose(alpha_bar.float(), scheduler.alphas_cumprod, rtol=0, atol=1e-6)


@every_table
def test_a_table_gives_itself_back(table: str):
    betas = BETAS[table]()
    assert torch.allclose(schedule_betas(tabulated(betas)), betas, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [
    linear_schedule(), scaled_linear_schedule(), cosine_schedule(), Straight(), Straight(1e-5),
    *(tabulated(betas()) for betas in BETAS.values()),
])
class TestEverySchedule:
    def test_starts_with_data_and_ends_with_noise(self, schedule: Schedule):
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
        assert alpha[0] == 1 and sigma[0] <= 1e-5
        assert alpha[1] < 0.07 and sigma[1] > 0.997

    def test_noise_only_grows(self, schedule: Schedule):
        t = torch.linspace(0, 1, 1001, dtype=torch.float64)
        assert (schedule.noise_level(t).diff() > 0).all()

    def test_slopes_are_slopes(self, schedule: Schedule):
        t = torch.linspace(0.0105, 0.9905, 99, dtype=torch.float64, requires_grad=True)
        for name in ("alpha", "sigma"):
            (slope,) = torch.autograd.grad(getattr(schedule, name)(t).sum(), t)
            assert torch.allclose(slope, getattr(schedule, f"{name}_slope")(t), atol=1e-9)

    def test_32_bits_are_enough_for_training(self, schedule: Schedule):
        t = to_time(torch.arange(1000))
        for name in ("alpha", "sigma"):
            value = getattr(schedule, name)
            assert torch.allclose(value(t.float()).double(), value(t), rtol=0, atol=2e-6)


def test_variance_is_preserved():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for schedule in (linear_schedule(), cosine_schedule(), tabulated(linear_betas())):
        assert torch.allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


def test_timesteps_and_times_are_two_names():
    timesteps = torch.arange(1000)
    assert torch.equal(to_timestep(to_time(timesteps)), timesteps)
    assert torch.equal(to_timestep(to_time(timesteps).float()), timesteps)
    assert to_timestep(torch.tensor(0.0)) == 0


def test_the_closed_forms_are_limits_of_the_tables():
    gaps = []
    for num_timesteps in (1000, 4000):
        every = to_time(torch.arange(num_timesteps), num_timesteps)
        betas = linear_betas(num_timesteps, 0.1 / num_timesteps, 20 / num_timesteps)
        gap = tabulated(betas).sigma(every) - linear_schedule().sigma(every)
        gaps.append(gap.abs().max().item())
    assert gaps[0] < 0.0014 and 3.5 < gaps[0] / gaps[1] < 4.5


# --- predictions

@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("schedule", [linear_schedule(), cosine_schedule(), Straight(1e-5)])
def test_each_prediction_holds_both_unknowns(kind: str, schedule: Schedule):
    x_0, noise = torch.randn(2, 6, 3, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.001, 0.01, 0.2, 0.5, 0.9, 0.99], dtype=torch.float64)
    x_t = add_noise(x_0, noise, t, schedule)
    parts = unmixed(mixed(x_0, noise, t, schedule, kind), x_t, t, schedule, kind)
    assert torch.allclose(parts.clean, x_0) and torch.allclose(parts.noise, noise)


def test_velocity_is_the_slope_of_the_path():
    x_0, noise = torch.randn(2, 1, 5, dtype=torch.float64)
    t, step = torch.tensor([0.3], dtype=torch.float64), 1e-6
    for schedule in (linear_schedule(), cosine_schedule(), Straight(1e-5)):
        ahead, behind = (add_noise(x_0, noise, t + s, schedule) for s in (step, -step))
        velocity = mixed(x_0, noise, t, schedule, "velocity")
        assert torch.allclose((ahead - behind) / (2 * step), velocity, atol=1e-6)


def test_v_prediction_is_that_of_diffusers():
    x_0, noise = torch.randn(2, 4, 3, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 999])
    theirs = diffusers.DDPMScheduler().get_velocity(x_0, noise, timesteps)
    ours = mixed(x_0, noise, to_time(timesteps), tabulated(linear_betas()), "v_prediction")
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_forward_process_is_that_of_diffusers():
    x_0, noise = torch.randn(2, 4, 3, 8, 8)
    timesteps = torch.tensor([0, 10, 500, 999])
    theirs = diffusers.DDPMScheduler().add_noise(x_0, noise, timesteps)
    ours = add_noise(x_0, noise, to_time(timesteps), tabulated(linear_betas()))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_what_cannot_be_asked_is_said():
    x_t = torch.randn(2, 3)
    with pytest.raises(InputError, match="noise prediction does not determine"):
        unmixed(x_t, x_t, torch.tensor(1.0), Straight(), "noise")
    with pytest.raises(InputError, match="clean prediction does not determine"):
        unmixed(x_t, x_t, torch.tensor(0.0), Straight(), "clean")


# --- samplers against diffusers

SHAPE = (2, 3, 4, 4)


def network(x_t: Tensor, timestep: Tensor) -> Tensor:
    "A fixed answer that depends on both inputs, and is steep nowhere."
    shift = timestep.to(x_t).reshape(-1, 1, 1, 1) / 1000
    return 0.5 * torch.tanh(0.3 * x_t.roll(1, -1) + shift) + 0.3


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)


def in_64_bits(scheduler, betas: Tensor) -> None:
    "Their tables hold 32 bits; this removes that rounding and leaves the arithmetic."
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    for name in ("one", "final_alpha_cumprod"):
        if hasattr(scheduler, name):
            value = getattr(scheduler, name)
            exact = scheduler.alphas_cumprod[0] if value != 1 else value.double()
            setattr(scheduler, name, exact)


def their_walk(scheduler, x_t: Tensor, **options) -> list[Tensor]:
    "Where a scheduler stops."
    stops = []
    for timestep in scheduler.timesteps:
        answer = network(x_t, timestep.expand(len(x_t)))
        x_t = scheduler.step(answer, timestep, x_t, **options).prev_sample
        stops.append(x_t)
    return stops


def agree(ours: Iterator, theirs: list[Tensor], tolerance: float) -> None:
    "Every stop, to a part of the largest number there."
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        error = ((mine.x_t - other).abs().max() / other.abs().max()).item()
        assert error < tolerance, f"step {step}: {error:.1e}"


def rngs() -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)


def our_denoiser(table: str, kind: str, clip: bool, **options) -> Callable:
    schedule = tabulated(BETAS[table]())
    denoiser = network_denoiser(
        options.pop("network", network), schedule, prediction=kind, num_timesteps=1000, **options
    )
    return clipped(denoiser) if clip else denoiser


def spaced(spacing: str, num_steps: int) -> tuple[dict, Tensor]:
    "The same stops in their words and in ours."
    linspace = torch.linspace(999, 0, num_steps).round().long()
    times = {
        "trailing": even_times(num_steps), "leading": leading_times(num_steps),
        "linspace": timestep_times(linspace),
    }
    return {"timestep_spacing": spacing}, times[spacing]


@every_table
@every_kind
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance, share", [("fixed_small", 0.0), ("fixed_large", 1.0)])
@pytest.mark.parametrize("exact", [False, True])
def test_ancestral_is_ddpm(table, kind, clip, variance, share, exact):
    # 32 bits lose some digits of 1 - alpha_bar / alpha_bar in their code: see the exact case.
    options, times = spaced("leading", 20)
    scheduler = diffusers.DDPMScheduler(
        **THEIR_TABLES[table], **options, prediction_type=THEIR_KINDS[kind], clip_sample=clip,
        variance_type=variance,
    )
    if exact:
        in_64_bits(scheduler, BETAS[table]())
    scheduler.set_timesteps(20)
    x_t, (mine, other) = start(torch.float64 if exact else torch.float32), rngs()
    ours = ancestral(
        our_denoiser(table, kind, clip), x_t, times, tabulated(BETAS[table]()), rng=mine,
        variance_share=share,
    )
    theirs = their_walk(scheduler, x_t, generator=other)
    agree(ours, theirs, 1e-9 if exact else 1e-4)


@pytest.mark.parametrize("spacing, num_steps", [
    ("leading", 7), ("leading", 1000), ("trailing", 25), ("linspace", 12),
])
def test_ancestral_stops_where_ddpm_does(spacing, num_steps):
    options, times = spaced(spacing, num_steps)
    scheduler = diffusers.DDPMScheduler(**options)
    in_64_bits(scheduler, linear_betas())
    scheduler.set_timesteps(num_steps)
    assert torch.equal(to_timestep(times[:-1]), scheduler.timesteps)
    x_t, (mine, other) = start(torch.float64), rngs()
    schedule = tabulated(linear_betas())
    ours = ancestral(our_denoiser("linear", "noise", True), x_t, times, schedule, rng=mine)
    agree(ours, their_walk(scheduler, x_t, generator=other), 1e-9)


def both_halves(x_t: Tensor, timestep: Tensor) -> Tensor:
    "A prediction, and numbers in [-1, 1] for the variance."
    return torch.cat([network(x_t, timestep), torch.tanh(x_t + 0.2)], dim=1)


@every_table
def test_learned_variance_is_learned_range(table):
    scheduler = diffusers.DDPMScheduler(**THEIR_TABLES[table], variance_type="learned_range")
    in_64_bits(scheduler, BETAS[table]())
    scheduler.set_timesteps(50)
    x_t, (mine, other) = start(torch.float64), rngs()
    theirs, y = [], x_t
    for timestep in scheduler.timesteps:
        answer = both_halves(y, timestep.expand(len(y)))
        y = scheduler.step(answer, timestep, y, generator=other).prev_sample
        theirs.append(y)
    denoiser = our_denoiser(table, "noise", True, network=both_halves, learned_variance=True)
    ours = ancestral(denoiser, x_t, leading_times(50), tabulated(BETAS[table]()), rng=mine)
    agree(ours, theirs, 1e-9)


@every_table
@every_kind
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_ddim_is_ddim(table, kind, eta, clip, exact):
    options, times = spaced("trailing", 20)
    scheduler = diffusers.DDIMScheduler(
        **THEIR_TABLES[table], **options, prediction_type=THEIR_KINDS[kind], clip_sample=clip
    )
    if exact:
        in_64_bits(scheduler, BETAS[table]())
    scheduler.set_timesteps(20)
    x_t, (mine, other) = start(torch.float64 if exact else torch.float32), rngs()
    denoiser, schedule = our_denoiser(table, kind, clip), tabulated(BETAS[table]())
    ours = ddim(denoiser, x_t, times, schedule, rng=mine, eta=eta)
    options = {"eta": eta, "generator": other, "use_clipped_model_output": clip}
    agree(ours, their_walk(scheduler, x_t, **options), 1e-9 if exact else 1e-4)


def test_ddim_as_stable_diffusion_and_controlnet_use_it():
    scheduler = diffusers.DDIMScheduler(
        **THEIR_TABLES["scaled_linear"], clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(20)
    x_t, times = start(), leading_times(20, offset=1, end=0.001)
    schedule = tabulated(BETAS["scaled_linear"]())
    ours = ddim(our_denoiser("scaled_linear", "noise", False), x_t, times, schedule)
    agree(ours, their_walk(scheduler, x_t), 1e-5)


@every_table
@every_kind
@pytest.mark.parametrize("num_steps, final", [
    (1, "zero"), (10, "zero"), (20, "zero"), (10, "sigma_min"), (20, "sigma_min"),
])
def test_dpm_solver_is_dpm_solver(table, kind, num_steps, final):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **THEIR_TABLES[table], prediction_type=THEIR_KINDS[kind], timestep_spacing="trailing",
        final_sigmas_type=final,
    )
    scheduler.set_timesteps(num_steps)
    times = even_times(num_steps, end=0.001 if final == "sigma_min" else 0.0)
    if final == "sigma_min":  # the same stops, and then the noise of timestep 0
        times = torch.cat([even_times(num_steps)[:-1], times[-1:]])
    schedule = tabulated(BETAS[table]())
    options = {"first_order_end": num_steps < 15}
    ours = dpm_solver(our_denoiser(table, kind, False), start(), times, schedule, **options)
    # Their sigmas and samples are always of 32 bits, so there is no exact case.
    agree(ours, their_walk(scheduler, start()), 1e-4 if table == "cosine" else 2e-5)


def test_dpm_solver_stops_where_theirs_does():
    scheduler = diffusers.DPMSolverMultistepScheduler(**THEIR_TABLES["scaled_linear"])
    scheduler.set_timesteps(20)
    times = timestep_times(torch.linspace(0, 999, 21).round().long().flip(0)[:-1])
    assert torch.equal(to_timestep(times[:-1]), scheduler.timesteps)
    schedule = tabulated(BETAS["scaled_linear"]())
    ours = dpm_solver(our_denoiser("scaled_linear", "noise", False), start(), times, schedule)
    agree(ours, their_walk(scheduler, start()), 1e-5)


def test_dpm_solver_on_the_straight_line():
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(20)
    stops = scheduler.sigmas.double()
    assert stops[0] == pytest.approx(0.999)
    reading = network_denoiser(
        lambda x_t, t: network(x_t, (1000 * t).floor()), Straight(), prediction="velocity"
    )
    ours = dpm_solver(reading, start(), stops, Straight())
    agree(ours, their_walk(scheduler, start()), 1e-5)


def their_heun(scheduler, betas: Tensor, x_t: Tensor, exact: bool) -> list[Tensor]:
    "Where Heun's scheduler stops, brought back from x / alpha to x."
    if exact:
        levels = tabulated(betas).noise_level(to_time(scheduler.timesteps.round().long()))
        stops = torch.cat([levels[:1], levels[1::2], levels.new_zeros(1)])
        scheduler.sigmas = torch.cat(
            [stops[:1], stops[1:-1].repeat_interleave(2), stops[-1:]]
        )
    walk, y = [], x_t * (1 + scheduler.sigmas[0] ** 2).sqrt()
    for call, timestep in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(y, timestep)
        y = scheduler.step(network(seen, timestep.expand(len(y))), timestep, y).prev_sample
        if call % 2 == 0 and call < len(scheduler.timesteps) - 1:
            continue  # Euler's half of a step
        level = scheduler.sigmas[scheduler.step_index]
        walk.append(y / (1 + level**2).sqrt())
    return walk


@pytest.mark.parametrize("table, exact", [
    ("linear", False), ("scaled_linear", False), ("linear", True), ("scaled_linear", True),
    ("cosine", True),  # In 32 bits their first number is 20,291 times the noise: no digits left.
])
@every_kind
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_heun_is_heun(table, exact, kind, clip, spacing):
    options, times = spaced(spacing, 20)
    scheduler = diffusers.HeunDiscreteScheduler(
        **THEIR_TABLES[table], **options, prediction_type=THEIR_KINDS[kind], clip_sample=clip
    )
    scheduler.set_timesteps(20)
    x_t = start(torch.float64 if exact else torch.float32)
    theirs = their_heun(scheduler, BETAS[table](), x_t, exact)
    schedule = tabulated(BETAS[table]())
    ours = heun(our_denoiser(table, kind, clip), x_t, times, schedule)
    agree(ours, theirs, 1e-9 if exact else 3e-4)


def test_karras_times_are_theirs():
    scheduler = diffusers.HeunDiscreteScheduler(**THEIR_TABLES["linear"], use_karras_sigmas=True)
    in_64_bits(scheduler, linear_betas())
    scheduler.set_timesteps(12)
    schedule = tabulated(linear_betas())
    levels = schedule.noise_level(karras_times(12, schedule))
    theirs = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]).double()
    assert torch.allclose(levels, theirs, rtol=1e-5, atol=1e-7)


# --- samplers against closed forms

MU, SPREAD = 0.5, 0.6


def double(*parts) -> GaussianMixture:
    return GaussianMixture(*(torch.tensor(part, dtype=torch.float64) for part in parts))


ONE = double([[MU]], [SPREAD], [1.0])
PAIR = double([[-0.8], [0.5]], [0.15, 0.3], [0.3, 0.7])


def width(t: Tensor, schedule: Schedule) -> Tensor:
    return ((schedule.alpha(t) * SPREAD) ** 2 + schedule.sigma(t) ** 2).sqrt()


def share_below(x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    "Distribution function of PAIR at t, which the probability flow keeps for each point."
    deviation = ((schedule.alpha(t) * PAIR.deviations) ** 2 + schedule.sigma(t) ** 2).sqrt()
    places = (x - schedule.alpha(t) * PAIR.means[:, 0]) / deviation
    return (PAIR.weights * torch.special.ndtr(places)).sum(1, keepdim=True)


def flow_of_pair(x: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    "The point at s with the same share below it, by bisection."
    share = share_below(x, t, schedule)
    low, high = torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(80):
        middle = (low + high) / 2
        below = share_below(middle, s, schedule) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def flow_of_one(x: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Tensor:
    ratio = width(s, schedule) / width(t, schedule)
    return schedule.alpha(s) * MU + ratio * (x - schedule.alpha(t) * MU)


SCHEDULES = {"linear": linear_schedule(), "scaled": scaled_linear_schedule(),
             "table": tabulated(linear_betas()), "straight": Straight()}


@pytest.mark.parametrize("name, order", [("ddim", 1), ("heun", 2), ("dpm_solver", 2)])
@pytest.mark.parametrize("data, flow", [(ONE, flow_of_one), (PAIR, flow_of_pair)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_order_of_convergence(name, order, data, flow, schedule):
    x_1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for num_steps in (96, 192, 384):
        times = even_times(num_steps, 0.99, 0.05)
        answer = last(SAMPLERS[name](ideal_denoiser(data, schedule), x_1, times, schedule))
        exact = flow(x_1, times[0], times[-1], schedule)
        errors.append((answer - exact).abs().max().item())
    orders = [math.log2(more / less) for more, less in pairwise(errors)]
    assert all(abs(measured - order) < 0.2 for measured in orders), orders
    assert errors[-1] < (3e-2 if order == 1 else 1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_ancestral_sampling_is_of_first_order_in_its_variance(share):
    schedule, errors = linear_schedule(), []
    for num_steps in (32, 128):
        rng, times = torch.Generator().manual_seed(0), even_times(num_steps, end=0.05)
        x_1 = torch.randn(200_000, 1, generator=rng, dtype=torch.float64)
        denoiser, options = ideal_denoiser(ONE, schedule), {"rng": rng, "variance_share": share}
        deviation = last(ancestral(denoiser, x_1, times, schedule, **options)).std()
        errors.append((deviation / width(times[-1], schedule) - 1).abs().item())
    assert errors[0] < 0.15 and errors[1] < 0.5 * errors[0] + 0.004


def test_every_sampler_draws_the_mixture():
    "Shares of both components, and the spread of each, from noise to the end."
    schedule = linear_schedule()
    for name, num_steps in {"ancestral": 400, "ddim": 200, "heun": 40, "dpm_solver": 40}.items():
        rng = torch.Generator().manual_seed(0)
        x_1 = torch.randn(20_000, 1, generator=rng, dtype=torch.float64)
        times = even_times(num_steps)
        drawn = last(SAMPLERS[name](ideal_denoiser(PAIR, schedule), x_1, times, schedule, rng=rng))
        data = PAIR.sample(20_000, rng)
        for measure in (Tensor.mean, Tensor.std, lambda x: (x < -0.4).double().mean()):
            assert measure(drawn) == pytest.approx(measure(data).item(), abs=0.02), name


def test_one_step_of_a_straight_path_is_exact():
    point = double([[0.3, -0.4]], [0.0], [1.0])
    x_1 = torch.randn(5, 2, dtype=torch.float64)
    for sampler in SAMPLERS.values():
        answer = last(sampler(ideal_denoiser(point, Straight()), x_1, even_times(1), Straight()))
        assert torch.allclose(answer, point.means.expand(5, 2))


def test_ddim_on_the_straight_line_is_eulers_step():
    x_t, t, s = torch.randn(7, 1, dtype=torch.float64), 0.7, 0.6
    denoiser = ideal_denoiser(PAIR, Straight())
    clean = denoiser(x_t, torch.tensor(t)).clean
    velocity = (x_t - clean) / t
    (step,) = ddim(denoiser, x_t, torch.tensor([t, s], dtype=torch.float64), Straight())
    assert torch.allclose(step.x_t, x_t + (s - t) * velocity)


def test_ddim_with_eta_1_is_ancestral():
    schedule, x_1, (first, second) = cosine_schedule(), torch.randn(9, 1), rngs()
    pair = GaussianMixture(PAIR.means.float(), PAIR.deviations.float(), PAIR.weights.float())
    denoiser, times = ideal_denoiser(pair, schedule), even_times(30, start=0.98)
    ours = ancestral(denoiser, x_1, times, schedule, rng=first)
    for step, other in zip(ours, ddim(denoiser, x_1, times, schedule, rng=second, eta=1.0),
                           strict=True):
        assert torch.allclose(step.x_t, other.x_t, atol=1e-4)


def test_inversion_finds_the_noise():
    schedule, times = linear_schedule(), even_times(100)
    x_0 = PAIR.sample(50, torch.Generator().manual_seed(0))
    denoiser, errors = ideal_denoiser(PAIR, schedule), []
    for iterations in (1, 30):
        noise = last(ddim_inversion(
            denoiser, x_0, times.flip(0), schedule, num_iterations=iterations
        ))
        errors.append((last(ddim(denoiser, noise, times, schedule)) - x_0).abs().max().item())
    assert errors[1] < 1e-6 < 0.01 < errors[0]


def test_the_ideal_denoiser_is_the_slope_of_the_density():
    "Tweedie's formula: alpha x_0 = x_t + sigma² times the slope of log p(x_t)."
    x_t = torch.linspace(-2, 2, 11, dtype=torch.float64)[:, None].requires_grad_()
    for schedule in SCHEDULES.values():
        t = torch.tensor(0.3, dtype=torch.float64)
        (slope,) = torch.autograd.grad(PAIR.log_joint(x_t, t, schedule).logsumexp(1).sum(), x_t)
        clean = ideal_denoiser(PAIR, schedule)(x_t, t).clean
        assert torch.allclose(schedule.alpha(t) * clean, x_t + schedule.sigma(t) ** 2 * slope)


# --- guidance, clipping, editing

def test_guidance_is_one_batched_call_a_step():
    calls = []

    def denoiser(x_t: Tensor, t: Tensor, row: Tensor) -> Denoised:
        calls.append(len(x_t))
        return Denoised(x_t + row, row / 10)

    wish, nothing, x_t = torch.ones(4, 3), torch.zeros(4, 3), torch.randn(4, 3)
    schedule, times = linear_schedule(), even_times(5)
    last(ancestral(guided(denoiser, [wish], [nothing], 2.0), x_t, times, schedule))
    assert calls == [8] * 5
    calls.clear()
    last(ddim(guided(denoiser, [wish], [nothing], 1.0), x_t, times, schedule))
    assert calls == [4] * 5

    clean, share = guided(denoiser, [wish], [nothing], 3.0)(x_t, times[0])
    assert torch.allclose(clean, x_t + 3) and torch.equal(share, wish / 10)


def test_guidance_on_the_data_is_guidance_on_the_noise():
    schedule, t = tabulated(linear_betas()), torch.tensor(0.4, dtype=torch.float64)
    x_t, null, real = torch.randn(3, 5, 2, dtype=torch.float64)
    by_noise = unmixed(null + 4 * (real - null), x_t, t, schedule, "noise").clean
    answers = lambda x_t, t: torch.cat([null, real])  # noqa: E731
    denoiser = network_denoiser(lambda x_t, t, row: answers(x_t, t), schedule)
    rows = torch.zeros(5, 1)
    assert torch.allclose(guided(denoiser, [rows], [rows], 4.0)(x_t, t).clean, by_noise)


def test_clipping_after_guidance_holds_the_range():
    denoiser = lambda x_t, t, row: Denoised(row)  # noqa: E731
    wish, nothing = torch.full((2, 3), 0.8), torch.full((2, 3), -0.8)
    strong = clipped(guided(denoiser, [wish], [nothing], 3.0))
    assert torch.equal(strong(torch.randn(2, 3), torch.tensor(0.5)).clean, torch.ones(2, 3))


def test_keeping_keeps():
    schedule, x_1 = linear_schedule(), torch.randn(6, 2, dtype=torch.float64)
    cloud = double([[0.0, 0.0], [1.0, 1.0]], [0.2, 0.2], [0.5, 0.5])
    known, region = torch.full((6, 2), 0.7, dtype=torch.float64), torch.tensor([0.0, 1.0])
    for sampler in SAMPLERS.values():
        denoiser = keeping(ideal_denoiser(cloud, schedule), known, region)
        answer = last(sampler(denoiser, x_1, even_times(10), schedule))
        assert torch.allclose(answer[:, 0], known[:, 0])
        assert not torch.allclose(answer[:, 1], known[:, 1], atol=0.05)


def test_repainting_again_and_again_comes_closer_to_the_condition():
    schedule, rng = linear_schedule(), torch.Generator().manual_seed(0)
    along = torch.linspace(-1, 1, 41, dtype=torch.float64)
    places, even = torch.stack([along, along**2], dim=1), torch.full_like(along, 1 / 41)
    curve = GaussianMixture(places, torch.full_like(along, 0.05), even)
    known, region = torch.tensor([[0.6, 0.0]]).double().expand(1500, 2), torch.tensor([0.0, 1.0])
    weights = (-((along - 0.6) ** 2) / (2 * 0.05**2)).softmax(0)
    mean = (weights * along**2).sum()
    deviation = ((weights * (along**2 - mean) ** 2).sum() + 0.05**2).sqrt()
    spreads = {}
    for resamples in (1, 10):
        x_1 = torch.randn(1500, 2, generator=rng, dtype=torch.float64)
        options = {"num_resamples": resamples, "rng": rng}
        walk = list(repaint(
            ideal_denoiser(curve, schedule), x_1, even_times(30), schedule, known, region, **options
        ))
        assert len(walk) == 30 and torch.allclose(walk[-1].x_t[:, 0], known[:, 0])
        spreads[resamples] = walk[-1].x_t[:, 1].std()
    assert spreads[1] > 2 * deviation and spreads[10] < 1.7 * deviation


# --- variance and bound

def test_posterior_variance_is_that_of_ddpm():
    betas = linear_betas()
    alpha_bar = (1 - betas).cumprod(0)
    k = torch.tensor([1, 10, 500, 999])
    t, s, schedule = to_time(k), to_time(k - 1), tabulated(betas)
    expected = (1 - alpha_bar[k - 1]) / (1 - alpha_bar[k]) * betas[k]
    assert torch.allclose(posterior_variance(t, s, schedule), expected)
    assert torch.allclose(transition(schedule, s, t).variance, betas[k])


def test_the_last_step_borrows_its_variance():
    schedule, x = tabulated(linear_betas()), torch.zeros(2, 1)
    t, s = to_time(torch.tensor([0, 1])), to_time(torch.tensor([-1, 0]))
    smallest = log_variance(0.0, t, s, schedule, x)
    assert torch.isfinite(smallest).all() and torch.allclose(smallest[0], smallest[1])
    largest = log_variance(1.0, t, s, schedule, x)
    assert torch.allclose(largest[:, 0].exp(), linear_betas()[:2].float())


def test_divergences_are_those_of_torch():
    schedule = tabulated(linear_betas())
    rng = torch.Generator().manual_seed(0)
    x_0, x_t, clean, share = torch.rand(4, 3, 50, generator=rng, dtype=torch.float64)
    k = torch.tensor([1, 300, 998])
    t, s = to_time(k), to_time(k - 1)
    term = bound_term(x_0, x_t, Denoised(clean, share), t, s, schedule)
    alpha_bar, betas = (1 - linear_betas()).cumprod(0), linear_betas()
    for row, timestep in enumerate(k):
        before, now, beta = alpha_bar[timestep - 1], alpha_bar[timestep], betas[timestep]
        pulled = before.sqrt() * beta / (1 - now)
        kept = (1 - beta).sqrt() * (1 - before) / (1 - now)
        small = (1 - before) / (1 - now) * beta
        variance = beta ** share[row] * small ** (1 - share[row])
        true = torch.distributions.Normal(pulled * x_0[row] + kept * x_t[row], small.sqrt())
        ours = torch.distributions.Normal(pulled * clean[row] + kept * x_t[row], variance.sqrt())
        expected = torch.distributions.kl_divergence(true, ours).mean() / math.log(2)
        assert torch.isclose(term[row], expected, rtol=1e-8)


def test_the_levels_of_an_image_share_a_gaussian():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    for mean in (-1.2, 0.0, 0.5):
        means, log_vars = torch.full_like(levels, mean), torch.full_like(levels, -3)
        shares = level_likelihood(levels, means, log_vars)
        assert shares.exp().sum() == pytest.approx(1, abs=1e-8)


def test_the_bound_is_the_entropy_where_nothing_is_guessed_wrong():
    """For one Gaussian the reverse steps are Gaussian, too, and their variance is known.

    With it and the ideal denoiser, all terms together cost what the data hold: their entropy.
    """
    spread, count, rng = 0.25, 2000, torch.Generator().manual_seed(0)
    data, num_timesteps = double([[0.0]], [spread], [1.0]), 200
    schedule = tabulated(linear_betas(num_timesteps, 1e-4, 0.1))
    x_0 = ((data.sample(count, rng) + 1) * 127.5).round() / 127.5 - 1
    total = torch.zeros(count, dtype=torch.float64)
    for k in range(num_timesteps):
        t, s = (to_time(torch.tensor([now]), num_timesteps) for now in (k, k - 1))
        x_t = add_noise(x_0, torch.randn(x_0.shape, generator=rng, dtype=x_0.dtype), t, schedule)
        clean = ideal_denoiser(data, schedule)(x_t, t[0]).clean
        wide = [(schedule.alpha(u) * spread) ** 2 + schedule.sigma(u) ** 2 for u in (s, t)]
        right = (transition(schedule, s, t).variance * wide[0] / wide[1]).log()
        low, high = (log_variance(share, t, s, schedule, x_t[:1])[0] for share in (0.0, 1.0))
        share = ((right - low) / (high - low)).expand_as(clean)
        every = (t.expand(count), s.expand(count), schedule)
        total += bound_term(x_0, x_t, Denoised(clean, share), *every)
    entropy = math.log2(spread * 127.5 * math.sqrt(2 * math.pi * math.e))
    assert total.mean().item() == pytest.approx(entropy, abs=0.1)


def test_hybrid_losses_teach_each_half_its_own():
    rng = torch.Generator().manual_seed(0)
    x_0 = torch.randint(256, (4, 3, 8, 8), generator=rng) / 127.5 - 1
    noise = torch.randn(x_0.shape, generator=rng)
    output = torch.randn(4, 6, 8, 8, generator=rng, requires_grad=True)
    timestep, schedule = torch.tensor([0, 1, 500, 999]), tabulated(linear_betas())
    for kind in ("noise", "clean", "v_prediction"):
        losses = hybrid_losses(output, x_0, noise, timestep, schedule, prediction=kind)
        assert list(losses) == [kind, "variational_bound"]
        assert all(torch.isfinite(loss) for loss in losses.values())
        for name, (learns, rests) in {kind: (0, 1), "variational_bound": (1, 0)}.items():
            (slope,) = torch.autograd.grad(losses[name], output, retain_graph=True)
            halves = slope.chunk(2, dim=1)
            assert halves[learns].count_nonzero() > 0 and halves[rests].count_nonzero() == 0
    perfect = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    assert hybrid_losses(perfect, x_0, noise, timestep, schedule)["noise"] == 0


def test_the_bound_prefers_the_right_variance():
    "For data that are white noise the largest variance is right, for a point the smallest."
    schedule, k = tabulated(linear_betas()), torch.tensor([500])
    t, s = to_time(k), to_time(k - 1)
    for spread, right, wrong in [(1.0, 1.0, 0.0), (1e-3, 0.0, 1.0)]:
        data, rng = double([[0.0]], [spread], [1.0]), torch.Generator().manual_seed(0)
        x_0 = data.sample(4000, rng)
        x_t = add_noise(x_0, torch.randn(x_0.shape, generator=rng, dtype=x_0.dtype), t, schedule)
        clean = ideal_denoiser(data, schedule)(x_t, t[0]).clean
        costs = {share: bound_term(
            x_0, x_t, Denoised(clean, torch.full_like(clean, share)), t.expand(4000),
            s.expand(4000), schedule,
        ).mean() for share in (right, wrong)}
        assert costs[right] < costs[wrong]


# --- what is asked wrongly

@pytest.mark.parametrize("times", [[0.0, 1.0], [1.0], [1.0, 0.5, 0.5]])
def test_times_must_fall(times):
    with pytest.raises(InputError, match="should fall from noise to data"):
        last(ddim(ideal_denoiser(ONE, Straight()), torch.randn(2, 1),
                  torch.tensor(times, dtype=torch.float64), Straight()))


def test_steps_must_lead_somewhere():
    with pytest.raises(InputError, match="0 steps"):
        even_times(0)
    with pytest.raises(InputError, match="downwards"):
        even_times(3, start=0.2, end=0.5)


def test_half_precision_stays_half_precision():
    x_1 = torch.randn(2, 3, 4, 4).half()
    schedule = tabulated(linear_betas())
    for sampler in SAMPLERS.values():
        steps = sampler(our_denoiser("linear", "noise", True), x_1, even_times(4), schedule)
        assert all(step.x_t.dtype == torch.half for step in steps)
