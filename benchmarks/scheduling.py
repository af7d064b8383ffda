"""Which rows run next: the scheduler against its rivals, in a simulation of the engine's ticks.

    python -m benchmarks.scheduling

A discrete-event simulation: clients send requests, every choice of the policy costs the measured
time of its call, nothing else takes time. Call times are those of the 1-million-parameter 8×8
U-Net on two CPU cores, linear between the points; a reproducible call always costs its padded
bucket of 16. All requests wait in the engine. Latencies of requests that have not ended when the
simulation does count with their age, so that starving somebody does not look like speed. Client
behaviour is drawn by seed, the same for every policy; a cell is the median over the seeds.

Columns: *short* requests are those of 100 steps or fewer; *over idle* is an interactive latency
over that of the same request alone on the machine; *batch speed* is what the batch class gets of
the row-calls a second that it would get alone; *least lane* is the smallest share of device time
that any lane gets.
"""

import argparse
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, Literal, Protocol

import numpy as np

from service.jobs.parameters import Priority
from worker.scheduler import Part, Scheduler

PART_ROWS = 16
CURVE = ((1, 16, 32, 64, 256), (0.0025, 0.007, 0.010, 0.015, 0.063))
Kind = Literal["plain", "reproducible", "likelihood"]


@dataclass(frozen=True)
class Lane:
    """A model and a kind of call."""

    model: str
    kind: Kind


PLAIN, OTHER = Lane("A", "plain"), Lane("B", "plain")
ENCODE, LIKELIHOOD = Lane("A", "reproducible"), Lane("A", "likelihood")
CAPACITY: dict[Kind, int] = {"plain": 64, "reproducible": 16, "likelihood": 16}
PLAIN_SECONDS = [0.0, *map(float, np.interp(range(1, 257), *CURVE))]


def cost(lane: Lane, rows: int) -> float:
    """Seconds of a call."""
    match lane.kind:
        case "plain":
            return PLAIN_SECONDS[rows]
        case "reproducible":
            return PLAIN_SECONDS[16] * math.ceil(rows / 16)
        case "likelihood":  # 8 probes: 60 ms for 16 rows
            return 0.060 / PLAIN_SECONDS[16] * PLAIN_SECONDS[rows]


def capacity(lane: Lane) -> int:
    """Rows at the knee."""
    return CAPACITY[lane.kind]


# --- requests ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a client asks for, and how long it pauses before (seconds)."""

    lane: Lane
    priority: Priority
    rows: int
    calls: int
    pause: float = 0.0

    def alone(self) -> float:
        """Seconds on an idle machine."""
        full = capacity(self.lane)
        bulk, rest = divmod(self.rows, full)
        return self.calls * (bulk * cost(self.lane, full) + (cost(self.lane, rest) if rest else 0))


Client = Iterator[Request]
Load = Sequence[tuple[Callable[[random.Random], Client], int]]  # clients of a kind, how many


def equal(rng: random.Random) -> Client:
    """One image of 250 steps after the other, the start staggered over a second."""
    yield Request(PLAIN, "interactive", 1, 250, rng.random())
    while True:
        yield Request(PLAIN, "interactive", 1, 250)


def mixed(rng: random.Random, lane: Lane = PLAIN) -> Client:
    """The benchmark's mixed load."""
    while True:
        steps = rng.choice((50, 100, 250, 500, 1000))
        yield Request(lane, "interactive", rng.choice((1, 1, 2, 4, 8)), steps)


def visitor(rng: random.Random) -> Client:
    """A person who looks at an image before asking for the next."""
    while True:
        yield Request(PLAIN, "interactive", 1, rng.choice((50, 100, 250)), rng.expovariate(2.0))


def bulk(rng: random.Random, lane: Lane = PLAIN, rows: int = 256, calls: int = 250) -> Client:
    """Large jobs of the batch class, one after the other."""
    while True:
        yield Request(lane, "batch", rows, calls)


