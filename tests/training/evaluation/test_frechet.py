"""Distances of sets, against closed forms, scipy and double loops."""

import itertools
import math

import numpy as np
import pytest
from scipy import linalg

from training.evaluation import frechet
from training.evaluation.frechet import Gaussian, kernel_distance


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    return frechet.frechet_distance(Gaussian.of(first), Gaussian.of(second))


def normal(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def exact(n: int, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """n points whose sample mean and covariance are these to rounding."""
    points = normal(3, n, len(mean))
    points -= points.mean(0)
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(points, rowvar=False)), points.T).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


def test_gaussians_whose_covariances_commute_are_apart_as_the_closed_form_says() -> None:
    """Σ (σ₁ − σ₂)² + ‖μ₁ − μ₂‖² for diagonal covariances."""
    first, second = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    a = exact(50, np.zeros(3), np.diag(first))
    b = exact(80, np.array([1.0, 0.0, 2.0]), np.diag(second))
    closed = float(np.square(np.sqrt(first) - np.sqrt(second)).sum() + 5.0)
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-10)


def test_it_is_that_of_scipy_s_matrix_root() -> None:
    a = normal(0, 400, 12) @ normal(1, 12, 12)
    b = normal(2, 300, 12) @ normal(3, 12, 12) + 0.5
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(first @ second)
    found = float(np.square(a.mean(0) - b.mean(0)).sum())
    found += float(np.trace(first + second - 2.0 * root.real))
    assert frechet_distance(a, b) == pytest.approx(found, rel=1e-9)


def test_fewer_images_than_features_are_no_trouble() -> None:
    """Singular covariances, where a root of their product is not real."""
    a, b = normal(0, 20, 64), normal(1, 30, 64)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    # The same in coordinates in which nothing is singular: an orthogonal map changes no distance.
    basis = np.linalg.qr(np.concatenate((a, b)).T)[0]
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis))


def test_a_constant_feature_adds_its_difference_alone() -> None:
    a, b = normal(0, 50, 2), normal(1, 60, 2)
    wider_a = np.column_stack((a, np.full(50, 1.0)))
    wider_b = np.column_stack((b, np.full(60, 4.0)))
    assert frechet_distance(wider_a, wider_b) == pytest.approx(frechet_distance(a, b) + 9.0)


@pytest.mark.parametrize(("a", "b"), [((4, 2), (4, 3)), ((1, 2), (4, 2)), ((4,), (4, 2))])
def test_sets_that_do_not_compare_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needed"):
        kernel_distance(np.zeros(a), np.zeros(b))


@pytest.mark.parametrize("shape", [(1, 2), (4,), (2, 2, 2)])
def test_what_is_no_set_has_no_gaussian(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needed"):
        Gaussian.of(np.zeros(shape))


@pytest.mark.parametrize("n", [5, 12, 13, 40])
def test_a_gaussian_has_the_sets_moments_whichever_is_larger(n: int) -> None:
    points = normal(0, n, 12) @ normal(1, 12, 12) + 3.0
    found = Gaussian.of(points)
    covariance = np.cov(points, rowvar=False)
    assert np.allclose(found.mean, points.mean(0))
    assert np.allclose(found.root @ found.root.T, covariance)
    assert found.variance == pytest.approx(float(np.trace(covariance)))
    assert min(n, 12) == found.root.shape[1]


def by_loops(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate as its definition reads."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1.0) ** 3)

    m, n = len(x), len(y)
    own_x = sum(k(x[i], x[j]) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
    own_y = sum(k(y[i], y[j]) for i, j in itertools.permutations(range(n), 2)) / (n * (n - 1))
    across = sum(k(a, b) for a in x for b in y) / (m * n)
    return own_x + own_y - 2.0 * across


def test_the_kernel_distance_is_that_of_a_double_loop() -> None:
    x, y = normal(0, 17, 5), 1.5 * normal(1, 11, 5) + 0.3
    assert kernel_distance(x, y).value == pytest.approx(by_loops(x, y), rel=1e-12)


def test_its_error_is_that_of_leaving_out_every_image_in_turn() -> None:
    x, y = normal(0, 9, 4), normal(1, 7, 4) + 0.5
    variance = 0.0
    for which, other in ((x, y), (y, x)):
        left = [by_loops(np.delete(which, i, axis=0), other) for i in range(len(which))]
        variance += (len(left) - 1) * float(np.var(left))
    assert kernel_distance(x, y).standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_it_is_unbiased_and_its_error_is_the_spread_of_repetitions(shift: float) -> None:
    """E k(x, x') for Gaussians in closed form: x·x'/d has moments E(s²) = 1/d, all odd ones 0."""
    repetitions, d = 300, 8
    found = [
        kernel_distance(normal(2 * i, 60, d), normal(2 * i + 1, 40, d) + shift)
        for i in range(repetitions)
    ]
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    error = values.std() / math.sqrt(repetitions)
    assert abs(values.mean() - between_gaussians(shift, d)) < 4 * error
    # Not too small; too large by less than a half, where the first-order term is zero.
    assert 0.85 < math.sqrt(np.square(errors).mean()) / values.std() < 1.6


def between_gaussians(shift: float, d: int) -> float:
    """MMD² of N(0, I) and N(shift·1, I): E (s + 1)³ with s = xᵀy/d, by its moments."""

    def expected(a: float, b: float) -> float:
        """For means a·1 and b·1: s = m + g + w with m = ab, all per dimension."""
        # Cumulants of x·y in one dimension, for x ~ N(a, 1), y ~ N(b, 1) independent.
        k1 = a * b
        k2 = a * a + b * b + 1.0
        k3 = 6.0 * a * b
        mean, variance, third = k1, k2 / d, k3 / d**2
        c = mean + 1.0
        return c**3 + 3.0 * c * variance + third

    return expected(0, 0) + expected(shift, shift) - 2.0 * expected(0, shift)
