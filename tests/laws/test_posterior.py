"""What the mixture's denoiser knows of x_0 given u, against Bayes' rule."""

import math

import pytest
import torch
from torch import Tensor

from model.likelihood import Hutchinson
from model.noise import Stream, normal
from model.posterior import Posterior, posterior
from model.prediction import angle
from model.query import Condition, run
from tests.laws.mixture import denoiser, draw, mixture

SHAPE = (1, 3, 2)
NETWORK = mixture(components=4, shape=SHAPE, variance=0.2)
LOG_SNR = 0.5


def noisy(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x_0, u, log-SNR) of points of the mixture."""
    x0 = draw(NETWORK, count)
    level = torch.full((count,), LOG_SNR, dtype=torch.float64)
    cos, sin = (float(factor[0]) for factor in angle(level))
    return x0, cos * x0 + sin * normal(torch.arange(count), Stream.STEP, 0, SHAPE), level


def found(u: Tensor, level: Tensor, probes: int) -> Posterior:
    operation = posterior(
        u, level, Condition.same(len(u)), Hutchinson(probes=probes), torch.arange(len(u))
    )
    return run(operation, denoiser(NETWORK))


def by_bayes(u: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of x_0 given u, from the components' own posteriors."""
    cos, sin = (float(factor[0]) for factor in angle(level))
    v = NETWORK.config.variance
    s2 = cos**2 * v + sin**2
    squared = (u[:, None] - cos * NETWORK.means).flatten(2).square().sum(2)
    weight = (-0.5 * squared / s2).softmax(1)[:, :, None, None, None]
    means = (sin**2 * NETWORK.means + v * cos * u[:, None]) / s2
    mean = (weight * means).sum(1)
    variance = v * sin**2 / s2 + (weight * means.square()).sum(1) - mean.square()
    return mean, variance


def test_mean_and_variance_are_bayes() -> None:
    _, u, level = noisy(5)
    answer, (mean, variance) = found(u, level, 4000), by_bayes(u, level)
    assert torch.allclose(answer.mean, mean, rtol=1e-9, atol=1e-9)
    # Off-diagonal entries of the covariance are the noise of the diagonal's estimate.
    assert float((answer.variance - variance).abs().max()) < 0.03
    error = (answer.trace - variance.flatten(1).sum(1)) / answer.trace_error
    assert float(error.abs().max()) < 4


def test_a_single_probe_has_no_standard_error() -> None:
    _, u, level = noisy(2)
    assert found(u, level, 1).trace_error.isnan().all()


def test_sure_s_mean_is_the_true_denoising_error() -> None:
    count = 4000
    x0, u, level = noisy(count)
    answer = found(u, level, 4)
    truth = (answer.mean - x0).flatten(1).square().sum(1)
    difference = answer.sure - truth
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(count)
    assert float(truth.mean()) == pytest.approx(float(answer.trace.mean()), rel=0.1)
