"""Implicit, sliced and denoising score matching have one minimiser.

On x ~ N(0, v) with the linear score s(x) = −a x each expected loss is a parabola in a:

    implicit, sliced   ½ a² v − a             least at a = 1/v
    denoising          least at a = 1/(v + σ²): the score of the blurred Gaussian
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.noise import Stream, normal, rademacher
from training.score_matching import denoising, implicit, sliced

V, SIGMA, COUNT, N = 0.6, 0.3, 20_000, 3
KEYS = torch.arange(COUNT)
X = math.sqrt(V) * normal(KEYS, Stream.PRIOR, 0, (N,))
EPS = normal(KEYS, Stream.STEP, 0, (N,))
DIRECTIONS = rademacher(KEYS, Stream.PROBE, 0, (N,))

LOSSES: dict[str, tuple[Callable[[Callable[[Tensor], Tensor]], Tensor], float]] = {
    "implicit": (lambda score: implicit(score, X), 1 / V),
    "sliced": (lambda score: sliced(score, X, DIRECTIONS), 1 / V),
    "denoising": (lambda score: denoising(score, X, EPS, SIGMA), 1 / (V + SIGMA**2)),
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_minimiser_is_the_gaussian_s_score(name: str) -> None:
    loss, truth = LOSSES[name]
    at = [float(loss(lambda x, a=a: -a * x).detach().mean()) for a in (0.0, 1.0, 2.0)]
    curvature = at[0] - 2 * at[1] + at[2]  # a parabola, exactly
    best = 0.5 * (3 * at[0] - 4 * at[1] + at[2]) / curvature
    # The minimiser is a ratio of sample moments: its error is about √(2/(COUNT · N)).
    assert best == pytest.approx(truth, rel=4 * math.sqrt(2 / (COUNT * N)) * 1.5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_of_the_score_s_own_weights_is_the_slope_of_its_loss(name: str) -> None:
    loss, _ = LOSSES[name]
    a, h = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), 1e-3
    (gradient,) = torch.autograd.grad(loss(lambda x: -a * x).mean(), a)
    above, below = (float(loss(lambda x, b=b: -b * x).detach().mean()) for b in (0.7 + h, 0.7 - h))
    assert float(gradient) == pytest.approx((above - below) / (2 * h), rel=1e-6)
