"""Score matching as it was before diffusion: three losses with one minimiser, ∇ log p.

    implicit   ½ ‖s(x)‖² + tr ∇s(x)                 Hyvärinen 2005, eq. 4
    sliced     ½ ‖s(x)‖² + vᵀ ∇s(x) v               Song et al. 2019, eq. 8 (variance-reduced)
    denoising  ½ ‖s(x + σ ε) + ε/σ‖²                Vincent 2011, eq. 11: of p blurred by σ

Each takes a score network s and points x ``(rows, n)`` and returns one value a row; the gradients
of the network's weights flow through all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]


def implicit(score: Score, x: Tensor) -> Tensor:
    """With the exact trace: n backward passes."""
    x = x.detach().requires_grad_(True)
    s = score(x)
    trace = torch.zeros(len(x), dtype=x.dtype)
    for d in range(x.shape[1]):
        (row,) = torch.autograd.grad(s[:, d].sum(), x, create_graph=True)
        trace = trace + row[:, d]
    return 0.5 * s.square().sum(1) + trace


def sliced(score: Score, x: Tensor, directions: Tensor) -> Tensor:
    """With one direction v a row, ``(rows, n)``, of zero mean and unit covariance."""
    x = x.detach().requires_grad_(True)
    s = score(x)
    (product,) = torch.autograd.grad(s, x, directions, create_graph=True)
    return 0.5 * s.square().sum(1) + (product * directions).sum(1)


def denoising(score: Score, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """At x + σ ε, eps ``(rows, n)`` standard normal."""
    return 0.5 * (score(x + sigma * eps) + eps / sigma).square().sum(1)
