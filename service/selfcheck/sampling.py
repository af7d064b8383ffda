"""Checks of `POST /generate`: what samplers draw, seeds, formats."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client import Generated
from service.selfcheck.deployment import Deployment
from service.selfcheck.findings import Finding, Z, at_most, same
from service.selfcheck.mixture import (
    COMPONENTS,
    VARIANCE,
    D,
    Floats,
    factors,
    means,
    to_model,
    variance_at,
)

COUNT, SEED = 64, 20


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A sampler as it is asked for, and what it draws.

    t: the noise level of its samples, None for clean images. variance: within a component, over the
    exact one, as so many steps leave it: every sampler's is a recursion over its steps, which a
    test computes.
    """

    request: dict[str, Any]
    variance: float
    t: float | None = None


SAMPLERS = {
    "ddpm": Sampled(request={"steps": 250, "grid": "log_snr"}, variance=0.962),
    "ddim": Sampled(request={"steps": 100, "grid": "log_snr", "eta": 0.5}, variance=0.942),
    "reverse_sde": Sampled(request={"steps": 250, "grid": "log_snr"}, variance=1.015),
    "predictor_corrector": Sampled(request={"steps": 150, "grid": "log_snr"}, variance=1.012),
    "annealed_langevin": Sampled(request={"steps": 100, "delta": 0.5}, variance=1.085),
    "langevin": Sampled(request={"steps": 250, "t": 0.1}, variance=1.016, t=0.1),
    "pf_ode": Sampled(request={"solver": {"name": "heun", "steps": 50}}, variance=1.010),
}


def samplers(deployment: Deployment) -> Iterator[Finding]:
    """Moments of what every sampler draws, all of them at work at once."""
    jobs = {
        name: deployment.submit(
            "generate",
            {
                "count": COUNT,
                "seed": SEED,
                "sampler": {"name": name, **sampled.request},
                "format": "npy",
            },
        )
        for name, sampled in SAMPLERS.items()
    }
    for name, job in jobs.items():
        drawn = deployment.client.result(job)
        assert isinstance(drawn, Generated)
        scores = standard_scores(images(drawn), SAMPLERS[name])
        yield at_most(f"{name}: standard errors of shares, means, variance", scores, Z)
    label = 1
    drawn = deployment.generate({"count": 16, "seed": SEED, "class_label": label, "format": "npy"})
    yield same("images of the class asked for", int((nearest(images(drawn)) == label).sum()), 16)


def seeds(deployment: Deployment) -> Iterator[Finding]:
    """An image depends on its own seed alone."""
    request = {"sampler": {"name": "ddpm", "steps": 50}, "format": "npy"}
    first = deployment.generate(request | {"count": 5, "seed": SEED})
    again = deployment.generate(request | {"count": 5, "seed": SEED})
    yield at_most("the same seed again, in levels", _difference(first.array, again.array), 1e-6)
    alone = deployment.generate(request | {"seeds": list(first.seeds[::-1][:3])})
    off = _difference(first.array[::-1][:3], alone.array)
    yield at_most("images by their own seeds, in another batch", off, 1e-6)
    other = deployment.generate(request | {"count": 5, "seed": SEED + 1})
    yield same("another seed gives other images", not np.any(first.array == other.array), True)


def formats(deployment: Deployment) -> Iterator[Finding]:
    """The same images as pictures and as arrays."""
    request = {"count": 3, "seed": SEED, "sampler": {"name": "ddim", "steps": 20}}
    levels = deployment.generate(request | {"format": "npy"}).array
    packed = deployment.generate(request | {"format": "safetensors"}).array
    yield at_most("safetensors against npy", _difference(levels, packed), 1e-6)
    for kind in ("png", "webp"):
        drawn = deployment.generate(request | {"format": kind})
        pixels = drawn.array[..., :1].astype(np.float64)
        yield at_most(f"{kind} against npy, in levels", _difference(pixels, levels), 0.5 + 1e-6)
        yield same(f"{kind}: a grid beside them", f"grid.{kind}" in drawn.job.artifacts, True)


def images(drawn: Generated) -> Floats:
    """Images of a result as rows (N, D) of the model's space."""
    return to_model(drawn.array.reshape(len(drawn.array), D))


def nearest(x: Floats, scale: float = 1.0) -> NDArray[np.int64]:
    """The component whose scaled mean is nearest, (N,)."""
    return np.asarray(np.square(x[:, None] - scale * means()).sum(2).argmin(1))


def standard_scores(x: Floats, sampled: Sampled) -> Floats:
    """How many standard errors all moments of samples (N, D) are off.

    Of each component's share, of the mean deviation from the nearest mean in each place, and of
    the variance around it.
    """
    scale = 1.0 if sampled.t is None else factors(sampled.t)[0]
    within = sampled.variance * (VARIANCE if sampled.t is None else variance_at(sampled.t))
    which = nearest(x, scale)
    share = 1.0 / COMPONENTS
    found = np.bincount(which, minlength=COMPONENTS) / len(x)
    shares = np.abs(found - share) / math.sqrt(share * (1.0 - share) / len(x))
    deviations = x - scale * means()[which]
    places = np.abs(deviations.mean(0)) / math.sqrt(within / len(x))
    spread = abs(np.square(deviations).mean() / within - 1.0) / math.sqrt(2.0 / x.size)
    return np.array([*shares, *places, spread])


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max())
