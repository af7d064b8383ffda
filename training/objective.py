"""The objective: the mean squared error of ε at random times.

L_simple of Ho et al. 2020, eq. 14, for t uniform. With t drawn uniformly in log-SNR the same
loss is, up to a constant factor, the continuous-time variational bound (Kingma et al. 2021,
eq. 18): the choice for a good likelihood. Times are stratified over the batch, as in their
appendix I.1, which lowers the variance of the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.prediction import angle, rows
from model.process import Process
from model.query import UNCONDITIONAL


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """One uniform number in each of ``count`` equal parts of [0, 1), float64, shifted together."""
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    return (torch.arange(count, dtype=torch.float64) / count + shift) % 1.0


def uniform_times(process: Process, quantile: Tensor) -> Tensor:
    """Log-SNR at times uniform in [t_min, t_max]."""
    return process.log_snr(process.t_min + (process.t_max - process.t_min) * quantile)


def log_snr_times(process: Process, quantile: Tensor) -> Tensor:
    """Log-SNR uniform between those of t_max and t_min."""
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    return ends[0] + (ends[1] - ends[0]) * quantile


TIME_SAMPLING: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
}


def drop_labels(labels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Labels with some replaced by "no class", so that one network learns both (for guidance)."""
    dropped = torch.rand(len(labels), generator=generator) < probability
    return torch.where(dropped, UNCONDITIONAL, labels)


def eps_loss(
    network: nn.Module, x0: Tensor, labels: Tensor, log_snr: Tensor, generator: torch.Generator
) -> Tensor:
    """‖ε − ε̂(u, λ, label)‖² a dimension, one value a row; x0 ``(rows, C, H, W)`` float32."""
    eps = torch.randn(x0.shape, generator=generator)
    cos, sin = angle(log_snr)
    u = rows(cos.float(), x0) * x0 + rows(sin.float(), x0) * eps
    predicted: Tensor = network(u, log_snr.float(), labels)
    return (predicted - eps).square().flatten(1).mean(1)
