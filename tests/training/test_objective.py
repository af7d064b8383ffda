import math

import pytest
import torch
from torch import Tensor, nn

from model.prediction import angle
from model.process import VPLinear
from training.objective import (
    TIME_SAMPLING,
    WEIGHTINGS,
    LossHistory,
    drop_labels,
    eps_loss,
    score_matching,
    stratified,
)

PROCESS = VPLinear(t_min=1e-3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parts(rows: int, shift: float = 0.37) -> Tensor:
    return stratified(torch.arange(rows), rows, shift)


class Best(nn.Module):
    """The best prediction of ε for x_0 = 0 exactly: ε = u / sin φ."""

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return u / torch.sigmoid(-log_snr).sqrt()[:, None, None, None]


class Nothing(nn.Module):
    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(u)


def loss(network: nn.Module, rows: int) -> Tensor:
    log_snr = PROCESS.log_snr(TIME_SAMPLING["log_snr"](PROCESS, parts(rows)))
    zeros = torch.zeros(rows, 1, 2, 2)
    eps = torch.randn(zeros.shape, generator=generator())
    return eps_loss(network, zeros, torch.zeros(rows).long(), log_snr, eps)


def test_loss_is_zero_for_the_truth_and_one_for_nothing() -> None:
    assert float(loss(Best(), 64).max()) < 1e-6
    n = 20_000  # ε² has variance 2; four values a row
    assert abs(float(loss(Nothing(), n).mean()) - 1.0) < 4 * math.sqrt(2 / (4 * n))


def test_stratified_numbers_fall_one_in_each_part() -> None:
    numbers = parts(16)
    assert sorted((numbers * 16).long().tolist()) == list(range(16))


@pytest.mark.parametrize("name", sorted(TIME_SAMPLING))
def test_sampled_times_lie_within_the_process_s(name: str) -> None:
    found = TIME_SAMPLING[name](PROCESS, parts(1000))
    assert float(found.min()) >= PROCESS.t_min
    assert float(found.max()) <= PROCESS.t_max


def test_log_snr_sampling_is_uniform_in_log_snr() -> None:
    times = TIME_SAMPLING["log_snr"](PROCESS, parts(1000))
    found = PROCESS.log_snr(times).sort().values
    assert torch.allclose(found.diff(), found.diff().mean().expand(999), rtol=1e-6)


TIMES = torch.tensor([1e-3, 0.1, 0.5, 0.99], dtype=torch.float64)


def test_likelihood_weighting_is_the_variational_bound_s() -> None:
    """Two papers, one weight: g² = −σ² λ'."""
    found = WEIGHTINGS["likelihood"](PROCESS, TIMES)
    assert torch.allclose(found, WEIGHTINGS["vlb"](PROCESS, TIMES), rtol=1e-9)
    matched = score_matching(PROCESS.diffusion_squared)(PROCESS, TIMES)
    assert torch.allclose(matched, found, rtol=1e-12)


def test_min_snr_is_one_where_noise_rules_and_falls_as_the_snr_grows() -> None:
    weight = WEIGHTINGS["min_snr"](PROCESS, TIMES)
    ratio = PROCESS.log_snr(TIMES).exp()
    assert torch.allclose(weight, ratio.clamp(max=5.0) / ratio)


def test_simple_in_log_snr_times_is_vlb_in_uniform_times() -> None:
    """The weight may be put into the density of t: the same integral, up to the range of λ."""
    ends = PROCESS.log_snr(torch.tensor([PROCESS.t_min, PROCESS.t_max], dtype=torch.float64))
    quantile = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000

    def integrand(t: Tensor) -> Tensor:
        return 1.0 / (1.0 + PROCESS.sigma(t))

    t = TIME_SAMPLING["uniform"](PROCESS, quantile)
    span = PROCESS.t_max - PROCESS.t_min
    by_weight = span * (WEIGHTINGS["vlb"](PROCESS, t) * integrand(t)).mean()
    by_density = (
        0.5 * (ends[0] - ends[1]) * integrand(TIME_SAMPLING["log_snr"](PROCESS, quantile)).mean()
    )
    assert float(by_weight) == pytest.approx(float(by_density), rel=1e-3)


class Truth(nn.Module):
    """Predicts what it is told exactly, for x_0 = 0.7 everywhere."""

    def __init__(self, prediction: str, off: float) -> None:
        super().__init__()
        self.prediction, self.off = prediction, off

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        cos, sin = (factor[:, None, None, None] for factor in angle(log_snr))
        eps = (u - cos * 0.7) / sin + self.off  # ε̂ − ε = off
        x0 = (u - sin * eps) / cos
        return {"eps": eps, "x0": x0, "v": cos * eps - sin * x0}[self.prediction]


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("off", [0.0, 0.3])
def test_the_loss_is_that_of_eps_whatever_the_network_predicts(prediction: str, off: float) -> None:
    rows = 32
    x0 = torch.full((rows, 1, 2, 2), 0.7)
    log_snr = torch.linspace(-4, 4, rows, dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator())
    found = eps_loss(Truth(prediction, off), x0, torch.zeros(rows).long(), log_snr, eps, prediction)
    assert torch.allclose(found, torch.full((rows,), off**2), rtol=2e-3, atol=1e-6)


def test_loss_history_draws_where_the_loss_is_and_keeps_the_expectation() -> None:
    history = LossHistory(bins=4, remembered=2)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000

    def loss(quantile: Tensor) -> Tensor:
        return 1.0 + 9.0 * (quantile > 0.75)

    places = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    history.record(places, loss(places))
    assert torch.allclose(history.draw(uniform)[0], uniform)  # too little to go by
    history.record(places, loss(places))
    drawn, weights = history.draw(uniform)
    share = float((drawn > 0.75).double().mean())
    assert share == pytest.approx(10 / 13, abs=0.01)
    assert float((loss(drawn) * weights).mean()) == pytest.approx(3.25, rel=2e-3)


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    n, p = 50_000, 0.1
    u = torch.rand(n, generator=generator())
    share = float((drop_labels(torch.ones(n).long(), p, u) == -1).double().mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
