"""An exact model: a Gaussian mixture, whose ε, score and log p_t are closed forms at every t.

For data x_0 ~ Σ_k w_k N(m_k, v I) the standardised state u = cos φ x_0 + sin φ ε is again a
mixture, with means cos φ m_k and variance s² = cos²φ v + sin²φ, so

    ε(u) = sin φ (u − cos φ Σ_k r_k(u) m_k) / s²,   r_k(u) ∝ w_k N(u; cos φ m_k, s² I).

It saves, loads and serves like any network: it is the oracle of the tests. A class is one mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.prediction import angle, rows
from model.process import Process


@dataclass(frozen=True, kw_only=True)
class GaussianMixtureConfig:
    """components: number of means; shape: (C, H, W); variance: v, of every component."""

    components: int
    shape: tuple[int, int, int]
    variance: float


class GaussianMixture(nn.Module):
    """Maps (u, log_snr, label) to the exact ε; equal weights; class k is component k alone."""

    means: Tensor

    def __init__(self, config: GaussianMixtureConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.components, *config.shape)
        self.register_buffer("means", torch.zeros(shape, dtype=torch.float64))

    def forward(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """ε (rows, C, H, W), float64."""
        cos, sin = angle(log_snr)
        variance = cos.square() * self.config.variance + sin.square()
        weight = self._responsibilities(u, cos, variance, label)
        mean = torch.einsum("rk,kchw->rchw", weight, self.means)
        return rows(sin / variance, u) * (u - rows(cos, u) * mean)

    def eps_trace(self, u: Tensor, log_snr: Tensor, label: Tensor) -> Tensor:
        """tr ∂ε/∂u in closed form, (rows,): sin φ/s² (D − cos²φ/s² Var_r[m]).

        Var_r[m] = Σ_k r_k |m_k|² − |Σ_k r_k m_k|² is the spread of the means.
        """
        cos, sin = angle(log_snr)
        variance = cos.square() * self.config.variance + sin.square()
        weight = self._responsibilities(u, cos, variance, label)
        means = self.means.flatten(1)
        spread = weight @ means.square().sum(1) - (weight @ means).square().sum(1)
        return sin / variance * (means.shape[1] - cos.square() / variance * spread)

    def log_prob(self, process: Process, x: Tensor, t: float) -> Tensor:
        """log p_t(x) in nats, (rows,), of the process's own state x_t (rows, C, H, W), float64."""
        time = torch.tensor([t], dtype=torch.float64)
        scale = process.scale(time)
        cos, sin = angle(process.log_snr(time))
        variance = cos.square() * self.config.variance + sin.square()
        log_joint = self._log_joint(x / scale, cos, variance)
        dimensions = math.prod(self.config.shape)
        constant = math.log(self.config.components) + 0.5 * dimensions * math.log(2.0 * math.pi)
        normaliser = constant + dimensions * (0.5 * variance.log() + scale.log())
        return log_joint.logsumexp(1) - normaliser

    def _responsibilities(self, u: Tensor, cos: Tensor, variance: Tensor, label: Tensor) -> Tensor:
        """r_k(u), (rows, components); all on one component where a label names it."""
        logits = self._log_joint(u, cos, variance)
        chosen = torch.arange(self.config.components, device=label.device) == label[:, None]
        return logits.masked_fill((label[:, None] >= 0) & ~chosen, -math.inf).softmax(1)

    def _log_joint(self, u: Tensor, cos: Tensor, variance: Tensor) -> Tensor:
        """log N(u; cos φ m_k, s² I) up to its normaliser: (rows, components)."""
        centres = cos[:, None, None, None, None] * self.means
        squared = (u[:, None] - centres).flatten(2).square().sum(2)
        return -0.5 * squared / variance[:, None]
