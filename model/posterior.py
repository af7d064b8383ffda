"""What a denoiser knows of the clean image behind a noisy one.

For u = cos φ x_0 + sin φ ε and J = ∂ε/∂u:

    mean        E[x_0 | u]   = (u − sin φ ε)/cos φ                     Tweedie: Efron 2011
    covariance  Cov[x_0 | u] = tan²φ (I − sin φ J)                     Tweedie, second order
    risk        E ‖x̂0 − x_0‖² ≈ tan²φ (‖ε‖² + D − 2 sin φ tr J)        SURE: Stein 1981

Diagonal and trace of J are estimated by probes (Bekas et al. 2007; Hutchinson 1990). The last
needs no clean image: its mean over noisy ones is the true error of the denoiser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from model.likelihood import Hutchinson
from model.prediction import angle, rows, x0_from_eps
from model.query import Condition, Operation, Query


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Of x_0 given u, all float64.

    mean, variance: ``(rows, C, H, W)``, the variance being the covariance's diagonal.
    trace: of the covariance, ``(rows,)``; trace_error: its standard error over the probes, NaN
    for a single one. sure: Stein's unbiased estimate of ‖x̂0 − x_0‖², ``(rows,)``.
    """

    mean: Tensor
    variance: Tensor
    trace: Tensor
    trace_error: Tensor
    sure: Tensor


def posterior(
    u: Tensor, log_snr: Tensor, condition: Condition, probes: Hutchinson, seeds: Tensor
) -> Operation[Posterior]:
    """What the model believes of x_0 behind u ``(rows, C, H, W)`` at log_snr ``(rows,)``."""
    directions = probes.draw(seeds, tuple(u.shape[1:]))
    answer = yield Query(
        u=u,
        log_snr=log_snr,
        condition=condition,
        probes=directions,
        reproducible=True,
    )
    if answer.products is None:
        raise RuntimeError("the denoiser left out the products that the query asked for")
    cos, sin = angle(log_snr)
    ratio = (sin / cos).square()
    dimensions = u[0].numel()
    parts = answer.products * directions  # (rows, K, C, H, W), each an estimate of diag J
    traces = parts.flatten(2).sum(2)
    trace = traces.mean(1)
    error = traces.std(1) / math.sqrt(probes.probes) if probes.probes > 1 else trace * math.nan
    squared = answer.eps.flatten(1).square().sum(1)
    return Posterior(
        mean=x0_from_eps(u, answer.eps, log_snr),
        variance=rows(ratio, u) * (1.0 - rows(sin, u) * parts.mean(1)),
        trace=ratio * (dimensions - sin * trace),
        trace_error=ratio * sin * error,
        sure=ratio * (squared + dimensions - 2.0 * sin * trace),
    )
