import math

import pytest
import torch
from torch import Tensor, nn

from model.process import VPLinear
from training.objective import TIME_SAMPLING, drop_labels, eps_loss, stratified

PROCESS = VPLinear(t_min=1e-3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Best(nn.Module):
    """The best prediction of ε for x_0 = 0 exactly: ε = u / sin φ."""

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return u / torch.sigmoid(-log_snr).sqrt()[:, None, None, None]


class Nothing(nn.Module):
    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        return torch.zeros_like(u)


def loss(network: nn.Module, rows: int) -> Tensor:
    log_snr = TIME_SAMPLING["log_snr"](PROCESS, stratified(rows, generator()))
    zeros = torch.zeros(rows, 1, 2, 2)
    return eps_loss(network, zeros, torch.zeros(rows).long(), log_snr, generator())


def test_loss_is_zero_for_the_truth_and_one_for_nothing() -> None:
    assert float(loss(Best(), 64).max()) < 1e-6
    n = 20_000  # ε² has variance 2; four values a row
    assert abs(float(loss(Nothing(), n).mean()) - 1.0) < 4 * math.sqrt(2 / (4 * n))


def test_stratified_numbers_fall_one_in_each_part() -> None:
    numbers = stratified(16, generator())
    assert sorted((numbers * 16).long().tolist()) == list(range(16))


@pytest.mark.parametrize("name", sorted(TIME_SAMPLING))
def test_sampled_noise_levels_lie_within_the_process_s(name: str) -> None:
    ends = PROCESS.log_snr(torch.tensor([PROCESS.t_max, PROCESS.t_min], dtype=torch.float64))
    found = TIME_SAMPLING[name](PROCESS, stratified(1000, generator()))
    assert float(found.min()) >= float(ends[0])
    assert float(found.max()) <= float(ends[1])


def test_log_snr_sampling_is_uniform_in_log_snr() -> None:
    found = TIME_SAMPLING["log_snr"](PROCESS, stratified(1000, generator())).sort().values
    assert torch.allclose(found.diff(), found.diff().mean().expand(999), rtol=1e-6)


def test_labels_are_dropped_at_the_rate_asked_for() -> None:
    n, p = 50_000, 0.1
    share = float((drop_labels(torch.ones(n).long(), p, generator()) == -1).double().mean())
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)
