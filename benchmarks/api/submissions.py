"""Submissions at a steady rate, then more than may wait; and as many as the API can take."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from benchmarks.api.system import Helper, System, Usage, api, measured
from benchmarks.api.writer import worker
from benchmarks.serve.processes import say
from benchmarks.serve.summary import percentile, table
from service.settings import Settings

CONNECTIONS = 64
LATENCY = 0.1  # what is asked: seconds (p95)
BEYOND = 10.0  # seconds that clients go on after the queue is full

Answer = tuple[float, float, int]
"""When it was due (seconds since the start), seconds until it was answered, and its status."""


def submit(
    system: System, rate: float | None, seconds: float
) -> tuple[list[Answer], dict[str, int], Usage]:
    """Let clients submit; what they were answered."""
    given = {"url": system.url, "connections": CONNECTIONS, "rate": rate, "seconds": seconds}
    with (
        Helper("submitter", system, given) as clients,
        measured(system, clients=clients) as usage,
    ):
        told = json.loads(clients.hear())
    return [tuple(answer) for answer in told["answers"]], told["other"], usage


def announce(system: System) -> None:
    """Let the API know a model, which a worker serves that takes no job."""
    worker(Settings(redis_url=system.variables["FOKKER_REDIS_URL"])).close()


def row(name: str, answers: Sequence[Answer], seconds: float, usage: Usage) -> tuple[object, ...]:
    """A line of the table."""
    took = [answer[1] for answer in answers]
    statuses = Counter(answer[2] for answer in answers)
    return (
        name,
        len(answers) / seconds,
        ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items())),
        f"{1000 * percentile(took, 50):.0f}, {1000 * percentile(took, 95):.0f}, "
        f"{1000 * max(took):.0f}",
        str(usage),
    )


def measure(rate: float, seconds: float) -> str:
    """The figure's Markdown."""
    wait = round(rate * seconds)
    with api(FOKKER_MAX_QUEUED=str(wait)) as system:
        announce(system)
        submit(system, rate / 4, 2)  # the first requests find nothing ready
        say(f"{rate:g} requests/s for {seconds:g} s, and {BEYOND:g} s beyond a full queue")
        answers, other, usage = submit(system, rate, seconds + BEYOND)
    taken = [answer for answer in answers if answer[2] == 202]
    refused = [answer for answer in answers if answer[2] != 202]
    last = max(answer[0] for answer in taken)
    first = [answer for answer in answers if answer[0] <= last]
    rest = [answer for answer in answers if answer[0] > last]
    rows = [
        row(f"{rate:g}/s while {wait:,} may wait", first, last, usage),
        row("beyond", rest, seconds + BEYOND - last, usage),
    ]
    with api(FOKKER_MAX_QUEUED="1000000") as system:
        announce(system)
        submit(system, rate / 4, 2)
        say(f"as many as {CONNECTIONS} connections get answered")
        answers, more, usage = submit(system, None, 10.0)
    rows.append(row(f"{CONNECTIONS} connections, no pause", answers, 10.0, usage))
    failures = f"\n\nOther answers: {other | more}" if other or more else ""
    header = ("", "answers/s", "answers", "latency p50, p95, max (ms)", "cores")
    asked = f"Asked: p95 {LATENCY * 1000:.0f} ms, then 429 or 503, never a 500."
    return f"{table(header, rows)}\n\n{asked} Refused: {len(refused):,}.{failures}"