def encoder(rng: random.Random) -> Client:
    """Adaptive encodings, whose number of calls nobody knows before."""
    while True:
        yield Request(ENCODE, "interactive", rng.choice((1, 4)), rng.randint(250, 450))


def clients(load: Load, seed: int) -> list[Client]:
    """Each draws for itself, so that what it asks for does not depend on who is served first."""
    kinds = [kind for kind, number in load for _ in range(number)]
    return [kind(random.Random(f"{seed}/{index}")) for index, kind in enumerate(kinds)]


EQUAL: Load = [(equal, 64)]
MIXED: Load = [(mixed, 64)]
ONE_VISITOR: Load = [(bulk, 4), (visitor, 1)]
EIGHT_VISITORS: Load = [(bulk, 4), (visitor, 8)]
FORTY_CLIENTS: Load = [(bulk, 4), (equal, 40)]
TWO_MODELS: Load = [
    (mixed, 32),
    (partial(mixed, lane=OTHER), 4),
    (encoder, 2),
    (partial(bulk, lane=LIKELIHOOD, rows=16, calls=60), 2),
]


# --- policies ---------------------------------------------------------------------------------


class Policy(Protocol):
    """What the engine asks of a scheduler."""

    def add(self, part: Part) -> None:
        """See Scheduler."""

    def remove(self, part: Part) -> None:
        """See Scheduler."""

    def choose(self) -> list[Part]:
        """See Scheduler."""


class Greedy:
    """A call of the lane of the first part in some order, filled in that order; no classes."""

    def __init__(self, order: Callable[[Part, int], float | tuple[float, ...]]) -> None:
        self._order = order
        self._ran: dict[Part, int] = {}  # the call in which it last ran
        self._calls = count(1)

    def add(self, part: Part) -> None:
        """It has never run."""
        self._ran[part] = 0

    def remove(self, part: Part) -> None:
        """Forget it."""
        del self._ran[part]

    def choose(self) -> list[Part]:
        """The first parts, of one lane."""
        ordered = sorted(self._ran, key=lambda part: self._order(part, self._ran[part]))
        chosen = pack(ordered)
        self._ran.update(dict.fromkeys(chosen, next(self._calls)))
        return chosen


class Aging(Greedy):
    """Shortest first, but waiting a second is worth having 1 / (patience · full call) calls less.

    One order from oldest first (patience 0) to shortest first (infinity).
    """

    def __init__(self, patience: float) -> None:
        def order(part: Part, ran: int) -> float:
            assert isinstance(part.lane, Lane)
            full = cost(part.lane, capacity(part.lane))
            return part.arrived + patience * full * part.calls_left

        super().__init__(order)


def pack(ordered: Sequence[Part]) -> list[Part]:
    """The first part and those of its lane that fit beside it."""
    if not ordered:
        return []
    chosen, rows, lane = [ordered[0]], ordered[0].rows, ordered[0].lane
    assert isinstance(lane, Lane)
    for part in ordered[1:]:
        if part.lane == lane and rows + part.rows <= capacity(lane):
            chosen.append(part)
            rows += part.rows
    return chosen


def ours(**constants: Any) -> Policy:
    return Scheduler(cost, capacity, **constants)


