"""Many open streams on one API process, over the events of running jobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.api.system import Helper, Usage, api, measured
from benchmarks.serve.processes import say
from benchmarks.serve.summary import percentile, table

DELAY, MEMORY = 0.25, 300.0  # what is asked: seconds (p95), 10⁶ bytes


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the readers saw while every job told so many events a second."""

    rate: float
    streams: int
    expected: int
    seen: dict[str, Any]
    usage: Usage
    behind: float

    @property
    def whole(self) -> bool:
        """Whether every reader saw every event once, in order, and the end."""
        told = (self.seen["whole"], self.seen["ended"], self.seen["gaps"], self.seen["repeats"])
        return told == (self.streams, self.streams, 0, 0)


def run(rate: float, *, jobs: int, streams: int, seconds: float) -> Run:
    """Measure one rate."""
    events = max(2, round(rate * seconds))
    with api() as system:
        given = {"jobs": jobs, "events": events, "rate": rate}
        with Helper("writer", system, given) as writer:
            ids = json.loads(writer.hear())
            asked = {"url": system.url, "jobs": ids, "streams": streams, "events": events}
            with Helper("readers", system, asked) as readers:
                readers.hear()
                say(f"{streams} streams are open; {rate:g} events/s of each of {jobs} jobs")
                with measured(system, writer=writer, readers=readers) as usage:
                    writer.tell("go")
                    behind = json.loads(writer.hear())["behind"]
                    seen = json.loads(readers.hear())
    return Run(rate=rate, streams=streams, expected=events, seen=seen, usage=usage, behind=behind)


def measure(rates: list[float], *, jobs: int, streams: int, seconds: float) -> str:
    """The figure's Markdown: one row a rate, until the delay asked for is exceeded."""
    rows = []
    for rate in rates:
        one = run(rate, jobs=jobs, streams=streams, seconds=seconds)
        delays = one.seen["delays"]
        p95 = percentile(delays, 95)
        rows.append(
            (
                f"{rate * jobs:g} in, {rate * streams:,.0f} out",
                "none" if one.whole else f"{streams - one.seen['whole']} streams not whole",
                f"{1000 * percentile(delays, 50):.0f}, {1000 * p95:.0f}, {1000 * max(delays):.0f}",
                one.usage.peak,
                str(one.usage),
                f"{1000 * one.behind:.0f}",
            )
        )
        if p95 > DELAY or not one.whole:
            break
    header = (
        "events/s",
        "lost or repeated",
        "delay p50, p95, max (ms)",
        "API's memory, peak (MB)",
        "cores",
        "writer late, max (ms)",
    )
    asked = f"Asked at the first rate: none lost, p95 {DELAY * 1000:.0f} ms, {MEMORY:.0f} MB."
    return f"{table(header, rows)}\n\n{asked}"
