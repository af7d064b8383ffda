"""What a network predicts, and how one prediction becomes another: here and nowhere else.

With x = α x_0 + σ ε (Salimans & Ho 2022, appendix D):

    x̂0    = (x − σ ε)/α           score = −ε/σ           v = α ε − σ x̂0

Everything is written for the *standardised* state u = x / sqrt(α² + σ²) = cos φ x_0 + sin φ ε,
tan φ = σ/α, which is what networks see. φ is a function of the log-SNR alone,
sin²φ = sigmoid(−λ), so a network needs to know nothing of the process that it runs in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def angle(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """(cos φ, sin φ) of the noise level with this log-SNR: the factors on x_0 and on ε in u."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()


def rows(values: Tensor, like: Tensor) -> Tensor:
    """Per-row values ``(rows,)`` shaped to multiply ``like`` ``(rows, …)``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def x0_from_eps(u: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    """x̂0 = (u − sin φ ε)/cos φ: Tweedie's posterior mean. Shapes (rows, …), log_snr (rows,)."""
    return _x0(u, eps, *_factors(u, log_snr))


def eps_from_x0(u: Tensor, x0: Tensor, log_snr: Tensor) -> Tensor:
    """ε = (u − cos φ x̂0)/sin φ."""
    return _eps(u, x0, *_factors(u, log_snr))


def eps_from_v(u: Tensor, v: Tensor, log_snr: Tensor) -> Tensor:
    """ε = sin φ u + cos φ v."""
    cos, sin = _factors(u, log_snr)
    return sin * u + cos * v


def eps_of_clipped_x0(
    u: Tensor, eps: Tensor, cos: Tensor, sin: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The ε that belongs to u and to x̂0 clipped to [low, high].

    u, eps ``(rows, elements)``; the rest ``(rows, 1)``, cos φ and sin φ as of `angle`.
    """
    return _eps(u, _x0(u, eps, cos, sin).clamp(low, high), cos, sin)


def _factors(u: Tensor, log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """cos φ and sin φ, to multiply u."""
    cos, sin = angle(log_snr)
    return rows(cos, u), rows(sin, u)


def _x0(u: Tensor, eps: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (u - sin * eps) / cos


def _eps(u: Tensor, x0: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (u - cos * x0) / sin


def _identity(u: Tensor, eps: Tensor, log_snr: Tensor) -> Tensor:
    return eps


TO_EPS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "eps": _identity,
    "x0": eps_from_x0,
    "v": eps_from_v,
}
