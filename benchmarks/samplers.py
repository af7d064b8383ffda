"""Fréchet distance of samples to the data, against network calls, for every sampler.

    python -m benchmarks.samplers [most calls]

On the shipped digits network, without class or guidance; every sampler from the same seeds, with
its default options, on the grid that the service gives it unless told otherwise. Samples are
rounded to the data's levels. The feature is the hidden layer (32 ReLUs) of scikit-learn's
`MLPClassifier`, fitted to the labels of the training images; the distance is that of two
Gaussians fitted to the feature (Dowson & Landau 1982; Heusel et al. 2017), here of as many samples
as there are held-out images to the training images. Few images make the distance larger than it
is for many, so it is held against that of the held-out images and that of as many training images
(the mean of 50 draws: what a sampler that had learnt them by heart would get).

Prints a table as Markdown and writes the plot to docs/images/samplers.svg.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neural_network import MLPClassifier
from torch import Tensor

import model
from benchmarks.chart import Panel, Series, chart
from model import checkpoint, grids
from model.follow import replay
from model.noise import Stream, normal
from model.pf_ode import Adaptive, FixedGrid, Solver, decode
from model.plan import Plan, from_prior
from model.query import Answer, Condition, Query, run
from model.samplers import ODE_SOLVERS, SAMPLERS
from training.data import digits

PLOT = Path(__file__).parent.parent / "docs" / "images" / "samplers.svg"
CALLS = (5, 10, 20, 50, 100, 250)
TOLERANCES = (1e-1, 1e-2)
GRIDS = {"annealed_langevin": grids.log_snr}
"""Where the service's default is not `uniform`."""
SHIPPED = checkpoint.load(Path(model.__file__).parent / "zoo" / "digits.safetensors")
SPEC, PROCESS = SHIPPED.description.data, SHIPPED.description.process
DENOISER = SHIPPED.denoiser()
DATA = digits(0.15)
SAMPLES = len(DATA.held_out)
SEEDS, CONDITION = torch.arange(SAMPLES), Condition.same(SAMPLES)

Feature = Callable[[Tensor], NDArray[np.float64]]
"""Levels (N, C, H, W) to features (N, n)."""


Point = tuple[float, float, float]
"""Mean network calls an image, and the distance by the hidden layer and by pixels."""


