"""Predictor–corrector sampling: Song et al. 2021, algorithm 2, with a fixed corrector step.

The predictor is a step of `reverse_sde`, the corrector one of Langevin at the level reached. The
paper's step 2 (r ‖z‖/‖score‖)² depends on the batch; with ‖score‖ ≈ ‖z‖/σ it is

    η = 2 r² σ²

which is the same for every image and linear in the state.
"""

from __future__ import annotations

from torch import Tensor

from model.plan import Plan, PlanBuilder
from model.process import Process
from model.samplers.langevin import langevin_step
from model.samplers.levels import levels
from model.samplers.reverse_sde import euler_maruyama


def predictor_corrector(
    process: Process, times: Tensor, *, r: float = 0.16, corrections: int = 1
) -> Plan:
    """1 + ``corrections`` calls a step, r the signal-to-noise ratio of the corrector; then x̂0."""
    plan = PlanBuilder(process)
    for now, after, x in euler_maruyama(process, times):
        plan.call(now.t, x=x)
        for _ in range(corrections):
            plan.call(after.t, x=langevin_step(after, 2.0 * (r * after.sigma) ** 2))
    last = levels(process, times[-1:])[0]
    plan.call(last.t, x=last.x0)
    return plan.build(end=None)
