"""6. The part of a tick that is not the network's."""

from __future__ import annotations

import time
from collections import defaultdict

from benchmarks.serve.errors import SkippedError
from benchmarks.serve.load import background
from benchmarks.serve.options import Options, closed_loop, digits
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures
from benchmarks.serve.system import System, fokker

JOBS = (1, 16, 64)
TICK, NETWORK = "fokker_tick_seconds_sum", "fokker_network_seconds_sum"
ASKED = {64: "≤ 10 %"}


def measure(options: Options) -> str:
    """Per cent of the ticks' time spent outside the network, by jobs in flight."""
    share: dict[int, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        for jobs in JOBS:
            with fokker() as system:
                share[jobs].append(100 * outside(system, jobs, options))
        say(f"  round {number + 1}: " + ", ".join(f"{n}: {v[-1]:.1f} %" for n, v in share.items()))
    return figures(
        [
            (f"{jobs} job{'s' * (jobs > 1)} in flight, %", values, ASKED.get(jobs, ""))
            for jobs, values in share.items()
        ]
    )


def outside(system: System, jobs: int, options: Options) -> float:
    """The share of the ticks' time outside the network while `jobs` are in flight."""
    load = closed_loop(system.url, digits(options), jobs, 2 * options.seconds)
    with background(load):
        time.sleep(options.seconds / 2)  # until all clients have started
        before = clocks(system)
        time.sleep(options.seconds)
        after = clocks(system)
    tick, network = (a - b for a, b in zip(after, before, strict=True))
    if tick == 0:
        raise SkippedError(f"{TICK} did not move")
    return 1 - network / tick


def clocks(system: System) -> tuple[float, float]:
    """Seconds spent in ticks and in the network so far."""
    return system.metric(TICK), system.metric(NETWORK)
