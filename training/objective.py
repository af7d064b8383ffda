"""Objectives of denoising: what the error counts at each noise level, and where it is drawn.

All are a weighted ‖ε − ε̂‖²; with λ the log-SNR, in continuous time:

    simple      1                       L_simple: Ho et al. 2020, eq. 14
    vlb         −½ λ'(t)                the variational bound: Kingma et al. 2021 (VDM), eq. 18
    likelihood  ½ g²/σ²                 g²-weighted score matching: Song et al. 2021b, eq. 7
    snr         SNR                     ‖x_0 − x̂0‖² weighted by SNR², as v-prediction nearly does
    min_snr     min(SNR, γ)/SNR, γ = 5  Hang et al. 2023, eq. 9

`vlb` and `likelihood` are one function, since g² = −σ² λ'. A network may predict ε, x_0 or v: the
error of its own target is taken and scaled to that of ε (Salimans & Ho 2022, appendix D).

With t drawn uniformly in log-SNR, `simple` is `vlb` up to a constant: the weight has become the
density of t. Times are stratified over the batch (VDM, appendix I.1), which lowers the variance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.prediction import angle, rows
from model.process import Process
from model.query import UNCONDITIONAL

MIN_SNR_GAMMA = 5.0


def simple(process: Process, t: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(t)


def vlb(process: Process, t: Tensor) -> Tensor:
    """−½ λ'(t)."""
    return -0.5 * process.log_snr_slope(t)


def likelihood(process: Process, t: Tensor) -> Tensor:
    """½ g²/σ²."""
    return 0.5 * process.diffusion_squared(t) / process.sigma(t).square()


def snr(process: Process, t: Tensor) -> Tensor:
    """SNR."""
    return process.log_snr(t).exp()


def min_snr(process: Process, t: Tensor) -> Tensor:
    """min(SNR, γ)/SNR."""
    return (MIN_SNR_GAMMA * (-process.log_snr(t)).exp()).clamp(max=1.0)


WEIGHTINGS: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "simple": simple,
    "vlb": vlb,
    "likelihood": likelihood,
    "snr": snr,
    "min_snr": min_snr,
}


def score_matching(scale: Callable[[Tensor], Tensor]) -> Callable[[Process, Tensor], Tensor]:
    """The weighting of ½ scale(t) ‖score − ŝ‖² for any scale: Song et al. 2021, eq. 7.

    score = −ε/σ, so it is ½ scale(t)/σ² on ε.
    """
    return lambda process, t: 0.5 * scale(t) / process.sigma(t).square()


def stratified(places: Tensor, batch_size: int, shift: float) -> Tensor:
    """One number in each of ``batch_size`` equal parts of [0, 1), all shifted together.

    places: int64 ``(rows,)``, which parts; float64 ``(rows,)``. shift: uniform in [0, 1).
    """
    return (places.double() / batch_size + shift) % 1.0


def uniform_times(process: Process, quantile: Tensor) -> Tensor:
    """Times uniform in [t_min, t_max]."""
    return process.t_min + (process.t_max - process.t_min) * quantile


def log_snr_times(process: Process, quantile: Tensor) -> Tensor:
    """Times whose log-SNR is uniform between those of t_max and t_min."""
    ends = process.log_snr(torch.tensor([process.t_min, process.t_max], dtype=torch.float64))
    return process.time(ends[0] + (ends[1] - ends[0]) * quantile)


TIME_SAMPLING: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "uniform": uniform_times,
    "log_snr": log_snr_times,
}


class LossHistory:
    """Draws times where the loss has been large: Nichol & Dhariwal 2021, §3.3.

    The quantiles [0, 1) are cut into bins; a bin is drawn in proportion to the root mean square of
    its last losses, and its loss is divided by that, so the expectation stays what it was.
    """

    def __init__(self, bins: int = 20, remembered: int = 10) -> None:
        self._losses = torch.full((bins, remembered), torch.nan, dtype=torch.float64)

    @property
    def probabilities(self) -> Tensor:
        """Of each bin, ``(bins,)``; uniform until every bin has a full history."""
        bins = len(self._losses)
        if self._losses.isnan().any():
            return torch.full((bins,), 1.0 / bins, dtype=torch.float64)
        size = self._losses.square().mean(1).sqrt()
        return 0.999 * size / size.sum() + 0.001 / bins

    def draw(self, quantile: Tensor) -> tuple[Tensor, Tensor]:
        """(quantiles drawn by importance, weights 1/(bins · p)), from uniform ones ``(rows,)``."""
        probabilities = self.probabilities
        edges = torch.cat((torch.zeros(1, dtype=torch.float64), probabilities.cumsum(0)))
        index = (torch.searchsorted(edges, quantile, right=True) - 1).clamp(
            0, len(probabilities) - 1
        )
        within = (quantile - edges[index]) / probabilities[index]
        bins = len(probabilities)
        return (index + within.clamp(0.0, 1.0)) / bins, 1.0 / (bins * probabilities[index])

    @property
    def losses(self) -> Tensor:
        """What is remembered, float64 ``(bins, remembered)``, the latest last; NaN: nothing yet."""
        return self._losses

    def restore(self, losses: Tensor) -> None:
        """Remember these instead."""
        self._losses.copy_(losses)

    def record(self, quantile: Tensor, loss: Tensor) -> None:
        """Remember losses ``(rows,)`` (not reweighted) at the quantiles that were drawn."""
        bins = len(self._losses)
        for index, value in zip((quantile * bins).long().clamp(max=bins - 1), loss, strict=True):
            self._losses[index] = torch.cat((self._losses[index, 1:], value.double()[None]))


def drop_labels(labels: Tensor, probability: float, u: Tensor) -> Tensor:
    """Labels with some replaced by "no class", so that one network learns both (for guidance).

    u: uniform in [0, 1), one a label.
    """
    return torch.where(u < probability, UNCONDITIONAL, labels)


def eps_loss(
    network: nn.Module,
    x0: Tensor,
    labels: Tensor,
    log_snr: Tensor,
    eps: Tensor,
    prediction: str = "eps",
) -> Tensor:
    """‖ε − ε̂‖² a dimension, one value a row; x0 and eps ``(rows, C, H, W)``, log_snr ``(rows,)``.

    The error is measured on what the network predicts: ε − ε̂ is (x̂0 − x_0) · cos φ/sin φ, or
    (v − v̂) cos φ.
    """
    cos, sin = angle(log_snr)
    a, b = rows(cos.float(), x0), rows(sin.float(), x0)
    target, factor = {
        "eps": (eps, torch.ones_like(cos)),
        "x0": (x0, cos / sin),
        "v": (a * eps - b * x0, cos),
    }[prediction]
    predicted: Tensor = network(a * x0 + b * eps, log_snr.float(), labels)
    return (predicted - target).square().flatten(1).mean(1) * factor.square().float()