Policies = dict[str, Callable[[], Policy]]
OURS: Policies = {"ours": ours}
RIVALS: Policies = {
    "round robin": lambda: Greedy(lambda part, ran: ran),
    "oldest first": lambda: Greedy(lambda part, ran: part.arrived),
    "shortest first": lambda: Greedy(lambda part, ran: part.calls_left),
}
STRICT: Policies = {
    "interactive strictly first": lambda: Greedy(
        lambda part, ran: (part.priority == "batch", part.arrived)
    )
}
AGING: Policies = {
    f"shortest first, aging, patience {patience:g}": partial(Aging, patience)
    for patience in (1.0, 2.0, 4.0, 8.0)
}
SHARES: Policies = {
    f"ours, short share {share:g}": partial(ours, short_share=share)
    for share in (0.0, 0.2, 0.4, 0.5, 0.7, 0.8)
}
CLASSES: Policies = {
    f"ours, interactive {weight:g} : batch 1": partial(
        ours, weights={"interactive": weight, "batch": 1.0}
    )
    for weight in (1.0, 2.0, 6.0)
}
STRETCHES: Policies = {
    f"ours, stretch {stretch:g}": partial(ours, stretch=stretch) for stretch in (0.0, 0.5, 1.0)
}
TABLES: dict[str, tuple[Load, Policies]] = {
    "a: 64 clients, 1 × 250 steps": (EQUAL, RIVALS | OURS),
    "b: 64 clients, mixed": (MIXED, RIVALS | AGING | OURS | SHARES),
    "c: 256-image jobs, 1 visitor": (ONE_VISITOR, RIVALS | STRICT | OURS | CLASSES),
    "c: 256-image jobs, 8 visitors": (EIGHT_VISITORS, RIVALS | STRICT | OURS | CLASSES),
    "c: 256-image jobs, 40 clients, 1 × 250 steps": (FORTY_CLIENTS, OURS | STRETCHES),
    "d: two models, four lanes": (TWO_MODELS, RIVALS | STRICT | OURS),
}


# --- the simulation ---------------------------------------------------------------------------


@dataclass(eq=False)
class Job:
    """A request on its way."""

    request: Request
    client: Client
    came: float
    parts: int


@dataclass(eq=False, kw_only=True)
class JobPart(Part):
    """A part that knows its job, and how many calls it really needs."""

    job: Job
    calls: int


@dataclass
class Outcome:
    """What a run of the simulation saw; latencies in seconds."""

    seconds: float
    images: float = 0.0  # the finished part of every image counts
    latencies: list[tuple[Request, float]] = field(default_factory=list)
    row_calls: dict[Priority, int] = field(default_factory=lambda: defaultdict(int))
    lane_seconds: dict[Hashable, float] = field(default_factory=lambda: defaultdict(float))

    def columns(self) -> list[float]:
        """The figures of a row of the table, in the order of COLUMNS."""
        served = [(r, s) for r, s in self.latencies if r.priority == "interactive"]
        all_of, short = [s for _, s in served], [s for r, s in served if r.calls <= 100]
        alone = CAPACITY["plain"] / cost(PLAIN, CAPACITY["plain"])
        return [
            self.images / self.seconds,
            float(np.quantile(all_of, 0.5)),
            float(np.quantile(short, 0.95)) if short else math.nan,
            max(all_of),
            float(np.quantile([s / r.alone() for r, s in served], 0.95)),
            100.0 * self.row_calls["batch"] / self.seconds / alone,
            100.0 * min(self.lane_seconds.values()) / sum(self.lane_seconds.values()),
        ]


COLUMNS = (
    ("images/s", ".1f"), ("p50, s", ".2f"), ("p95 of short, s", ".2f"), ("slowest, s", ".1f"),
    ("p95 over idle", ".1f"), ("batch speed, %", ".0f"), ("least lane, %", ".0f"),
)  # fmt: skip


def parts_of(job: Job) -> list[JobPart]:
    """A job's rows, 16 to a part; encodings are always thought to take 350 calls."""
    request = job.request
    estimate = 350 if request.lane == ENCODE else request.calls
    sizes = [min(PART_ROWS, request.rows - at) for at in range(0, request.rows, PART_ROWS)]
    return [
        JobPart(
            lane=request.lane, priority=request.priority, rows=rows, calls_left=estimate,
            arrived=job.came, job=job, calls=request.calls,
        )
        for rows in sizes
    ]  # fmt: skip


