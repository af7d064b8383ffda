"""The model that a self-check knows: a Gaussian mixture, all of whose answers are closed forms.

This is the mathematics once more, in NumPy and in the process's own state and time, where the
service works in torch, in the standardised state and by a clock of its own: what the two agree on,
neither has from the other. Images are rows of D = 64 values in the model's space, float64.

Data are x_0 ~ ⅓ Σ_k N(m_k, v I); noised, x_t = α x_0 + σ ε ~ ⅓ Σ_k N(α m_k, (α² v + σ²) I). The
process is VP-linear, β(t) = 0.1 + 19.9 t (Song et al. 2021, eq. 32), α² + σ² = 1. A class is one
component.

`fokker selfcheck --save FOLDER` writes the checkpoint, which `model/zoo` ships.
"""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.jobs.arrays import pack

Floats = NDArray[np.float64]

MODEL = "analytic"
SHAPE = (1, 8, 8)
D = math.prod(SHAPE)
COMPONENTS = 3
VARIANCE = 0.25
LEVELS, LOW, HIGH = 256, -4.0, 4.0
CELL = (HIGH - LOW) / LEVELS
T_MIN, T_MAX = 1e-3, 1.0
BETA_MIN, BETA_MAX = 0.1, 20.0


def means() -> Floats:
    """m_k, (3, D): halves above one another, halves beside one another, a chequerboard; ±½.

    Any two are √32 apart, eleven standard deviations of a component.
    """
    i, j = np.indices(SHAPE[1:])
    patterns = np.stack([i < 4, j < 4, (i + j) % 2 == 0])
    return np.where(patterns, 0.5, -0.5).reshape(COMPONENTS, D)


def description() -> dict[str, Any]:
    """The JSON document of the checkpoint's header."""
    return {
        "format": 1,
        "architecture": {
            "name": "gaussian_mixture",
            "components": COMPONENTS,
            "shape": SHAPE,
            "variance": VARIANCE,
        },
        "process": {
            "name": "vp_linear",
            "t_min": T_MIN,
            "t_max": T_MAX,
            "beta_min": BETA_MIN,
            "beta_max": BETA_MAX,
        },
        "prediction": "eps",
        "data": {
            "shape": SHAPE,
            "levels": LEVELS,
            "low": LOW,
            "high": HIGH,
            "class_names": ["above", "beside", "chequered"],
        },
        "training": {},
    }


def checkpoint() -> bytes:
    """The checkpoint's file."""
    document = json.dumps(description(), sort_keys=True)
    return pack({"means": means().reshape(COMPONENTS, *SHAPE)}, {"fokker": document})


def factors(t: float) -> tuple[float, float]:
    """α and σ at t: log α = −¼ (β_max − β_min) t² − ½ β_min t."""
    log_alpha = -0.25 * (BETA_MAX - BETA_MIN) * t * t - 0.5 * BETA_MIN * t
    return math.exp(log_alpha), math.sqrt(-math.expm1(2.0 * log_alpha))


def variance_at(t: float) -> float:
    """α² v + σ²: that of every value of a component's x_t."""
    alpha, sigma = factors(t)
    return alpha * alpha * VARIANCE + sigma * sigma


def to_levels(x: Floats) -> Floats:
    """The model's space to levels 0 … L−1, clipped, not rounded: x = low + cell (level + ½)."""
    return np.clip((x - LOW) / CELL - 0.5, 0.0, LEVELS - 1.0)


def to_model(levels: Floats) -> Floats:
    """Levels to the model's space."""
    return LOW + CELL * (levels + 0.5)


def draw(count: int, seed: int) -> Floats:
    """Images x_0, (count, D), of the components in turn."""
    noise = np.random.default_rng(seed).standard_normal((count, D))
    return means()[np.arange(count) % COMPONENTS] + math.sqrt(VARIANCE) * noise


def log_density(x: Floats, t: float, label: int | None = None) -> Floats:
    """log p_t(x) in nats, (N,); of one component alone where a label names it."""
    normaliser = 0.5 * D * math.log(2.0 * math.pi * variance_at(t))
    joint = _exponents(x, t)
    if label is not None:
        return joint[:, label] - normaliser
    return _log_sum_exp(joint) - math.log(COMPONENTS) - normaliser


def score(x: Floats, t: float, label: int | None = None) -> Floats:
    """∇ log p_t(x), (N, D)."""
    centres = factors(t)[0] * means()
    if label is not None:
        return np.asarray((centres[label] - x) / variance_at(t))
    joint = _exponents(x, t)
    weight = np.exp(joint - _log_sum_exp(joint)[:, None])
    return np.asarray((weight @ centres - x) / variance_at(t))


def log_mass(levels: Floats) -> Floats:
    """log P(v) of whole levels v (N, D), in nats, (N,): the mass of x_0 in their cells."""
    edges = to_model(levels)[:, None] + CELL * np.array([-0.5, 0.5])[:, None, None, None]
    below, above = (edges - means()) / math.sqrt(VARIANCE)
    cells = _normal_cdf(above) - _normal_cdf(below)
    return _log_sum_exp(np.log(cells).sum(2)) - math.log(COMPONENTS)


def _exponents(x: Floats, t: float) -> Floats:
    """−|x − α m_k|²/2s², (N, 3)."""
    offsets = x[:, None] - factors(t)[0] * means()
    return np.asarray(-0.5 * np.square(offsets).sum(2) / variance_at(t))


def _log_sum_exp(values: Floats) -> Floats:
    largest = values.max(1)
    return np.asarray(largest + np.log(np.exp(values - largest[:, None]).sum(1)))


_normal_cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2.0)), otypes=[np.float64])
