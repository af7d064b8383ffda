"""Checks of `POST /loglik` against the closed form of log p."""

import io
import math
from collections.abc import Iterator

import numpy as np
from PIL import Image

from service.selfcheck import flow
from service.selfcheck.deployment import Deployment
from service.selfcheck.findings import Finding, Z, at_most, between
from service.selfcheck.mixture import (
    CELL,
    HIGH,
    LEVELS,
    LOW,
    SHAPE,
    T_MIN,
    D,
    Floats,
    draw,
    log_mass,
    to_levels,
    to_model,
    variance_at,
)

COUNT = 6
EXACT = {"divergence": {"kind": "exact"}, "dequantization": None}
PROBED = {"divergence": {"kind": "hutchinson", "probes": 32}, "dequantization": None}
"""So many probes that the error which they estimate of themselves is known to an eighth."""
TIGHT = {"solver": {"name": "adaptive", "tolerance": 1e-6}}
LABEL = 0


def likelihoods(deployment: Deployment) -> Iterator[Finding]:
    """The likelihood by the flow: its closed form within its own errors."""
    levels = to_levels(draw(COUNT, seed=3))
    x, files = to_model(levels), levels.reshape(COUNT, *SHAPE[1:])
    exact = flow.log_likelihood(x)

    found = deployment.loglik(EXACT | TIGHT, files)
    yield at_most("by the exact trace, nats", np.abs(found.log_likelihood - exact), 1e-3)
    parts = np.abs(found.terms["prior"] + found.terms["volume"] - found.log_likelihood)
    yield at_most("prior + volume, nats", parts, 1e-9)
    bits = np.abs(found.bits_per_dim - _bits(found.log_likelihood))
    yield at_most("bits per dimension", bits, 1e-9)

    found = deployment.loglik(EXACT | {"class_label": LABEL}, files)
    off = np.abs(found.log_likelihood - flow.log_likelihood(x, LABEL))
    yield at_most("given a class, in errors reported", off / found.discretization_error, 1.0)

    found = deployment.loglik(PROBED | {"seed": 4}, files)
    error = found.standard_error["probe"]
    off = np.abs(found.log_likelihood - exact) - found.discretization_error
    yield at_most("by probes, in standard errors", off / error, Z)
    yield between("the probes' standard error, nats", error, 1e-6, 10.0)


def levels(deployment: Deployment) -> Iterator[Finding]:
    """What is said of whole grey levels: dequantised likelihoods, and the lower bound."""
    whole = np.round(to_levels(draw(COUNT, seed=5)))
    pictures = [_png(image) for image in whole]
    arrays = whole.reshape(COUNT, *SHAPE[1:])

    by_array = deployment.loglik(EXACT, arrays).log_likelihood
    by_picture = deployment.loglik(EXACT, pictures).log_likelihood
    yield at_most("an 8-bit PNG against its levels, nats", np.abs(by_picture - by_array), 1e-9)

    # Within a component log p is a parabola, whose mean over a cell is known.
    request = {"class_label": LABEL, "seed": 6, "divergence": {"kind": "exact"}}
    request |= {"dequantization": {"kind": "uniform", "samples": 16}} | TIGHT
    found = deployment.loglik(request, arrays[:1])
    curvature = D * CELL**2 / 24.0 / variance_at(T_MIN)
    expected = flow.log_likelihood(to_model(whole[:1]), LABEL) - curvature
    off = np.abs(found.log_likelihood - expected) / found.standard_error["dequantization"]
    yield at_most("dequantised, in standard errors", off, Z)

    bound = deployment.loglik({"method": "elbo", "seed": 7, "bound": {"draws": 512}}, arrays)
    error = np.hypot(bound.standard_error["diffusion"], bound.standard_error["recon"])
    above = (bound.log_likelihood - log_mass(whole)) / error
    yield at_most("lower bound over log P, in standard errors", above, Z)
    below = (log_mass(whole) - bound.log_likelihood) / (D * math.log(2.0))
    yield at_most("lower bound under log P, bits per dimension", below, 0.5)


def _bits(nats: Floats) -> Floats:
    return np.asarray(-nats / (D * math.log(2.0)) + math.log2(LEVELS / (HIGH - LOW)))


def _png(level: Floats) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(level.reshape(SHAPE[1:]).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
