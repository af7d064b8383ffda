"""4. What an interactive request waits while the batch class takes all that is left."""

from __future__ import annotations

import time

from benchmarks.serve.errors import SkippedError
from benchmarks.serve.load import Load, background, drive
from benchmarks.serve.options import Options, closed_loop, window_of
from benchmarks.serve.processes import say
from benchmarks.serve.summary import figures, latencies, percentile
from benchmarks.serve.system import fokker, generate

BATCH_CLIENTS, BATCH_IMAGES = 4, 256


def measure(options: Options) -> str:
    """p95 of single images under a load of 256-image jobs, over their median on an idle system."""
    idle, p50, p95, ratio = [], [], [], []
    for number in range(options.rounds):
        with fokker() as system:
            if not system.knows_priority():
                raise SkippedError('requests have no "priority" yet')
            singles = [
                generate(n, options.steps, priority="interactive") for n in range(BATCH_CLIENTS)
            ]
            single = closed_loop(system.url, singles, 1, options.seconds, drain=60)
            window = window_of(options.seconds)
            idle.append(percentile(latencies(drive(single), window), 50))
            jobs = [generate(n, options.steps, BATCH_IMAGES, priority="batch") for n in range(64)]
            flood = Load(
                base_url=system.url, requests=jobs, clients=BATCH_CLIENTS, seconds=single.limit
            )
            with background(flood):
                time.sleep(window.start)  # until the batch class has what it can get
                waited = latencies(drive(single), window)
        p50.append(percentile(waited, 50))
        p95.append(percentile(waited, 95))
        ratio.append(p95[-1] / idle[-1])
        say(f"  round {number + 1}: {ratio[-1]:.2f} times the idle latency")
    return figures(
        (
            ("idle: median, s", idle, ""),
            (f"under {BATCH_CLIENTS} jobs of {BATCH_IMAGES} images: median, s", p50, ""),
            ("p95, s", p95, ""),
            ("p95 over the idle median", ratio, "≤ 3"),
        )
    )
