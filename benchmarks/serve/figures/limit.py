"""1. The whole system, and the engine alone, against what the bare network allows."""

from __future__ import annotations

from benchmarks.serve import engine_alone
from benchmarks.serve.load import drive
from benchmarks.serve.network import images_a_second
from benchmarks.serve.options import Options, closed_loop, digits, window_of
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures, rate
from benchmarks.serve.system import fokker


def measure(options: Options) -> str:
    """Images/s of the clients over rows/s of the forward ÷ steps, forwards before and after."""
    window = window_of(options.seconds)
    network, served, alone, share, share_alone = [], [], [], [], []
    for number in range(options.rounds):
        before = images_a_second(options.rows, options.steps)
        with fokker() as system:
            load = closed_loop(
                system.url, digits(options), options.clients, options.seconds, drain=0
            )
            served.append(rate(drive(load), window))
        between = images_a_second(options.rows, options.steps)
        alone.append(
            rate(engine_alone.drive(options.clients, options.steps, options.seconds), window)
        )
        after = images_a_second(options.rows, options.steps)
        network += [before, between, after]
        share.append(served[-1] / ((before + between) / 2))
        share_alone.append(alone[-1] / ((between + after) / 2))
        say(f"  round {number + 1}: {share[-1]:.3f} of the limit, alone {share_alone[-1]:.3f}")
    return figures(
        (
            (f"limit: forward of {options.rows} rows ÷ {options.steps}, images/s", network, ""),
            ("whole system, images/s", served, ""),
            ("whole system, of the limit", share, "≥ 0.90"),
            ("engine alone in process, images/s", alone, ""),
            ("engine alone, of the limit", share_alone, "≥ 0.94"),
        )
    )