def simulate(policy: Policy, crowd: Sequence[Client], seconds: float) -> Outcome:
    """Run clients against a policy for so many simulated seconds."""
    outcome, now, order = Outcome(seconds), 0.0, count()
    coming: list[tuple[float, int, Request, Client]] = []
    for client in crowd:
        first = next(client)
        coming.append((first.pause, next(order), first, client))
    heapify(coming)
    active: dict[Job, None] = {}

    def advance(part: JobPart) -> None:
        part.calls -= 1
        part.calls_left = max(1.0, part.calls_left - 1)
        if part.calls > 0:
            return
        policy.remove(part)
        job = part.job
        job.parts -= 1
        if job.parts:
            return
        del active[job]
        outcome.latencies.append((job.request, now - job.came))
        following = next(job.client)
        heappush(coming, (now + following.pause, next(order), following, job.client))

    while now < seconds:
        while coming and coming[0][0] <= now:
            came, _, request, client = heappop(coming)
            job = Job(request, client, came, parts=0)
            parts = parts_of(job)
            job.parts, active[job] = len(parts), None
            for new in parts:
                policy.add(new)
        chosen = policy.choose()
        if not chosen:
            now = coming[0][0]
            continue
        lane: Lane = chosen[0].lane  # type: ignore[assignment]
        took = cost(lane, sum(part.rows for part in chosen))
        now += took
        outcome.lane_seconds[lane] += took
        for part in chosen:
            assert isinstance(part, JobPart)
            outcome.images += part.rows / part.job.request.calls
            outcome.row_calls[part.priority] += part.rows
            advance(part)
    outcome.latencies += [(job.request, now - job.came) for job in active]
    return outcome


# --- tables -----------------------------------------------------------------------------------


def median(cell: Callable[[int], list[float]], seeds: int) -> list[float]:
    """Column by column over the seeds."""
    return [float(x) for x in np.median([cell(seed) for seed in range(seeds)], axis=0)]


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def compare(name: str, load: Load, policies: Policies, seconds: float, seeds: int) -> None:
    """One table: a load under every policy."""
    print("\n" + line([name, *(title for title, _ in COLUMNS)]))
    print("|" + "---|" * (1 + len(COLUMNS)))
    for label, make in policies.items():

        def cell(seed: int, make: Callable[[], Policy] = make) -> list[float]:
            return simulate(make(), clients(load, seed), seconds).columns()

        values = median(cell, seeds)
        print(line([label, *(f"{v:{spec}}" for v, (_, spec) in zip(values, COLUMNS, strict=True))]))


def own_time() -> None:
    """CPU time of `choose` itself: four lanes, both classes, every call moving its parts on."""
    print("\n" + line(["parts", "choose, median, CPU ms", "99 %, ms"]))
    print("|---|---|---|")
    for parts in (10, 100, 1000):
        rng = random.Random(0)
        policy = ours()
        for number in range(parts):
            policy.add(
                Part(
                    lane=rng.choice((PLAIN, PLAIN, OTHER, ENCODE, LIKELIHOOD)),
                    priority=rng.choice(("interactive", "batch")),
                    rows=rng.choice((1, 2, 4, 8, 16)),
                    calls_left=rng.choice((50, 100, 250, 500, 1000)),
                    arrived=0.1 * number,
                )
            )
        took = []
        for _ in range(5000):
            start = time.thread_time()
            chosen = policy.choose()
            took.append(time.thread_time() - start)
            for part in chosen:
                part.calls_left = part.calls_left - 1 or 1000
        median_ms, tail_ms = 1e3 * np.quantile(took, (0.5, 0.99))
        print(line([str(parts), f"{median_ms:.3f}", f"{tail_ms:.3f}"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare scheduling policies by simulation.")
    parser.add_argument("--seconds", type=float, default=200.0, help="simulated, a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--load", default="", help="only those whose name starts so")
    given = parser.parse_args()
    for name, (load, policies) in TABLES.items():
        if name.startswith(given.load):
            compare(name, load, policies, given.seconds, given.seeds)
    own_time()


if __name__ == "__main__":
    main()
