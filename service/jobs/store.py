"""The API's side of the job store, as a port: `redis_store` and `memory_store` implement it."""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.artifacts import Content, Kept, open_artifacts
from service.jobs.beat import Beat
from service.jobs.errors import ArtifactsError
from service.jobs.events import FROM_THE_START, GAP, Event, follows
from service.jobs.job import Job, Status
from service.jobs.overview import Overview
from service.settings import Settings

PATIENCE = 1.0
"""Seconds for one page of events after which its reader may have missed some."""

READ = 100
"""Events that one read gives at most."""

ABANDONED_AFTER = 10.0
"""Seconds without a subscriber after which a job that is attached to them is canceled."""


class RefusedError(Exception):
    """A job that was not stored, and why."""


@dataclass
class QueueFullError(RefusedError):
    """So many jobs wait already."""

    jobs: int


@dataclass
class QuotaError(RefusedError):
    """The owner has so many row-calls unfinished already."""

    cost: int


@dataclass
class OtherContentError(RefusedError):
    """The request's idempotency key was used before, for other content, by this job."""

    job_id: str


@dataclass(frozen=True)
class Once:
    """A request that is carried out once. key: its owner's. fingerprint: of its content."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Place:
    """Where a queued job stands: jobs before it, and seconds until it is done; None: no telling."""

    position: int
    eta: float | None


@dataclass(frozen=True)
class Page:
    """Jobs of an owner, newest first; following: where the next page begins, None at the end."""

    jobs: list[Job]
    following: str | None


class JobStore(ABC):
    """Submit, read and cancel jobs, all under the store's own clock, in seconds.

    A finished job, its events and its artifacts are kept for FOKKER_JOB_TTL seconds. Every method
    raises `StoreError` while the store is away or full.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._artifacts = open_artifacts(settings)

    @abstractmethod
    async def close(self) -> None:
        """Give back what the store holds of this process."""

    @abstractmethod
    async def ping(self) -> None:
        """Return if the store answers."""

    # Jobs

    @abstractmethod
    async def submit(
        self,
        job: Job,
        inputs: bytes | None = None,
        *,
        cancel_after: float | None = None,
        once: Once | None = None,
        attached: bool = False,
    ) -> Job:
        """Store a new job with its inputs and its `queued` event, at once or not at all.

        cancel_after: seconds until its deadline, if it is to have one. once: gives the job of an
        earlier request with the same key and content, if that has not expired. attached: the job is
        canceled when the last of its subscribers has left for a while.

        Raises `RefusedError`: a full queue, the owner's quota, a key with other content.
        """

    @abstractmethod
    async def get(self, job_id: str) -> Job | None:
        """The job, None if it never was or has expired."""

    @abstractmethod
    async def cancel(self, job_id: str, reason: str = "requested") -> Job | None:
        """End a queued job, ask for the end of a running one, leave a finished one unchanged."""

    async def delete(self, job_id: str) -> None:
        """Remove a job with its events and artifacts; one that runs is lost to its worker.

        Where the files of its artifacts cannot be removed, `sweep` does it later.
        """
        await self.forget(job_id)
        try:
            await asyncio.to_thread(self._artifacts.remove, job_id)
        except ArtifactsError as error:
            later = f"they go {self.settings.job_ttl} seconds after they were written"
            raise ArtifactsError(f"the job is deleted, but its {error}; {later}") from error

    @abstractmethod
    async def forget(self, job_id: str) -> None:
        """Remove all that the store itself has of a job."""

    @abstractmethod
    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Those of these jobs that are there."""

    @abstractmethod
    async def page(
        self, owner: str, limit: int, after: str | None = None, status: Status | None = None
    ) -> Page:
        """At most `limit` jobs of an owner, newest first, from after the page that gave `after`."""

    async def artifact(self, job_id: str, name: str) -> tuple[str, Content] | None:
        """Media type and bytes of an artifact, None if there is none of that name.

        Raises `ArtifactsError` where the place of its bytes is away.
        """
        entry = await self.artifact_entry(job_id, name)
        if entry is None:
            return None
        media_type, kept = entry
        content = await asyncio.to_thread(self._artifacts.open, kept)
        return None if content is None else (media_type, content)

    @abstractmethod
    async def artifact_entry(self, job_id: str, name: str) -> tuple[str, Kept] | None:
        """Media type of an artifact, and what was entered of its bytes."""

    async def sweep(self) -> int:
        """Remove the files of jobs that are gone; of how many.

        A deleted job's are gone already, unless the place of artifacts was away, or a worker wrote
        on. Only what is older than FOKKER_JOB_TTL goes, lest two deployments that share a place by
        mistake remove each other's. Every process may call it.
        """
        old = await asyncio.to_thread(self._artifacts.older_than, self.settings.job_ttl)
        gone = old - await self.known(sorted(old))
        for job_id in gone:
            await asyncio.to_thread(self._artifacts.remove, job_id)
        return len(gone)

    # The queues

    @abstractmethod
    async def ahead(self, job: Job) -> tuple[int, float] | None:
        """How many jobs, and row-calls, its checkpoint does before a queued job; None for others.

        Half of what runs counts as done.
        """

    @abstractmethod
    async def overview(self) -> Overview:
        """All queues, leases and counts of what happened, for operators."""

    async def place(self, job: Job) -> Place | None:
        """Where a queued job stands in the queues of its checkpoint; None for any other job.

        The time is that of the row-calls before it and its own, at the rate that live workers
        measured; it leaves out what comes later and goes first.
        """
        before = await self.ahead(job)
        if before is None:
            return None
        position, row_calls = before
        return Place(position, await self.seconds_for(job.digest, row_calls + job.cost))

    async def seconds_for(self, digest: str, cost: float) -> float | None:
        """Seconds that the live workers of a checkpoint take for row-calls; None: no telling."""
        rate = sum(beat.rates.get(digest, 0.0) for beat in await self.recent_beats())
        return cost / rate if rate > 0 else None

    # What happens without a request

    @abstractmethod
    async def watch(self, job_id: str, change: int) -> None:
        """Count a subscriber that comes (1) or leaves (-1)."""

    @abstractmethod
    async def settle(self) -> None:
        """Settle the jobs whose deadline has passed and those that nobody follows any more.

        Every process with a store may call it, as often as it likes.
        """

    @abstractmethod
    async def due_webhooks(self, seconds: float, most: int) -> list[tuple[Job, int]]:
        """Jobs whose webhook is due, and the number of this attempt; nobody else gets them.

        seconds: after which they are due again, should the caller die. most: at a time.
        """

    @abstractmethod
    async def webhook_failed(self, job_id: str, pause: float | None) -> None:
        """Try again after so many seconds; None: never."""

    @abstractmethod
    async def webhook_done(self, job_id: str) -> None:
        """Forget the webhook of a job."""

    # Events

    @abstractmethod
    async def read_events(self, job_id: str, after: str, block_ms: int) -> Sequence[Event]:
        """At most `READ` events after the id `after`; waits up to `block_ms` for the first one."""

    @abstractmethod
    async def lost_events(self, job_id: str, after: str) -> bool:
        """Whether events after the id `after` were removed, or may have been."""

    async def follow(
        self, job_id: str, after: str, idle: float
    ) -> AsyncGenerator[Event | None, None]:
        """The events after `after` up to the terminal one; None after each `idle` seconds.

        Where events were removed before they could be given, a `gap` with the job's status stands
        in their place. It also ends when the job or the rest of its events have expired.
        """
        behind = follows(after, FROM_THE_START)
        while True:
            events = await self.read_events(job_id, after, block_ms=max(1, int(idle * 1000)))
            read = time.monotonic()
            if behind and events and (gap := await self._gap(job_id, after)):
                yield gap
            for event in events:
                yield event
                if event.last:
                    return
                after = event.id
            behind = len(events) == READ or time.monotonic() - read > PATIENCE
            if not events:
                job = await self.get(job_id)
                if job is None or (job.last_event and not follows(job.last_event, after)):
                    return
                yield None

    async def _gap(self, job_id: str, after: str) -> Event | None:
        job = await self.get(job_id) if await self.lost_events(job_id, after) else None
        if job is None:
            return None
        return Event(after, GAP, json.dumps({"status": job.status, "attempt": job.attempt}))

    # Models and workers

    @abstractmethod
    async def models(self) -> dict[str, dict[str, Any]]:
        """The card of every model that a worker ever announced, by name."""

    @abstractmethod
    async def beats(self) -> Sequence[Beat]:
        """What the live workers last said."""

    async def recent_beats(self) -> Sequence[Beat]:
        """The same, or what it was a moment ago, for estimates that are asked for often."""
        return await self.beats()

    async def live_models(self) -> frozenset[str]:
        """The names of the models that a live worker serves now."""
        return frozenset(name for beat in await self.beats() for name in beat.models)

    # The store itself

    @abstractmethod
    async def memory_low(self) -> bool:
        """Whether the store has used so much of its memory that new jobs must wait."""

    @abstractmethod
    async def secret(self) -> bytes:
        """Bytes that all processes of this store share and nobody else knows."""
