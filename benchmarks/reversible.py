"""Which reversible pair: round trips and latents on the digits network, by coupling, grid, steps.

    python -m benchmarks.reversible

The state is float64, the network float32 at the one reproducible batch size. Columns: largest
round-trip error over 32 held-out digits in [-1, 1] units; the same when the latent is disturbed
by 1e-9 before decoding (the amplification is that divided by 1e-9); root mean square distance of
the latents to those of an adaptive solve at 1e-6.
"""

from pathlib import Path

import torch

import model
from model import checkpoint, grids
from model.follow import replay
from model.noise import Stream, normal
from model.pf_ode import Adaptive, encode
from model.query import Condition, run
from model.samplers import reversible
from training.data import digits

COUPLINGS = (1.0, 0.999, 0.99, 0.9)
GRIDS = ("log_snr", "karras", "uniform")
STEPS = (10, 20, 50, 100)
IMAGES = 32


def main() -> None:
    shipped = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
    process, denoiser = shipped.description.process, shipped.denoiser()
    x = shipped.description.data.to_model(digits(0.15).held_out.levels[:IMAGES])
    condition, seeds = Condition.same(IMAGES), torch.arange(IMAGES)
    tight = run(encode(process, x, condition, Adaptive(tolerance=1e-6)), denoiser).end
    noise = 1e-9 * normal(seeds, Stream.PRIOR, 0, tuple(x.shape[1:]))
    print("| grid | coupling | steps | round trip | disturbed by 1e-9 | latent RMS |")
    print("|---|---|---|---|---|---|")
    for grid in GRIDS:
        for coupling in COUPLINGS:
            for steps in STEPS:
                times = grids.GRIDS[grid](process, steps + 1).flip(0)
                there = reversible(process, times, coupling=coupling)
                back = reversible(process, times.flip(0), coupling=coupling)

                def follow(plan, y, z):  # type: ignore[no-untyped-def]
                    operation = replay(plan, y, seeds, condition, h=z, reproducible=True)
                    return run(operation, denoiser)

                far = follow(there, x, x)
                near = follow(back, far.x, far.h)
                moved = follow(back, far.x + noise, far.h + noise)
                rms = float((far.x - tight).square().mean().sqrt())
                errors = [float((final.x - x).abs().max()) for final in (near, moved)]
                print(
                    f"| {grid} | {coupling} | {steps} | {errors[0]:.1e} | {errors[1]:.1e} "
                    f"| {rms:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
