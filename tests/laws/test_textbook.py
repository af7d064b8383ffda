"""A Plan replayed is the loop that its paper writes down."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model import grids
from model.noise import Stream, normal
from model.plan import Plan, replay
from model.process import VPLinear
from model.query import Answer, Condition, Query, run
from model.samplers import ODE_SOLVERS, SAMPLERS

PROCESS = VPLinear(t_min=1e-3)
STEPS = 25
SHAPE = (1, 2, 3)
Eps = Callable[[Tensor, float], Tensor]


def eps(u: Tensor, log_snr: float) -> Tensor:
    """Not linear, so that a mistake in the order of the calls shows."""
    return torch.tanh(u + 0.1 * log_snr) + 0.3 * u.sin().mean(dim=(1, 2, 3), keepdim=True)


def answer(query: Query) -> Answer:
    rows = [eps(query.u[i : i + 1], float(level)) for i, level in enumerate(query.log_snr)]
    return Answer(eps=torch.cat(rows))


def at(t: float) -> tuple[float, float]:
    """α, σ of VP-linear from its integral, written out."""
    integral = 0.1 * t + 0.5 * 19.9 * t * t
    return math.exp(-0.5 * integral), math.sqrt(-math.expm1(-integral))


def eps_at(x: Tensor, t: float) -> Tensor:
    alpha, sigma = at(t)
    return eps(x, math.log(alpha**2 / sigma**2))


def ddpm_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Ho et al. 2020, eq. 7 and 15: β̃ and the posterior mean, with ᾱ = α²."""
    for i, t in enumerate(times):
        bar = at(t)[0] ** 2
        bar_before = at(times[i + 1])[0] ** 2 if i + 1 < len(times) else 1.0
        beta = 1.0 - bar / bar_before
        x0 = (x - math.sqrt(1.0 - bar) * eps_at(x, t)) / math.sqrt(bar)
        mean = (
            math.sqrt(bar_before) * beta / (1.0 - bar) * x0
            + math.sqrt(1.0 - beta) * (1.0 - bar_before) / (1.0 - bar) * x
        )
        x = mean + math.sqrt((1.0 - bar_before) / (1.0 - bar) * beta) * noise[i]
    return x


def ddim_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Song et al. 2021, eq. 12 with σ = 0."""
    for i, t in enumerate(times):
        bar = at(t)[0] ** 2
        bar_before = at(times[i + 1])[0] ** 2 if i + 1 < len(times) else 1.0
        e = eps_at(x, t)
        x0 = (x - math.sqrt(1.0 - bar) * e) / math.sqrt(bar)
        x = math.sqrt(bar_before) * x0 + math.sqrt(1.0 - bar_before) * e
    return x


def euler_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Karras et al. 2022, algorithm 1 without its correction, in x/α over σ/α."""
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = at(t), at(s)
        y = x / alpha + (sigma_s / alpha_s - sigma / alpha) * eps_at(x, t)
        x = alpha_s * y
    return x


def heun_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Karras et al. 2022, algorithm 1, in x/α over σ/α."""
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = at(t), at(s)
        step = sigma_s / alpha_s - sigma / alpha
        slope = eps_at(x, t)
        y = x / alpha + step * slope
        x = alpha_s * (x / alpha + step * 0.5 * (slope + eps_at(alpha_s * y, s)))
    return x


LOOPS = {"ddpm": ddpm_loop, "ddim": ddim_loop, "euler": euler_loop, "heun": heun_loop}
MAKERS: dict[str, Callable[..., Plan]] = {**SAMPLERS, **ODE_SOLVERS}


def test_every_sampler_has_a_textbook_loop() -> None:
    assert set(LOOPS) == set(MAKERS)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_plan_replayed_equals_the_paper_s_loop(name: str) -> None:
    seeds = torch.tensor([3, 4])
    x = normal(seeds, Stream.PRIOR, 0, SHAPE)
    times = grids.uniform(PROCESS, STEPS)
    noise = [normal(seeds, Stream.STEP, i, SHAPE) for i in range(STEPS)]
    expected = torch.cat(
        [LOOPS[name](x[i : i + 1], times.tolist(), [z[i : i + 1] for z in noise]) for i in (0, 1)]
    )
    plan = MAKERS[name](PROCESS, times)
    found = run(replay(plan, x, seeds, Condition.same(2)), answer)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
