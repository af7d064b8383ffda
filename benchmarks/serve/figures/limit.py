"""1. The whole system, and the engine alone, against what the bare network allows."""

from __future__ import annotations

from benchmarks.serve import engine_alone
from benchmarks.serve.load import drive
from benchmarks.serve.network import images_a_second
from benchmarks.serve.options import Options, closed_loop, digits, window_of
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures, rate
from benchmarks.serve.system import fokker

PROCESSES = 2
"""Of a worker on two cores: each has an engine, a core and half of the clients."""


def measure(options: Options) -> str:
    """Images/s of the clients over rows/s of the forward ÷ steps, forwards before and after.

    The engine alone in one process on all cores, against one such network; and in as many
    processes as a worker has, against as many networks at once.
    """
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
            ("engine alone in process, images/s", alone, ""),
            ("engine alone, of the limit", share_alone, "≥ 0.94"),
            (f"limit: forwards of {apart} ÷ {options.steps}, images/s", networks, ""),
            (f"engines alone in {PROCESSES} processes, images/s", several, ""),
            ("engines alone, of that limit", share_several, "≥ 0.94"),
            ("whole system, of that limit", served_several, ""),
        )
    )
