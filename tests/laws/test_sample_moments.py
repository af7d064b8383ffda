"""Moments of what samplers draw from a mixture: within 4 standard errors of what they should be.

They should be the closed form of the mixture at the Plan's end, but for samplers whose bias would
show at this many steps (5 % of the variance for ``ddpm``): theirs follows by the Plan's exact
recursion, inside a component. The means stand far enough apart for a sample to belong to one.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from model import grids
from model.follow import replay
from model.noise import Stream, normal
from model.plan import Plan, Z, from_prior
from model.process import VPLinear
from model.query import Condition, run
from model.samplers import ODE_SOLVERS, SAMPLERS
from tests.laws.gaussian import final_variance, marginal_variance
from tests.laws.mixture import denoiser, draw, mixture

NETWORK = mixture()
PROCESS = VPLinear(t_min=1e-3)
V, SHAPE = NETWORK.config.variance, NETWORK.config.shape
COUNT, STEPS = 400, 200
LEVEL = 0.2
"""The one noise level of ``langevin``: the means still stand apart."""
OPTIONS: dict[str, dict[str, Any]] = {
    "annealed_langevin": {"steps_per_level": 2},
    "langevin": {"step": 0.05},
}
BIASED = {"annealed_langevin", "ddpm", "langevin", "predictor_corrector"}
GRID = grids.log_snr(PROCESS, STEPS)


def factors(t: float | None) -> tuple[float, float]:
    """α and σ at t, those of the clean image for None."""
    if t is None:
        return 1.0, 0.0
    time = torch.tensor(t, dtype=torch.float64)
    return float(PROCESS.alpha(time)), float(PROCESS.sigma(time))


def noised(t: float) -> Tensor:
    """Exact draws of the mixture at t, the components in turn."""
    alpha, sigma = factors(t)
    noise = normal(torch.arange(COUNT) + 77_000, Stream.PRIOR, 0, SHAPE)
    return alpha * draw(NETWORK, COUNT) + sigma * noise


def replayed(plan: Plan, x: Tensor, h: Tensor | None = None) -> Tensor:
    seeds, condition = torch.arange(COUNT), Condition.same(COUNT)
    return run(replay(plan, x, seeds, condition, h=h), denoiser(NETWORK)).x


def pixel_scores(x: Tensor, t: float | None, within: float) -> Tensor:
    """How many standard errors the mean and the variance of each pixel are off, ``(2 D,)``.

    within: the variance that x should have inside a component.
    """
    means = factors(t)[0] * NETWORK.means.flatten(1)
    centre = means.mean(0)
    offset = (means - centre).square()
    variance = offset.mean(0) + within
    fourth = (offset.square() + 6.0 * offset * within + 3.0 * within**2).mean(0)
    x = x.flatten(1)
    mean_error = (x.mean(0) - centre) / (variance / COUNT).sqrt()
    variance_error = ((x - centre).square().mean(0) - variance) / (
        (fourth - variance.square()) / COUNT
    ).sqrt()
    return torch.cat((mean_error, variance_error))


def component_scores(x: Tensor, t: float | None, within: float) -> Tensor:
    """The same of each component's share, and last of the variance around the nearest mean."""
    x, means = x.flatten(1), factors(t)[0] * NETWORK.means.flatten(1)
    nearest = torch.cdist(x, means).argmin(1)
    share = 1.0 / len(means)
    found = torch.bincount(nearest, minlength=len(means)) / COUNT
    share_error = (found - share) / math.sqrt(share * (1.0 - share) / COUNT)
    residual = (x - means[nearest]).square().mean()
    return torch.cat((share_error, ((residual / within - 1.0) / math.sqrt(2.0 / x.numel()))[None]))


def plan_of(name: str) -> Plan:
    times = torch.full((STEPS,), LEVEL, dtype=torch.float64) if name == "langevin" else GRID
    return SAMPLERS[name](PROCESS, times, **OPTIONS.get(name, {}))


def sampled(name: str, *, temperature: float = 1.0) -> Tensor:
    """All scores of a sampler, the variance of whose noise is multiplied by the temperature."""
    plan = plan_of(name)
    # One step size has no way down from noise: Langevin shall stay at the p_t that it starts from.
    x = noised(LEVEL) if name == "langevin" else from_prior(plan, torch.arange(COUNT), SHAPE)
    start = marginal_variance(PROCESS, plan.start, V)
    end = V if plan.end is None else marginal_variance(PROCESS, plan.end, V)
    within = final_variance(plan, V, start) if name in BIASED else end
    table = plan.table.clone()
    table[:, :, Z] *= math.sqrt(temperature)
    found = replayed(dataclasses.replace(plan, table=table), x)
    moments = found, plan.end, within
    return torch.cat((pixel_scores(*moments), component_scores(*moments)))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samples_have_the_mixture_s_moments(name: str) -> None:
    assert float(sampled(name).abs().max()) < 4


@pytest.mark.parametrize("name", sorted(name for name in SAMPLERS if plan_of(name).noisy))
def test_noise_of_twice_the_temperature_is_noticed(name: str) -> None:
    assert float(sampled(name, temperature=2.0)[-1]) > 8


# The reversible pair decodes what it encoded: it is no solver of its own in that direction.
@pytest.mark.parametrize("name", sorted(set(ODE_SOLVERS) - {"reversible"}))
def test_decoded_noise_has_the_mixture_s_moments(name: str) -> None:
    plan = ODE_SOLVERS[name](PROCESS, GRID)
    end = PROCESS.t_min
    moments = replayed(plan, noised(plan.start)), end, marginal_variance(PROCESS, end, V)
    assert float(torch.cat((pixel_scores(*moments), component_scores(*moments))).abs().max()) < 4


@pytest.mark.parametrize("name", sorted(ODE_SOLVERS))
def test_encoded_images_have_the_prior_s_moments(name: str) -> None:
    plan = ODE_SOLVERS[name](PROCESS, GRID.flip(0))
    x, end = noised(plan.start), PROCESS.t_max
    found = replayed(plan, x, x)  # both copies of a pair start as the image
    assert float(pixel_scores(found, end, marginal_variance(PROCESS, end, V)).abs().max()) < 4
