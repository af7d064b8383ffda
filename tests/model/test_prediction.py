import pytest
import torch

from model.noise import Stream, normal
from model.prediction import TO_EPS, angle, rows, x0_from_eps

LOG_SNR = torch.tensor([-8.0, -1.0, 0.0, 3.0], dtype=torch.float64)


def test_angle_lies_on_the_unit_circle_with_the_given_snr() -> None:
    cos, sin = angle(LOG_SNR)
    assert torch.allclose(cos**2 + sin**2, torch.ones(4, dtype=torch.float64))
    assert torch.allclose((cos**2 / sin**2).log(), LOG_SNR)


@pytest.mark.parametrize("name", sorted(TO_EPS))
def test_every_prediction_of_the_truth_gives_the_true_eps(name: str) -> None:
    x0 = normal(torch.arange(4), Stream.PRIOR, 0, (1, 2, 2))
    eps = normal(torch.arange(4), Stream.STEP, 0, (1, 2, 2))
    cos, sin = (rows(factor, x0) for factor in angle(LOG_SNR))
    u = cos * x0 + sin * eps
    truth = {"eps": eps, "x0": x0, "v": cos * eps - sin * x0}
    assert torch.allclose(TO_EPS[name](u, truth[name], LOG_SNR), eps, rtol=1e-9, atol=1e-9)
    assert torch.allclose(x0_from_eps(u, eps, LOG_SNR), x0, rtol=1e-9, atol=1e-9)