def pixels(levels: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = (levels / (SPEC.levels - 1)).flatten(1).numpy()
    return values


def classifier() -> tuple[Feature, float]:
    """The hidden layer of a classifier, and the share of held-out digits that it gets right."""
    network = MLPClassifier(hidden_layer_sizes=(32,), alpha=1e-3, max_iter=2000, random_state=0)
    network.fit(pixels(DATA.train.levels), DATA.train.labels.numpy())
    right = network.score(pixels(DATA.held_out.levels), DATA.held_out.labels.numpy())
    weight, bias = network.coefs_[0], network.intercepts_[0]
    return lambda levels: np.maximum(pixels(levels) @ weight + bias, 0.0), float(right)


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|μ_a − μ_b|² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of rows."""
    c_a, c_b = np.cov(a.T), np.cov(b.T)
    # The product of two positive matrices has the roots of a positive one.
    roots = np.sqrt(np.linalg.eigvals(c_a @ c_b).real.clip(min=0.0))
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(c_a) + np.trace(c_b) - 2.0 * roots.sum())


def evaluate(query: Query) -> Answer:
    """All rows in one network call: faster, and as good for a mean over samples."""
    return DENOISER(replace(query, reproducible=False))


def by_plan(name: str, calls: int) -> tuple[Tensor, float]:
    """Samples by the largest plan of at most this many calls."""
    plan = _largest(name, calls)
    start = from_prior(plan, SEEDS, SPEC.shape)
    return run(replay(plan, start, SEEDS, CONDITION), evaluate).x, plan.calls


def _largest(name: str, calls: int) -> Plan:
    grid = GRIDS.get(name, grids.uniform)
    plans = (SAMPLERS[name](PROCESS, grid(PROCESS, steps)) for steps in range(calls, 0, -1))
    return next(plan for plan in plans if plan.calls <= calls)


def by_ode(solver: Solver) -> tuple[Tensor, float]:
    """Images at t_min. A pair begins with two copies of the latent, as there is no other."""
    latent = normal(SEEDS, Stream.PRIOR, 0, SPEC.shape)
    paired = isinstance(solver, FixedGrid) and solver.paired
    flowed = run(decode(PROCESS, latent, CONDITION, solver, latent if paired else None), evaluate)
    return flowed.end, float(flowed.nfe.double().mean())


def by_solver(name: str, calls: int) -> tuple[Tensor, float]:
    """Images by the solver with as many steps as these calls pay for."""
    a_step = ODE_SOLVERS[name](PROCESS, grids.log_snr(PROCESS, 2)).calls
    return by_ode(FixedGrid(name=name, steps=max(1, calls // a_step)))


def main(most: int = CALLS[-1]) -> None:
    budgets = [calls for calls in CALLS if calls <= most]
    hidden, right = classifier()
    known = hidden(DATA.train.levels), pixels(DATA.train.levels)

    def point(levels: Tensor, calls: float = 0.0) -> Point:
        return calls, frechet(hidden(levels), known[0]), frechet(pixels(levels), known[1])

    def measure(name: str, made: tuple[Tensor, float]) -> Point:
        x, calls = made
        found = point(SPEC.to_levels(x.nan_to_num(0.0)).round(), calls)
        print(name, *found, file=sys.stderr, flush=True)
        return found

    marks = {"held-out digits": point(DATA.held_out.levels), "training digits": drawn(point)}
    print(f"{SAMPLES} images; the classifier is right about {right:.1%} of the held-out digits.")
    for name, mark in marks.items():
        print(f"{name}: {_cell(*mark[1:])}")
    print()
    to_clean: dict[str, list[Point]] = {name: [] for name in SAMPLERS}
    along_ode: dict[str, list[Point]] = {name: [] for name in ODE_SOLVERS}
    for calls in budgets:
        for name, points in to_clean.items():
            points.append(measure(name, by_plan(name, calls)))
        for name, points in along_ode.items():
            points.append(measure(name, by_solver(name, calls)))
    along_ode["adaptive"] = [
        measure("adaptive", by_ode(Adaptive(tolerance=tolerance))) for tolerance in TOLERANCES
    ]
    report(budgets, to_clean, along_ode)
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(draw(to_clean, along_ode, marks))


def drawn(point: Callable[[Tensor], Point]) -> Point:
    """The mean distance of as many images drawn, with replacement, from the training images."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(DATA.train), (50, SAMPLES), generator=generator)
    draws = [point(DATA.train.levels[index]) for index in chosen]
    _, hidden, pixel = np.mean(draws, axis=0)
    return 0.0, float(hidden), float(pixel)


def report(
    budgets: list[int], to_clean: dict[str, list[Point]], along_ode: dict[str, list[Point]]
) -> None:
    """One row a sampler: distance by the hidden layer / by pixels."""
    print("| sampler | " + " | ".join(f"≤ {calls} calls" for calls in budgets) + " |")
    print("|---" * (len(budgets) + 1) + "|")
    rows = {**to_clean, **{f"pf_ode, {name}": points for name, points in along_ode.items()}}
    adaptive = rows.pop("pf_ode, adaptive")
    for name, points in rows.items():
        print(f"| {name} | " + " | ".join(_cell(*point[1:]) for point in points) + " |")
    print("\n| pf_ode, adaptive | calls, mean | distance |\n|---|---|---|")
    for tolerance, point in zip(TOLERANCES, adaptive, strict=True):
        print(f"| {tolerance:g} | {point[0]:.0f} | {_cell(*point[1:])} |")


def _cell(hidden: float, pixel: float) -> str:
    return f"{hidden:.3g} / {pixel:.2g}"


def draw(
    to_clean: dict[str, list[Point]], along_ode: dict[str, list[Point]], marks: dict[str, Point]
) -> str:
    titles = {
        "ending in a denoising step (langevin excepted)": to_clean,
        "along the probability-flow ODE": along_ode,
    }
    panels = [
        Panel(
            title=title,
            series=[
                Series(name=name, points=[point[:2] for point in points])
                for name, points in curves.items()
            ],
        )
        for title, curves in titles.items()
    ]
    return chart(
        panels,
        x="network calls",
        y="Fréchet distance",
        marks={name: mark[1] for name, mark in marks.items()},
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
