"""POST /loglik over HTTP, with the shipped model, on images that it never saw."""

import numpy as np
import pytest

from tests.e2e.running import Service
from training.data import Dataset


def bits_per_dim(service: Service, images: np.ndarray) -> np.ndarray:
    """Of images (N, 8, 8) in levels."""
    requests = [
        service.submit("/loglik", {"model": "digits", "seed": i}, part)
        for i, part in enumerate(np.array_split(images, -(-len(images) // 64)))
    ]
    results = [
        image for job in requests for image in service.succeeded(job, 500)["result"]["images"]
    ]
    assert all(image["converged"] for image in results)
    assert {image["t_min"] for image in results} == {1e-3}
    assert all(0.0 <= image["percentile"] <= 100.0 for image in results)
    return np.array([image["bits_per_dim"] for image in results])


def mean(bits: np.ndarray) -> tuple[float, float]:
    """The mean, and its standard error."""
    return float(bits.mean()), float(bits.std(ddof=1) / np.sqrt(len(bits)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "count", [pytest.param(16), pytest.param(None, id="all", marks=pytest.mark.slow)]
)
def test_held_out_digits_cost_less_than_two_bits_per_dim(
    service: Service, data: Dataset, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data.held_out.levels.numpy()[:count, 0]
    cost, error = mean(bits_per_dim(service, images))
    with capsys.disabled():
        print(f"\n  {len(images)} held-out digits: {cost:.3f} ± {error:.3f} bits/dim")
    # A part of the held-out digits may be harder than the whole by what chance allows.
    assert cost < 2.0 if count is None else cost - 2 * error < 2.0
    assert cost > 1.0, "far below what any model of these digits reaches: a sign is wrong"


def test_noise_and_shuffled_pixels_cost_far_more(
    service: Service, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    random, count = np.random.default_rng(0), 5
    digits = data.held_out.levels.numpy()[:count, 0]
    shuffled = random.permuted(digits.reshape(count, 64), axis=1).reshape(count, 8, 8)
    noise = random.integers(0, 17, (count, 8, 8)).astype(float)
    found = bits_per_dim(service, np.concatenate([digits, shuffled, noise]))
    costs = [mean(bits) for bits in np.split(found, 3)]
    with capsys.disabled():
        names = ("digits", "shuffled", "noise")
        figures = [f"{name} {m:.2f} ± {e:.2f}" for name, (m, e) in zip(names, costs, strict=True)]
        print(f"\n  bits/dim: {', '.join(figures)}")
    assert costs[1][0] > costs[0][0] + 1.0
    assert costs[2][0] > costs[0][0] + 1.0
