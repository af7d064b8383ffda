"""1. The whole system, and the engine alone, against what the bare network allows."""

from __future__ import annotations

import os

from benchmarks.serve import engine_alone
from benchmarks.serve.errors import BenchError
from benchmarks.serve.load import drive
from benchmarks.serve.network import images_a_second
from benchmarks.serve.options import Options, closed_loop, digits, window_of
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures, rate
from benchmarks.serve.system import fokker

PROCESSES = min(len(os.sched_getaffinity(0)), 4)
"""Of a worker, unless it is told otherwise: each has an engine and its part of the cores."""


def measure(options: Options) -> str:
    """Images/s of the clients over rows/s of the forward ÷ steps, forwards before and after.

    The engine alone in one process on all cores, against one such network; and in as many
    processes as a worker has, against as many networks at once. Raises BenchError.
    """
    if options.rows % PROCESSES or options.clients % PROCESSES:
        raise BenchError(f"give --rows and --clients that {PROCESSES} processes can share evenly")
    window = window_of(options.seconds)

    def limit(processes: int) -> float:
        return images_a_second(options.rows, options.steps, processes)

    def engines(processes: int) -> float:
        load = (options.clients, options.steps, options.seconds)
        return rate(engine_alone.drive(*load, processes), window)

    network, served, alone, share, share_alone = [], [], [], [], []
    networks, several, share_several, served_several = [], [], [], []
    for number in range(options.rounds):
        before = limit(1)
        with fokker() as system:
            load = closed_loop(
                system.url, digits(options), options.clients, options.seconds, drain=0
            )
            served.append(rate(drive(load), window))
        between = limit(1)
        alone.append(engines(1))
        after = limit(1)
        network += [before, between, after]
        share.append(served[-1] / ((before + between) / 2))
        share_alone.append(alone[-1] / ((between + after) / 2))
        before = limit(PROCESSES)
        several.append(engines(PROCESSES))
        after = limit(PROCESSES)
        networks += [before, after]
        share_several.append(several[-1] / ((before + after) / 2))
        served_several.append(served[-1] / ((before + after) / 2))
        say(
            f"  round {number + 1}: {share[-1]:.3f} of the limit, alone {share_alone[-1]:.3f}, "
            f"in {PROCESSES} processes {share_several[-1]:.3f}"
        )
    apart = f"{options.rows // PROCESSES} rows in each of {PROCESSES} processes"
    return figures(
        (
            (f"limit: forward of {options.rows} rows ÷ {options.steps}, images/s", network, ""),
            ("whole system, images/s", served, ""),
            ("whole system, of the limit", share, "≥ 0.90"),
            ("engine alone in one process, images/s", alone, ""),
            ("engine alone in one process, of the limit", share_alone, "≥ 0.94"),
            (f"limit: forwards of {apart} ÷ {options.steps}, images/s", networks, ""),
            (f"engines alone in {PROCESSES} processes, images/s", several, ""),
            (f"engines alone in {PROCESSES} processes, of that limit", share_several, ""),
            ("whole system, of that limit", served_several, ""),
        )
    )
