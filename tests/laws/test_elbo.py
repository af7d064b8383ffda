"""The bound on an exact one-dimensional model, where log p of a level is an integral."""

import math

import pytest
import torch
from torch import Tensor

from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.data import DataSpec
from model.elbo import Elbo, _recon, elbo
from model.prediction import angle
from model.process import VPLinear
from model.query import Answer, Condition, Query, run
from tests.laws.mixture import denoiser

PROCESS = VPLinear(t_min=1e-2)
SPEC = DataSpec(shape=(1, 1, 1), levels=48, low=-2.4, high=2.4)
LEVELS = torch.arange(48, dtype=torch.float64).reshape(-1, 1, 1, 1)
REPEATS = 20


@pytest.fixture(scope="module")
def network() -> GaussianMixture:
    network = GaussianMixture(GaussianMixtureConfig(components=3, shape=(1, 1, 1), variance=0.04))
    network.means.copy_(torch.tensor([-1.0, 0.2, 1.1]).reshape(3, 1, 1, 1))
    return network


@pytest.fixture(scope="module")
def masses(network: GaussianMixture) -> Tensor:
    """The data's distribution over the levels: the mixture's mass at each, normalised."""
    x = SPEC.to_model(LEVELS)
    density = network.log_prob(PROCESS, x, PROCESS.t_min).exp()
    return density / density.sum()


@pytest.fixture(scope="module")
def log_p(network: GaussianMixture) -> Tensor:
    """log ∫ p(x_tmin) p(v | x̂0(x_tmin)) dx for every level, by the trapezoidal rule.

    The integrand is smooth and 0 at both ends: 1,201 points and 4,801 agree to 1e-13.
    """
    points = 1201
    level = PROCESS.log_snr(torch.tensor([PROCESS.t_min], dtype=torch.float64)).expand(points)
    cos = angle(level)[0]
    around = torch.linspace(-0.6, 0.6, points, dtype=torch.float64)
    values = []
    for v in LEVELS:
        state = (SPEC.to_model(v) * cos + around).reshape(-1, 1, 1, 1)  # the scale of VP is 1
        eps = network(state, level, torch.full((points,), -1))
        query = Query(u=state, log_snr=level, condition=Condition.same(points))
        decoded = (-_recon(SPEC, v.expand(points, 1, 1, 1), query, Answer(eps=eps))).exp()
        density = network.log_prob(PROCESS, state, PROCESS.t_min).exp()
        values.append(torch.trapezoid(density * decoded, state.flatten()).log())
    return torch.stack(values)


def bound(network: GaussianMixture, steps: int | None, draws: int) -> Elbo:
    levels = LEVELS.repeat(REPEATS, 1, 1, 1)
    operation = elbo(
        PROCESS,
        SPEC,
        levels,
        Condition.same(len(levels)),
        torch.arange(len(levels)),
        steps=steps,
        draws=draws,
    )
    return run(operation, denoiser(network))


def mean_gap(found: Elbo, masses: Tensor, log_p: Tensor) -> tuple[float, float]:
    """E_data[bound + log p], and its standard error over the repeats."""
    totals = found.total.reshape(REPEATS, -1)
    gaps = ((totals + log_p) * masses).sum(1)
    return float(gaps.mean()), float(gaps.std() / math.sqrt(REPEATS))


def test_the_bound_holds_on_average_and_closes_as_the_steps_grow(
    network: GaussianMixture, masses: Tensor, log_p: Tensor
) -> None:
    gaps = [mean_gap(bound(network, *at), masses, log_p) for at in ((8, 8), (64, 64), (None, 128))]
    for gap, error in gaps:
        assert gap > -4 * error
    assert gaps[0][0] > gaps[1][0] + 4 * gaps[1][1]
    assert gaps[1][0] > gaps[2][0]
    assert gaps[2][0] < 0.1


def test_few_draws_estimate_the_same_bound_and_say_how_well(network: GaussianMixture) -> None:
    few, all_steps = bound(network, 64, 8), bound(network, 64, 64)
    difference = (few.diffusion - all_steps.diffusion).mean()
    error = (few.diffusion - all_steps.diffusion).std() / math.sqrt(len(few.diffusion))
    assert abs(float(difference)) < 4 * float(error) + 0.02 * float(all_steps.diffusion.mean())
    assert few.nfe == 8 + 8


def test_prior_term_is_the_kl_of_two_gaussians(network: GaussianMixture) -> None:
    found = bound(network, 8, 8).prior[: len(LEVELS)]
    t = torch.tensor([PROCESS.t_max], dtype=torch.float64)
    q = torch.distributions.Normal(
        (PROCESS.alpha(t) * SPEC.to_model(LEVELS)).flatten(), PROCESS.sigma(t)
    )
    p = torch.distributions.Normal(torch.tensor(0.0).double(), PROCESS.scale(t))
    expected = torch.distributions.kl_divergence(q, p)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_the_decoder_s_masses_sum_to_one() -> None:
    for x0 in (-3.0, -2.4, 0.01, 2.39):
        level = torch.tensor([5.0], dtype=torch.float64)
        cos, sin = angle(level)
        u = torch.full((1, 1, 1, 1), x0, dtype=torch.float64) * cos + sin * 0.7
        query = Query(u=u, log_snr=level, condition=Condition.same(1))
        answer = Answer(eps=torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64))
        masses = [float((-_recon(SPEC, v[None], query, answer)).exp()) for v in LEVELS]
        assert sum(masses) == pytest.approx(1.0, abs=1e-12)


def test_more_draws_than_steps_are_refused(network: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="there are 4 steps"):
        bound(network, 4, 8)
