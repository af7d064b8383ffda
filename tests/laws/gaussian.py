"""Exact answers for Gaussian data, where ε is linear and a Plan's moments follow from its table.

For x_0 ~ N(0, v I): ε(x, t) = σ x / (α² v + σ²).
"""

import numpy as np
import torch
from torch import Tensor

from model.plan import EPS, Plan, Z
from model.process import Process


def marginal_variance(process: Process, t: float, v: float) -> float:
    """Variance of x_t: α² v + σ²."""
    time = torch.tensor(t, dtype=torch.float64)
    return float(process.alpha(time).square() * v + process.sigma(time).square())


def eps_factor(process: Process, times: Tensor, v: float) -> Tensor:
    """c with ε = c x, at each time."""
    alpha, sigma = process.alpha(times), process.sigma(times)
    return sigma / (alpha.square() * v + sigma.square())


def final_variance(plan: Plan, v: float, start_variance: float, *, paired: bool = False) -> float:
    """Exact variance of the sample, by a recursion over the covariance of the registers (x, h, y).

    The start is x = y ~ N(0, start_variance), and h = 0, or h = x for a paired solver.
    """
    covariance = np.zeros((3, 3))
    covariance[[0, 0, 2, 2], [0, 2, 0, 2]] = start_variance
    if paired:
        covariance[:] = start_variance
    matrices = plan.table[..., :3].clone()  # (calls, 3, 3)
    matrices[..., 2] += plan.table[..., EPS] * eps_factor(plan.process, plan.times, v)[:, None]
    noise = plan.table[..., Z, None]  # (calls, 3, 1)
    for matrix, added in zip(matrices.numpy(), (noise * noise.mT).numpy(), strict=True):
        covariance = matrix @ covariance @ matrix.T + added
    return float(covariance[0, 0])
