"""Ancestral sampling: Ho et al. 2020, "Denoising diffusion probabilistic models", algorithm 2.

For any two times s < t (Kingma et al. 2021, appendix A), with α_ts = α_t/α_s and
σ²_ts = σ_t² − α_ts² σ_s²:

    q(x_s | x_t, x_0) = N( α_ts σ_s²/σ_t² x_t + α_s σ²_ts/σ_t² x_0,  σ²_ts σ_s²/σ_t² )

with x̂0 = (x_t − σ_t ε)/α_t in place of x_0. That variance is their β̃, right for data that are one
point; σ²_ts, their β, is right for data that are N(0, I).
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from model.plan import EPS, Plan, PlanBuilder, X, Z
from model.process import Process
from model.samplers.levels import steps_to_clean


def ddpm(
    process: Process, times: Tensor, *, variance: Literal["posterior", "beta"] = "posterior"
) -> Plan:
    """Ancestral sampling; one call a time, the last without noise to x̂0."""
    plan = PlanBuilder(process)
    for now, after in steps_to_clean(process, times):
        alpha_ts = now.alpha / after.alpha
        share = (after.sigma / now.sigma) ** 2
        variance_ts = now.sigma**2 - alpha_ts**2 * after.sigma**2
        x0_weight = after.alpha * variance_ts / now.sigma**2
        noise = variance_ts * (share if variance == "posterior" or share == 0.0 else 1.0)
        plan.call(
            now.t,
            x={
                X: alpha_ts * share + x0_weight / now.alpha,
                EPS: -x0_weight * now.ratio,
                Z: math.sqrt(noise),
            },
        )
    return plan.build(end=None)
