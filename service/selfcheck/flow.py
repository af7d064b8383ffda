"""The probability-flow ODE of the mixture, solved here: what latents and decoded images should be.

dx/dt = f x − ½ g² ∇ log p_t(x) with f = −½ β and g² = β (Song et al. 2021, eq. 13). Within one
component it is solved in closed form, x_t = α_t m + s_t/s_0 (x − α_0 m): every value keeps its
number of standard deviations.
"""

import math

import numpy as np

from service.selfcheck.mixture import (
    BETA_MAX,
    BETA_MIN,
    T_MAX,
    T_MIN,
    D,
    Floats,
    factors,
    log_density,
    means,
    score,
    variance_at,
)

STEPS = 1000
"""Of the classical Runge–Kutta method, for an error below 1e-7 (tests/service/selfcheck)."""


def encoded(x: Floats, label: int | None = None, guidance: float = 1.0) -> Floats:
    """The latents at t_max of images at t_min, (N, D)."""
    return _carried(x, T_MIN, T_MAX, label, guidance)


def decoded(latents: Floats, label: int | None = None, guidance: float = 1.0) -> Floats:
    """The inverse of `encoded`."""
    return _carried(latents, T_MAX, T_MIN, label, guidance)


def log_likelihood(x: Floats, label: int | None = None) -> Floats:
    """What the flow gives for log p of images at t_min, (N,) nats.

    It begins at the prior N(0, I) and not at p_T, so it is off by how much the two differ at the
    image's latent: log p_{t_min}(x) + log N(u; 0, I) − log p_T(u).
    """
    u = encoded(x, label)
    prior = -0.5 * (np.square(u).sum(1) + D * math.log(2.0 * math.pi))
    return np.asarray(log_density(x, T_MIN, label) + prior - log_density(u, T_MAX, label))


def _carried(x: Floats, start: float, end: float, label: int | None, guidance: float) -> Floats:
    if label is not None and guidance == 1.0:
        return _within_component(x, start, end, label)
    h = (end - start) / STEPS
    for step in range(STEPS):
        t = start + step * h
        k1 = _velocity(x, t, label, guidance)
        k2 = _velocity(x + 0.5 * h * k1, t + 0.5 * h, label, guidance)
        k3 = _velocity(x + 0.5 * h * k2, t + 0.5 * h, label, guidance)
        k4 = _velocity(x + h * k3, t + h, label, guidance)
        x = x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return x


def _velocity(x: Floats, t: float, label: int | None, guidance: float) -> Floats:
    """dx/dt; with guidance w the score is ∇ log p + w (∇ log p(·|label) − ∇ log p)."""
    slope = score(x, t)
    if label is not None:
        slope = slope + guidance * (score(x, t, label) - slope)
    beta = BETA_MIN + (BETA_MAX - BETA_MIN) * t
    return -0.5 * beta * (x + slope)


def _within_component(x: Floats, start: float, end: float, label: int) -> Floats:
    mean, stretch = means()[label], math.sqrt(variance_at(end) / variance_at(start))
    return np.asarray(factors(end)[0] * mean + stretch * (x - factors(start)[0] * mean))
