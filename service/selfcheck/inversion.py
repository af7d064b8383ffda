"""Checks of `POST /invert`, and of decoding, against the exact flow."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from service.selfcheck import flow
from service.selfcheck.deployment import Deployment
from service.selfcheck.findings import Finding, at_most
from service.selfcheck.mixture import HIGH, LOW, SHAPE, D, Floats, draw, to_levels, to_model
from service.selfcheck.sampling import images

COUNT = 6
UNIT = 2.0 / (HIGH - LOW)
"""The model's space in the units of a round trip's errors: those of a range [-1, 1]."""

FIXED = {"euler": 0.05, "heun": 2.5e-3, "rk4": 2e-6, "dpmpp_2m": 1.2e-3}
"""Solvers, and how far 100 steps may end from the exact image: 1.5 to 2 times how far they do."""


def encoding(deployment: Deployment) -> Iterator[Finding]:
    """Latents against the flow's, and what is said about them."""
    levels = to_levels(draw(COUNT, seed=1))
    x, files = to_model(levels), levels.reshape(COUNT, *SHAPE[1:])
    for name, request in CONDITIONS.items():
        inverted = deployment.invert(request, files)
        latents = inverted.latents.reshape(COUNT, D)
        label, guidance = request.get("class_label"), request.get("guidance", 1.0)
        off = np.abs(latents - flow.encoded(x, label, guidance))
        yield at_most(f"latents {name} against the exact flow", off, 1e-4)
        ratio = np.abs(inverted.norm_ratio - np.square(latents).mean(1))
        yield at_most("norm_ratio against the latents' mean square", ratio, 1e-12)
        yield at_most("error of the round trip, as said", inverted.round_trip_max_error, 1e-4)
        again = deployment.generate(request | DECODE | {"format": "npy"}, latents=inverted)
        trip = np.abs(images(again) - x) * UNIT
        yield at_most("error of the round trip, as decoded", trip, 1e-4)
    solver = {"name": "reversible", "steps": 20}
    inverted = deployment.invert({"solver": solver}, files)
    again = deployment.generate({"format": "npy"}, latents=inverted)
    yield at_most("the reversible pair's round trip", np.abs(images(again) - x) * UNIT, 1e-9)


def decoding(deployment: Deployment) -> Iterator[Finding]:
    """Latents of our own, decoded by every solver, against the flow."""
    latents = np.random.default_rng(2).standard_normal((COUNT, D))
    for name, request in CONDITIONS.items():
        x = flow.decoded(latents, request.get("class_label"), request.get("guidance", 1.0))
        off = np.abs(_decoded(deployment, request | DECODE, latents) - x)
        yield at_most(f"images {name} against the exact flow", off, 1e-4)
    x = flow.decoded(latents, LABEL)
    for name, allowed in FIXED.items():
        sampler = {"name": "pf_ode", "solver": {"name": name, "steps": 100}}
        off = np.abs(_decoded(deployment, {"sampler": sampler, "class_label": LABEL}, latents) - x)
        yield at_most(f"images by {name} in 100 steps", off, allowed)


LABEL = 2
CONDITIONS: dict[str, dict[str, Any]] = {
    "without a class": {},
    "of a class": {"class_label": LABEL},
    "with guidance": {"class_label": LABEL, "guidance": 2.0},
}
DECODE = {"sampler": {"name": "pf_ode"}}


def _decoded(deployment: Deployment, request: dict[str, Any], latents: Floats) -> Floats:
    shaped = latents.reshape(len(latents), *SHAPE)
    return images(deployment.generate(request | {"format": "npy"}, latents=shaped))
