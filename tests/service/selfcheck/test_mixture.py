"""The self-check's closed forms against those of `model.analytic`, and its file against the zoo."""

from pathlib import Path

import numpy as np
import pytest
import torch

import model
from model import checkpoint
from model.prediction import angle
from service.selfcheck import mixture
from tests.laws.gaussian import marginal_variance

SHIPPED = Path(model.__file__).parent / "zoo" / "analytic.safetensors"
LOADED = checkpoint.load(SHIPPED)
PROCESS, NETWORK, SPEC = LOADED.description.process, LOADED.network, LOADED.description.data
TIMES = [mixture.T_MIN, 0.1, 0.4, mixture.T_MAX]


def test_the_shipped_file_is_the_one_that_the_check_writes():
    assert SHIPPED.read_bytes() == mixture.checkpoint()


def images() -> tuple[mixture.Floats, torch.Tensor]:
    x = mixture.draw(5, seed=8)
    return x, torch.from_numpy(x).reshape(5, *mixture.SHAPE)


@pytest.mark.parametrize("t", TIMES)
def test_log_density_and_score_are_the_network_s(t: float):
    x, tensor = images()
    log_prob = NETWORK.log_prob(PROCESS, tensor, t)
    np.testing.assert_allclose(mixture.log_density(x, t), log_prob, rtol=1e-12)
    log_snr = PROCESS.log_snr(torch.full((5,), t, dtype=torch.float64))
    for label in (None, 1):
        labels = torch.full((5,), -1 if label is None else label)
        scale = PROCESS.scale(torch.tensor(t, dtype=torch.float64))
        eps = NETWORK(tensor / scale, log_snr, labels)
        score = -(eps / angle(log_snr)[1][:, None, None, None]).reshape(5, -1)
        np.testing.assert_allclose(mixture.score(x, t, label), score, rtol=1e-9, atol=1e-9)
    assert mixture.variance_at(t) == pytest.approx(
        marginal_variance(PROCESS, t, mixture.VARIANCE), rel=1e-12
    )


def test_a_class_is_a_third_of_the_mixture():
    x = mixture.draw(5, seed=8)
    parts = np.stack([mixture.log_density(x, 0.5, label) for label in range(3)])
    np.testing.assert_allclose(np.exp(parts).mean(0), np.exp(mixture.log_density(x, 0.5)))


def test_levels_are_those_of_the_checkpoint():
    x, tensor = images()
    np.testing.assert_allclose(mixture.to_levels(x), SPEC.to_levels(tensor).reshape(5, -1))
    np.testing.assert_allclose(mixture.to_model(mixture.to_levels(x)), x, rtol=1e-12)
    assert mixture.to_levels(np.array([9.0, -9.0])).tolist() == [255.0, 0.0]


def test_the_mass_of_cells_is_nearly_their_density_times_their_volume():
    """To second order: the mean over a cell is off by cell²/24 of the curvature."""
    levels = np.round(mixture.to_levels(mixture.draw(4, seed=9)))
    x = mixture.to_model(levels)
    distance = np.square(x[:, None] - mixture.means()).sum(2).min(1)
    v, d = mixture.VARIANCE, mixture.D
    correction = mixture.CELL**2 / 24 * (distance / v - d) / v
    expected = mixture.log_density(x, 0.0) + d * np.log(mixture.CELL) + correction
    np.testing.assert_allclose(mixture.log_mass(levels), expected, atol=1e-4)
