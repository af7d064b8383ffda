"""Jobs in the engine: claimed and not begun, and on their way."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from model.query import Course, Operation
from service.jobs.lease import Claim
from worker.operations import Outcome
from worker.reports import Reports
from worker.runner import Ride
from worker.shelf import ServedModel


@dataclass(eq=False, kw_only=True)
class Arrival:
    """A claimed job before it starts.

    since: when it was claimed. taken: a thread prepares it.
    """

    claim: Claim
    inputs: bytes | None
    taken: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> float:
        """When it must stop, on the monotonic clock; Redis's clock is that of the deadline."""
        job = self.claim.job
        if job.deadline is None or job.started is None:
            return math.inf
        return self.since + job.deadline - job.started


@dataclass(eq=False, kw_only=True)
class ActiveJob:
    """A job on its way: the course that it asked for last, and the rides that take it there.

    stop: why it must leave at the next tick, and since when; None while it may stay. legs: see
    `operations.legs`; past: courses that it has had, and calls: the network calls of those.
    """

    arrival: Arrival
    served: ServedModel
    operation: Operation[Outcome]
    course: Course[Any]
    reports: Reports
    rides: list[Ride] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    legs: int
    past: int = 0
    calls: int = 0
    stop: tuple[str, float] | None = None
    told_preview: bool = False
    labels: tuple[str, str]  # operation and model, for metrics
    due: float  # see Arrival

    @property
    def claim(self) -> Claim:
        """The claim that owns the job."""
        return self.arrival.claim

    @property
    def progress(self) -> float:
        """How far it is, 0 … 1: its legs take alike, and its rides are averaged."""
        now = sum(ride.part.progress for ride in self.rides) / len(self.rides)
        return (min(self.past, self.legs - 1) + now) / self.legs

    @property
    def calls_made(self) -> int:
        """Network calls so far, one after another; those of its rides are beside each other."""
        return self.calls + max(ride.part.calls for ride in self.rides)

    @property
    def age(self) -> float:
        """Seconds since the job was submitted: Redis's until it was claimed, ours since."""
        job = self.claim.job
        waited = (job.started or 0.0) - (job.created or 0.0)
        return max(0.0, waited) + time.monotonic() - self.arrival.since
