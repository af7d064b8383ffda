"""A Plan replayed is the loop that its paper writes down."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import scipy.optimize
import torch
from torch import Tensor

from model import grids
from model.follow import replay
from model.noise import Stream, normal
from model.plan import Plan
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


def rk4_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """The classical tableau for dy/dρ = ε(α y), with t from ρ by root finding."""
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = at(t), at(s)
        middle = 0.5 * (sigma / alpha + sigma_s / alpha_s)
        m = scipy.optimize.brentq(
            lambda time, middle=middle: at(time)[1] / at(time)[0] - middle,
            *sorted((t, s)),
            xtol=1e-16,
            rtol=1e-15,
        )
        step = sigma_s / alpha_s - sigma / alpha
        y = x / alpha
        k1 = eps_at(alpha * y, t)
        k2 = eps_at(at(m)[0] * (y + step / 2 * k1), m)
        k3 = eps_at(at(m)[0] * (y + step / 2 * k2), m)
        k4 = eps_at(alpha_s * (y + step * k3), s)
        x = alpha_s * (y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return x


def dpmpp_2m_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Lu et al. 2022b, algorithm 2, line by line."""
    lam = [math.log(at(t)[0] / at(t)[1]) for t in times]
    x0: list[Tensor] = []
    for i in range(1, len(times)):
        (alpha, sigma), (alpha_i, sigma_i) = at(times[i - 1]), at(times[i])
        x0.append((x - sigma * eps_at(x, times[i - 1])) / alpha)
        h = lam[i] - lam[i - 1]
        d = x0[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x0[-1] - 1 / (2 * r) * x0[-2]
        x = sigma_i / sigma * x - alpha_i * math.expm1(-h) * d
    return x


def reversible_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """McCallum & Foster 2024, eq. 5, in x/α over σ/α, from noise to data or back."""
    y = z = x / at(times[0])[0]
    for t, s in pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = at(t), at(s)
        step = sigma_s / alpha_s - sigma / alpha
        y = y + step * eps_at(alpha * z, t)  # λ = 1
        z = z + step * eps_at(alpha_s * y, s)
    return at(times[-1])[0] * y


def euler_maruyama(x: Tensor, t: float, s: float, z: Tensor) -> Tensor:
    beta = 0.1 + 19.9 * t
    score = -eps_at(x, t) / at(t)[1]
    return x + (-0.5 * beta * x - beta * score) * (s - t) + math.sqrt(beta * (t - s)) * z


def denoised(x: Tensor, t: float) -> Tensor:
    alpha, sigma = at(t)
    return (x - sigma * eps_at(x, t)) / alpha


def reverse_sde_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Song et al. 2021, eq. 6, with β written out."""
    for i, (t, s) in enumerate(pairwise(times)):
        x = euler_maruyama(x, t, s, noise[i])
    return denoised(x, times[-1])


def langevin_update(x: Tensor, t: float, eta: float, z: Tensor) -> Tensor:
    return x - eta * eps_at(x, t) / at(t)[1] + math.sqrt(2 * eta) * z


def langevin_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """x + η s + √(2η) z at the last time's level."""
    t = times[-1]
    for z in noise:
        x = langevin_update(x, t, 0.1 * at(t)[1] ** 2, z)
    return x


def annealed_langevin_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Song & Ermon 2019, algorithm 1, in y = x/α: η = δ ρ²/ρ_min² with δ = 0.1 ρ_min²."""
    y = x / at(times[0])[0]
    least = at(times[-1])[1] / at(times[-1])[0]
    for t, z in zip(times, noise, strict=False):
        alpha, sigma = at(t)
        rho = sigma / alpha
        eta = (0.1 * least**2) * rho**2 / least**2
        y = y - eta * eps_at(alpha * y, t) / rho + math.sqrt(2 * eta) * z
    return denoised(at(times[-1])[0] * y, times[-1])


def predictor_corrector_loop(x: Tensor, times: list[float], noise: list[Tensor]) -> Tensor:
    """Song et al. 2021, algorithm 2, with η = 2 r² σ²."""
    draws = iter(noise)
    for t, s in pairwise(times):
        x = euler_maruyama(x, t, s, next(draws))
        x = langevin_update(x, s, 2 * (0.16 * at(s)[1]) ** 2, next(draws))
    return denoised(x, times[-1])


LOOPS = {
    "ddpm": ddpm_loop,
    "ddim": ddim_loop,
    "euler": euler_loop,
    "heun": heun_loop,
    "rk4": rk4_loop,
    "dpmpp_2m": dpmpp_2m_loop,
    "reversible": reversible_loop,
    "reverse_sde": reverse_sde_loop,
    "langevin": langevin_loop,
    "annealed_langevin": annealed_langevin_loop,
    "predictor_corrector": predictor_corrector_loop,
}
MAKERS: dict[str, Callable[..., Plan]] = {**SAMPLERS, **ODE_SOLVERS}
OPTIONS = {"annealed_langevin": {"steps_per_level": 1}}


def test_every_sampler_has_a_textbook_loop() -> None:
    assert set(LOOPS) == set(MAKERS)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_plan_replayed_equals_the_paper_s_loop(name: str) -> None:
    seeds = torch.tensor([3, 4])
    x = normal(seeds, Stream.PRIOR, 0, SHAPE)
    times = grids.uniform(PROCESS, STEPS)
    if name == "reversible":
        times = times.flip(0)  # it is written for encoding; decoding is tested as its inverse
    plan = MAKERS[name](PROCESS, times, **OPTIONS.get(name, {}))
    noise = [normal(seeds, Stream.STEP, i, SHAPE) for i in range(plan.calls)]
    expected = torch.cat(
        [LOOPS[name](x[i : i + 1], times.tolist(), [z[i : i + 1] for z in noise]) for i in (0, 1)]
    )
    history = x if name == "reversible" else None
    found = run(replay(plan, x, seeds, Condition.same(2), h=history), answer).x
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
