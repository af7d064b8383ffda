"""Network calls and errors of likelihoods and round trips on the digits network.

    python -m benchmarks.likelihood [calls] [frontier] [exact] [estimates] [round-trips]

The peer is what the field's reference implementation does (score_sde_pytorch): scipy's RK45 in t
over the whole batch with one step size, tolerance 1e-5, one fixed probe, ε evaluated once for the
velocity and once more, with a backward pass, for the divergence. Same network, same t_min, same
dequantised images.

Differences are to a solve at 1/100 of the default tolerance with the same divergence: by the exact
trace (some 30 minutes of one core), or image by image with the same probe.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.integrate
import torch
from numpy.typing import NDArray
from torch import Tensor

import model
from model import checkpoint
from model.likelihood import Exact, Hutchinson, LogLikelihood, dequantize, log_likelihood
from model.noise import Stream, rademacher
from model.pf_ode import Adaptive, FixedGrid, Solver, decode, encode
from model.query import Answer, Condition, Query, run
from training.data import digits

IMAGES = 64
SHIPPED = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
SPEC, PROCESS = SHIPPED.description.data, SHIPPED.description.process
DENOISER = SHIPPED.denoiser()
LEVELS = digits(0.15).held_out.levels[:IMAGES]
SEEDS = torch.arange(IMAGES)
X = SPEC.to_model(LEVELS, dequantize(LEVELS, SEEDS))
TIGHT = 1e-5
CONFIGURATIONS = ((1e-2, None), (1e-2, 1.92), (1e-3, None))
"""Tolerance, and the nats a step where they are not tolerance · D."""
FIXED = {"heun": (20, 50, 100), "rk4": (10, 25, 50), "reversible": (20, 50)}
"""Solver: steps."""
NATS_A_BIT = SPEC.dimensions * math.log(2.0)


def peer(tolerance: float) -> tuple[Tensor, int]:
    """log p of all images, and how often the field was evaluated."""
    probes = rademacher(SEEDS, Stream.PROBE, 0, (1, *SPEC.shape))
    condition = Condition.same(IMAGES)
    size = X.numel()

    def field(t: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        x = torch.from_numpy(flat[:size]).reshape(X.shape)
        times = torch.full((IMAGES,), t, dtype=torch.float64)
        level = PROCESS.log_snr(times)
        query = Query(u=x, log_snr=level, condition=condition)
        eps = DENOISER(query).eps
        products = DENOISER(replace(query, probes=probes)).products
        assert products is not None
        f, g2, sigma = (
            float(part[0])
            for part in (
                PROCESS.drift(times),
                PROCESS.diffusion_squared(times),
                PROCESS.sigma(times),
            )
        )
        trace = (products * probes).flatten(1).sum(1)
        flow = f * x + 0.5 * g2 / sigma * eps
        growth = f * SPEC.dimensions + 0.5 * g2 / sigma * trace
        return torch.cat((flow.flatten(), growth)).numpy()

    start = np.concatenate((X.flatten().numpy(), np.zeros(IMAGES)))
    solved = scipy.integrate.solve_ivp(
        field, (PROCESS.t_min, PROCESS.t_max), start, rtol=tolerance, atol=tolerance
    )
    end = torch.from_numpy(solved.y[:, -1])
    prior = PROCESS.prior_log_prob(end[:size].reshape(X.shape))
    return prior + end[size:], solved.nfev


def together(query: Query) -> Answer:
    """All rows in one network call, which is faster and differs from the served answer by 1e-6."""
    return DENOISER(replace(query, reproducible=False))


def ours(
    tolerance: float, divergence: Hutchinson | Exact, nats: float | None = None
) -> LogLikelihood:
    solver = Adaptive(tolerance=tolerance, max_calls=100_000)
    condition = Condition.same(IMAGES)
    operation = log_likelihood(PROCESS, X, condition, solver, divergence, SEEDS, nats=nats)
    return run(operation, together)


def round_trip(solver: Solver, count: int) -> tuple[float, float, int]:
    """Largest and median error in [-1, 1] units, and calls there and back of the slowest image."""
    x, condition = SPEC.to_model(LEVELS[:count]), Condition.same(count)
    there = run(encode(PROCESS, x, condition, solver), DENOISER)
    back = run(decode(PROCESS, there.end, condition, solver, there.companion), DENOISER)
    error = (back.end - x).abs()
    return float(error.max()), float(error.median()), int((there.nfe + back.nfe).max())


def calls() -> None:
    print("| likelihood, 64 held-out digits | calls, mean | max | bits/dim | seconds |")
    print("|---|---|---|---|---|")
    began = time.monotonic()
    log_p, nfev = peer(1e-5)
    seconds = time.monotonic() - began
    bits = float(SPEC.bits_per_dim(log_p).mean())
    print(f"| peer: batch-coupled RK45 in t, 1e-5, 1 probe | {nfev} | {nfev} | {bits:.4f} "
          f"| {seconds:.0f} |", flush=True)  # fmt: skip
    for probes in (1, 8):
        for tolerance in (1e-2, 1e-3, 1e-4):
            began = time.monotonic()
            found = ours(tolerance, Hutchinson(probes=probes))
            seconds = time.monotonic() - began
            bits = float(SPEC.bits_per_dim(found.log_likelihood).mean())
            nfe = found.nfe.double()
            name = f"ours, {tolerance:g}, {probes} probe{'s' * (probes > 1)}"
            print(f"| {name} | {nfe.mean():.0f} | {nfe.max():.0f} | {bits:.4f} | {seconds:.0f} |",
                  flush=True)  # fmt: skip


def exact() -> None:
    compare("exact trace", Exact())


def frontier() -> None:
    compare("one probe", Hutchinson(probes=1))


def compare(name: str, divergence: Hutchinson | Exact) -> None:
    print(f"| {name}, 64 digits | calls, mean | max | bits/dim | to the solve at {TIGHT:g} | RMS |")
    print("|---|---|---|---|---|---|")
    tight = ours(TIGHT, divergence).log_likelihood
    for tolerance, nats in CONFIGURATIONS:
        found = ours(tolerance, divergence, nats)
        mean = float(SPEC.bits_per_dim(found.log_likelihood).mean())
        off = (tight - found.log_likelihood) / NATS_A_BIT
        nfe = found.nfe.double()
        name = f"{tolerance:g}" + ("" if nats is None else f", {nats:g} nats a step")
        print(
            f"| {name} | {nfe.mean():.1f} | {nfe.max():.0f} | {mean:.4f} "
            f"| {off.mean():+.4f} ± {off.std() / math.sqrt(IMAGES):.4f} "
            f"| {off.square().mean().sqrt():.4f} |",
            flush=True,
        )


def estimates() -> None:
    """What an answer by eight probes says of its own errors, against a tight solve with them."""
    divergence = Hutchinson(probes=8)
    tight = ours(TIGHT, divergence)
    print(
        "nats: medians over 64 digits | standard error of 8 probes | error | its estimate | covers"
    )
    for tolerance in (1e-2, 1e-3):
        found = ours(tolerance, divergence)
        off = (found.log_likelihood - tight.log_likelihood).abs()
        covered = float((off <= found.discretization_error).double().mean())
        medians = (found.probe_error, off, found.discretization_error)
        print(f"{tolerance:g}", *(f"{float(m.median()):.2f}" for m in medians), f"{covered:.0%}")
    nfe = tight.nfe.double()
    print(f"the solve at {TIGHT:g}: {float(nfe.mean()):.0f} calls, at most {float(nfe.max()):.0f}")


def round_trips() -> None:
    print("| round trip, 64 digits | calls there and back, max | max error | median |")
    print("|---|---|---|---|")
    solvers: dict[str, Solver] = {
        "adaptive 1e-4": Adaptive(tolerance=1e-4),
        "adaptive 1e-5": Adaptive(tolerance=1e-5),
        "adaptive 1e-6 (default)": Adaptive(tolerance=1e-6),
    }
    for name, counts in FIXED.items():
        for steps in counts:
            solvers[f"{name}, {steps} steps"] = FixedGrid(name=name, steps=steps)
    for name, solver in solvers.items():
        largest, median, both = round_trip(solver, IMAGES)
        print(f"| {name} | {both} | {largest:.1e} | {median:.1e} |", flush=True)


SECTIONS: dict[str, Callable[[], None]] = {
    "calls": calls,
    "frontier": frontier,
    "exact": exact,
    "estimates": estimates,
    "round-trips": round_trips,
}


if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        SECTIONS[section]()
        print()
