"""DDIM: Song, Meng & Ermon 2021, "Denoising diffusion implicit models", eq. 12 and 16.

    x_s = α_s x̂0 + sqrt(σ_s² − η² ς²) ε + η ς z,    ς² = σ²_ts σ_s²/σ_t²

where ς² is the variance of the ancestral step: η = 0 is deterministic, η = 1 is `ddpm`.
"""

from __future__ import annotations

import math

from torch import Tensor

from model.plan import EPS, Plan, PlanBuilder, X, Z
from model.process import Process
from model.samplers.levels import steps_to_clean


def ddim(process: Process, times: Tensor, *, eta: float = 0.0) -> Plan:
    """DDIM with η in [0, 1]; one call a time, the last to x̂0."""
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    plan = PlanBuilder(process)
    for now, after in steps_to_clean(process, times):
        ratio = after.alpha / now.alpha
        variance_ts = now.sigma**2 - (after.sigma / ratio) ** 2
        noise = eta * math.sqrt(variance_ts) * after.sigma / now.sigma
        plan.call(
            now.t,
            x={
                X: ratio,
                EPS: math.sqrt(after.sigma**2 - noise**2) - ratio * now.sigma,
                Z: noise,
            },
        )
    return plan.build(end=None)
