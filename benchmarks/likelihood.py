"""Network calls and errors of likelihoods and round trips on the digits network.

    python -m benchmarks.likelihood

The peer is what the field's reference implementation does (score_sde_pytorch): scipy's RK45 in t
over the whole batch with one step size, tolerance 1e-5, one fixed probe, ε evaluated once for the
velocity and once more, with a backward pass, for the divergence. Same network, same t_min, same
dequantised images.
"""

import math
import time
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
from model.query import Condition, Query, run
from training.data import digits

IMAGES, EXACT_IMAGES = 64, 16
SHIPPED = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
SPEC, PROCESS = SHIPPED.description.data, SHIPPED.description.process
DENOISER = SHIPPED.denoiser()
LEVELS = digits(0.15).held_out.levels[:IMAGES]
SEEDS = torch.arange(IMAGES)
X = SPEC.to_model(LEVELS, dequantize(LEVELS, SEEDS))
NATS_A_BIT = SPEC.dimensions * math.log(2.0)


def peer(tolerance: float) -> tuple[Tensor, int]:
    """log p of all images, and how often the field was evaluated."""
    probes = rademacher(SEEDS, Stream.PROBE, 0, (1, *SPEC.shape))
    condition, image = Condition.same(IMAGES), torch.arange(IMAGES)
    size = X.numel()

    def field(t: float, flat: NDArray[np.float64]) -> NDArray[np.float64]:
        x = torch.from_numpy(flat[:size]).reshape(X.shape)
        times = torch.full((IMAGES,), t, dtype=torch.float64)
        level = PROCESS.log_snr(times)
        shared = {"u": x, "log_snr": level, "condition": condition, "image": image}
        eps = DENOISER(Query(**shared)).eps
        products = DENOISER(Query(**shared, probes=probes)).products
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


def ours(tolerance: float, divergence: Hutchinson | Exact, count: int = IMAGES) -> LogLikelihood:
    solver = Adaptive(tolerance=tolerance, max_calls=100_000)
    operation = log_likelihood(
        PROCESS, X[:count], Condition.same(count), solver, divergence, SEEDS[:count]
    )
    return run(operation, DENOISER)


def round_trip(solver: Solver, count: int) -> tuple[float, float, int]:
    """Largest and median error in [-1, 1] units, and calls there and back of the slowest image."""
    x, condition = SPEC.to_model(LEVELS[:count]), Condition.same(count)
    there = run(encode(PROCESS, x, condition, solver), DENOISER)
    back = run(decode(PROCESS, there.end, condition, solver, there.companion), DENOISER)
    error = (back.end - x).abs()
    return float(error.max()), float(error.median()), int((there.nfe + back.nfe).max())


def main() -> None:
    print("| likelihood, 64 held-out digits | calls, mean | max | bits/dim | seconds |")
    print("|---|---|---|---|---|")
    began = time.monotonic()
    log_p, calls = peer(1e-5)
    seconds = time.monotonic() - began
    bits = float(SPEC.bits_per_dim(log_p).mean())
    print(f"| peer: batch-coupled RK45 in t, 1e-5, 1 probe | {calls} | {calls} | {bits:.4f} "
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
    print("\n| exact trace, 16 digits | calls, mean | bits/dim | to the solve at 1e-5 |")
    print("|---|---|---|---|")
    tight = ours(1e-5, Exact(), EXACT_IMAGES).log_likelihood
    for tolerance in (1e-2, 1e-3, 1e-4):
        found = ours(tolerance, Exact(), EXACT_IMAGES)
        mean = float(SPEC.bits_per_dim(found.log_likelihood).mean())
        off = float((tight - found.log_likelihood).mean()) / NATS_A_BIT
        nfe_mean = float(found.nfe.double().mean())
        print(f"| {tolerance:g} | {nfe_mean:.0f} | {mean:.4f} | {off:+.4f} |", flush=True)
    print("\n| round trip, 64 digits | calls there and back, max | max error | median |")
    print("|---|---|---|---|")
    solvers: dict[str, Solver] = {
        "adaptive 1e-4": Adaptive(tolerance=1e-4),
        "adaptive 1e-5": Adaptive(tolerance=1e-5),
        "adaptive 1e-6 (default)": Adaptive(tolerance=1e-6),
        "heun, 100 steps": FixedGrid(name="heun", steps=100),
        "reversible, 20 steps": FixedGrid(name="reversible", steps=20),
        "reversible, 50 steps": FixedGrid(name="reversible", steps=50),
    }
    for name, solver in solvers.items():
        largest, median, both = round_trip(solver, IMAGES)
        print(f"| {name} | {both} | {largest:.1e} | {median:.1e} |", flush=True)


if __name__ == "__main__":
    main()
