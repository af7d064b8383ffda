"""An algebraically reversible solver of the probability-flow ODE.

The coupled pair of McCallum & Foster 2024 ("Efficient, accurate and stable gradients for neural
ODEs", eq. 5–6) around Euler steps of d(x/α)/dρ = ε. With Y, Z two copies of x/α and a step Δ in ρ:

    Y' = λ Y + (1 − λ) Z + Δ ε(Z, ρ)          Z' = Z + Δ ε(Y', ρ')

Both lines can be solved for the old pair, so decoding undoes encoding to float rounding whatever
the step count, if it starts from the *pair*: x holds Y and h holds Z. Decoding from one of them
alone (h := x) is no inverse, and diverges; so does an edited pair. Two calls a step, order 2.
"""

from __future__ import annotations

from torch import Tensor

from model.plan import EPS, H, Plan, PlanBuilder, X
from model.process import Process
from model.samplers.levels import steps

COUPLING = 1.0
"""λ. Below 1 it pulls the pair together, at the cost of the second order, and decoding multiplies
rounding by 1/λ a step. Measured in benchmarks/RESULTS.md: 1 is the most accurate and loses nothing.
"""


def reversible(process: Process, times: Tensor, *, coupling: float = COUPLING) -> Plan:
    """Rising times (encoding, from h = x) follow the pair, falling ones (decoding) undo it."""
    plan = PlanBuilder(process)
    encoding = bool(times[-1] > times[0])
    for now, after in steps(process, times):
        ratio, step = after.alpha / now.alpha, after.ratio - now.ratio
        if encoding:
            y = {X: ratio * coupling, H: ratio * (1.0 - coupling), EPS: after.alpha * step}
            plan.call(now.t, x=y, h={H: ratio})
            z = {H: 1.0, EPS: after.alpha * step}
            plan.call(after.t, x={X: 1.0}, h=z, y=z)
        else:
            z = {H: ratio, EPS: after.alpha * step}
            plan.call(now.t, x={X: ratio}, h=z, y=z)
            y = {
                X: 1.0 / coupling,
                H: (coupling - 1.0) / coupling,
                EPS: after.alpha * step / coupling,
            }
            plan.call(after.t, x=y)
    return plan.build(end=float(times[-1]))
