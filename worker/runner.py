"""The device: the stores of a model's rows, and one network call for many of them.

The only file of the worker that touches the device. It decides nothing: which rows ride in a call
is the scheduler's choice, what becomes of them the engine's.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.denoiser import Denoiser
from model.query import Answer, Asked, Course, Part, Query, Store, cat_queries
from service.jobs.parameters import Priority
from worker import scheduler
from worker.metrics import FORWARD, GRADIENT


class Lane(NamedTuple):
    """Rows of one lane can share a network call: its model, and what is asked of it."""

    digest: str
    reproducible: bool
    divergence: Hashable

    @classmethod
    def of(cls, digest: str, course: Course[Any]) -> Lane:
        """The lane that a course goes in."""
        return cls(digest, course.reproducible, course.divergence)

    @property
    def call(self) -> str:
        """The kind of its network calls, as metrics name them."""
        return FORWARD if self.divergence is None else GRADIENT


@dataclass(eq=False, kw_only=True)
class Ride(scheduler.Part):
    """Rows of a job's course in a store of the device, for the scheduler to choose."""

    lane: Lane
    store: Store[Any]
    part: Part

    def refresh(self) -> None:
        """Tell the scheduler what the last call has changed."""
        self.rows = self.part.network_rows
        self.calls_left = self.part.calls_left


@dataclass(frozen=True, kw_only=True)
class Called:
    """A network call: the rides by their stores, what each store asked, and the answer.

    seconds: until the device had taken the call on, and on a CPU until it was done.
    """

    groups: dict[Store[Any], list[Ride]]
    asked: list[Asked[Any]]
    query: Query
    answer: Answer
    seconds: float


class Seen(NamedTuple):
    """What one ride asked in a call, and was told; images: which of the course's rows."""

    ride: Ride
    images: Tensor
    called: Called
    rows: slice

    @property
    def own(self) -> tuple[Query, Answer]:
        """The ride's rows of the call."""
        return self.called.query.take(self.rows), self.called.answer.take(self.rows)


class Runner:
    """One model on its device."""

    def __init__(self, digest: str, denoiser: Denoiser) -> None:
        self._digest = digest
        self._denoiser = denoiser
        self._stores: dict[Hashable, Store[Any]] = {}

    def admit(
        self, course: Course[Any], size: int, priority: Priority, arrived: float
    ) -> list[Ride]:
        """Take the rows of a course in, as rides of at most ``size`` rows."""
        store = self._stores.get(course.store_key)
        if store is None:
            store = self._stores[course.store_key] = course.new_store(self._denoiser.device)
        parts: list[Part] = []
        try:
            for first in range(0, course.rows, size):
                parts.append(store.admit(course, slice(first, min(first + size, course.rows))))
        except Exception:
            for part in parts:
                store.free(part)
            raise
        lane = Lane.of(self._digest, course)
        return [
            Ride(
                lane=lane,
                priority=priority,
                arrived=arrived,
                rows=part.network_rows,
                calls_left=part.calls_left,
                store=store,
                part=part,
            )
            for part in parts
        ]

    def call(self, rides: Sequence[Ride]) -> Called:
        """One network call for these rides, all of one lane; it moves none of them."""
        groups: dict[Store[Any], list[Ride]] = defaultdict(list)
        for ride in rides:
            groups[ride.store].append(ride)
        asked: list[Asked[Any]] = [
            store.ask([ride.part for ride in group]) for store, group in groups.items()
        ]
        query = cat_queries([one.query for one in asked])
        begin = time.perf_counter()
        answer = self._denoiser(query)
        seconds = time.perf_counter() - begin
        return Called(groups=groups, asked=asked, query=query, answer=answer, seconds=seconds)

    def update(self, called: Called) -> list[Seen]:
        """One update a store; where it fails, nobody knows which of the call's rides have moved."""
        seen, first = [], 0
        for asked, (store, group) in zip(called.asked, called.groups.items(), strict=True):
            start = first
            for ride in group:
                rows = slice(first, first + ride.part.rows)
                seen.append(Seen(ride=ride, images=ride.part.images, called=called, rows=rows))
                first = rows.stop
            store.tell(asked, called.answer.take(slice(start, first)))
        for one in seen:
            one.ride.refresh()
        return seen


def is_out_of_memory(error: Exception) -> bool:
    """Whether a call failed for lack of memory, on either kind of device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )
