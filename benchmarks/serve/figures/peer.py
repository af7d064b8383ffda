"""3. Ours and the peer in one run, in turns: one digit a request, then a mixed load."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence

from benchmarks.serve.load import Load, Request, drive
from benchmarks.serve.options import Options, closed_loop, window_of
from benchmarks.serve.peer import litserve, predict
from benchmarks.serve.processes import say
from benchmarks.serve.summary import Record, Window, figures, latencies, percentile, rate
from benchmarks.serve.system import fokker, generate

MIXED_STEPS, MIXED_COUNTS = (50, 100, 250, 500, 1000), (1, 1, 2, 4, 8)
MIXED_REQUESTS = 4096
SHORT = 100
"""Steps of a request that should not have to wait for the long ones."""

Make = Callable[[int, int, int], Request]
"""A request of (seed, steps, count)."""

ASKED = {
    ("one digit", "images/s"): "≥ 1.3",
    ("mixed", "images/s"): "≥ 1.4",
    ("mixed", "p50, s"): "≤ 0.4",
    ("mixed", f"p95 of ≤ {SHORT} steps, s"): "≤ 0.15",
    ("mixed", "slowest, s"): "≤ 1.6",
}


def mixed(seed: int) -> list[tuple[int, int]]:
    """(steps, count) of the mixed load, the same for the same seed."""
    draw = random.Random(seed)
    return [(draw.choice(MIXED_STEPS), draw.choice(MIXED_COUNTS)) for _ in range(MIXED_REQUESTS)]


def measure(options: Options) -> str:
    """Every figure of ours, of the peer's, and their ratios round by round."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for number in range(options.rounds):
        with litserve() as url:
            theirs = both_loads(url, predict, options, number)
        with fokker() as system:
            ours = both_loads(system.url, generate, options, number)
        for (load, name), value in ours.items():
            found[load, name, "ours"].append(value)
            found[load, name, "peer"].append(theirs[load, name])
            found[load, name, "ratio"].append(value / theirs[load, name])
        ratio = found["one digit", "images/s", "ratio"][-1]
        say(f"  round {number + 1}: {ratio:.2f} times the peer's images/s")
    return figures(
        [
            (f"{load}: {name}, {whose}", values, ASKED.get((load, name), "") * (whose == "ratio"))
            for (load, name, whose), values in found.items()
        ]
    )


def both_loads(url: str, make: Make, options: Options, seed: int) -> dict[tuple[str, str], float]:
    """The figures of both loads on one running server."""
    clients, seconds = options.clients, options.seconds
    one = [make(n, options.steps, 1) for n in range(clients)]
    many = [make(n, *kind) for n, kind in enumerate(mixed(seed))]
    # The mixed load's requests take half a minute: it needs longer to show its rate.
    loads = {
        "one digit": (closed_loop(url, one, clients, seconds), window_of(seconds)),
        "mixed": (closed_loop(url, many, clients, 2 * seconds), window_of(2 * seconds)),
    }
    return {
        (name, figure): value
        for name, (load, window) in loads.items()
        for figure, value in summary(load, drive(load), window).items()
    }


def summary(load: Load, records: Sequence[Record], window: Window) -> dict[str, float]:
    """Images/s and the latencies of a load's records."""
    waited = latencies(records, window)
    figures = {
        "images/s": rate(records, window),
        "p50, s": percentile(waited, 50),
        "p95, s": percentile(waited, 95),
        "slowest, s": percentile(waited, 100),
    }
    short = [r for r in records if steps_of(load.requests[r.index]) <= SHORT]
    if short:
        figures[f"p95 of ≤ {SHORT} steps, s"] = percentile(latencies(short, window), 95)
    return figures


def steps_of(request: Request) -> int:
    """Steps of a request, ours or the peer's."""
    steps: int = request.body.get("sampler", request.body)["steps"]
    return steps
