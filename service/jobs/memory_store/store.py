"""The API's side of the job store in memory."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from typing_extensions import override

from service.jobs import store
from service.jobs.artifacts import Kept
from service.jobs.beat import Beat
from service.jobs.events import Event
from service.jobs.job import Job, Status
from service.jobs.memory_store.memory import Entry, Memory, Queue
from service.jobs.memory_store.stream import Stream
from service.jobs.overview import Overview, Waiting
from service.jobs.parameters import PRIORITIES
from service.jobs.store import (
    READ,
    JobStore,
    Once,
    OtherContentError,
    Page,
    QueueFullError,
    QuotaError,
)
from service.settings import Settings


class MemoryJobStore(JobStore):
    """Jobs in a `Memory`."""

    def __init__(self, settings: Settings, memory: Memory) -> None:
        super().__init__(settings)
        self._memory = memory

    @override
    async def close(self) -> None:
        pass

    @override
    async def ping(self) -> None:
        pass

    # Jobs

    @override
    async def submit(
        self,
        job: Job,
        inputs: bytes | None = None,
        *,
        cancel_after: float | None = None,
        once: Once | None = None,
        attached: bool = False,
    ) -> Job:
        settings, memory = self.settings, self._memory
        with memory.turn() as now:
            if job.id in memory.jobs:
                return memory.jobs[job.id].job
            if once is not None and (earlier := self._earlier(job, once)) is not None:
                return earlier
            self._check_room(job)
            deadline = None if cancel_after is None else now + cancel_after
            job = replace(job, created=now, deadline=deadline)
            stream = Stream(settings.stream_length)
            entry = Entry(job, inputs, attached, stream, settings.job_ttl)
            memory.jobs[job.id] = memory.unfinished[job.id] = entry
            if once is not None:
                name, expires = _name(job, once), now + settings.idempotency_ttl
                memory.requests.pop(name, None)  # the new one is to be the last
                memory.requests[name] = job.id, once.fingerprint, expires
            entry.event("queued", {}, now)
            memory.counts["submitted", job.operation, job.model] += 1
            memory.enter_queue(entry)
            return job

    def _earlier(self, job: Job, once: Once) -> Job | None:
        """The job of an earlier request of this name, if it is still there."""
        job_id, fingerprint, _ = self._memory.requests.get(_name(job, once), ("", "", 0.0))
        entry = self._memory.jobs.get(job_id)
        if entry is not None and fingerprint != once.fingerprint:
            raise OtherContentError(job_id)
        return None if entry is None else entry.job

    def _check_room(self, job: Job) -> None:
        jobs = sum(map(len, self._memory.queues.values()))
        if jobs >= self.settings.max_queued:
            raise QueueFullError(jobs)
        if (most := self.settings.max_owner_cost) is None:
            return
        unfinished = (entry.job for entry in self._memory.unfinished.values())
        taken = sum(other.cost for other in unfinished if other.owner == job.owner)
        if taken > 0 and taken + job.cost > most:
            raise QuotaError(taken)

    @override
    async def get(self, job_id: str) -> Job | None:
        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            return None if entry is None else entry.job

    @override
    async def cancel(self, job_id: str, reason: str = "requested") -> Job | None:
        with self._memory.turn() as now:
            entry = self._memory.jobs.get(job_id)
            if entry is None:
                return None
            self._memory.cancel(entry, reason, now)
            return entry.job

    @override
    async def forget(self, job_id: str) -> None:
        with self._memory.turn():
            if (entry := self._memory.jobs.get(job_id)) is not None:
                self._memory.delete(entry)

    @override
    async def page(
        self, owner: str, limit: int, after: str | None = None, status: Status | None = None
    ) -> Page:
        last = float("inf") if after is None else float(after)
        found: list[Job] = []
        with self._memory.turn():
            for job in (entry.job for entry in reversed(self._memory.jobs.values())):
                assert job.created is not None
                wanted = job.owner == owner and status in (None, job.status)
                if wanted and job.created < last:
                    found.append(job)
                    if len(found) == limit:
                        return Page(found, f"{job.created:.6f}")
        return Page(found, None)

    @override
    async def known(self, job_ids: Sequence[str]) -> set[str]:
        with self._memory.turn():
            return self._memory.jobs.keys() & set(job_ids)

    @override
    async def artifact_entry(self, job_id: str, name: str) -> tuple[str, Kept] | None:
        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            if entry is None or name not in entry.artifacts:
                return None
            return entry.job.artifacts[name], entry.artifacts[name]

    # The queues

    @override
    async def ahead(self, job: Job) -> tuple[int, float] | None:
        memory = self._memory
        with memory.turn():
            queue, place = memory.queue_of(job), (job.created, job.id)
            if place not in queue:
                return None
            urgent = PRIORITIES[: PRIORITIES.index(job.priority)]
            before = [memory.queues[priority, job.digest] for priority in urgent]
            waiting = [*before, queue[: queue.index((job.created or 0.0, job.id))]]
            ids = [job_id for line in waiting for _, job_id in line]
            row_calls = sum(memory.jobs[job_id].job.cost for job_id in ids)
            running = sum(
                other.job.cost
                for other in memory.unfinished.values()
                if other.job.status is Status.RUNNING and other.job.digest == job.digest
            )
            return len(ids), row_calls + running / 2

    @override
    async def overview(self) -> Overview:
        memory = self._memory
        with memory.turn() as now:
            running = [e for e in memory.unfinished.values() if e.job.status is Status.RUNNING]
            row_calls = Counter[str]()
            for entry in running:
                row_calls[entry.job.digest] += entry.job.cost
            return Overview(
                waiting={
                    (digest, priority): self._waiting(queue, now)
                    for (priority, digest), queue in memory.queues.items()
                    if queue
                },
                running=len(running),
                row_calls_running=row_calls,
                overdue=sum(entry.leased_until <= now for entry in running),
                webhooks=len(memory.hooks),
                counts=memory.counts.copy(),
            )

    def _waiting(self, queue: Queue, now: float) -> Waiting:
        row_calls = sum(self._memory.jobs[job_id].job.cost for _, job_id in queue)
        return Waiting(len(queue), row_calls, now - queue[0][0])

    # What happens without a request

    @override
    async def watch(self, job_id: str, change: int) -> None:
        with self._memory.turn() as now:
            if (entry := self._memory.unfinished.get(job_id)) is None:
                return
            entry.watchers = max(0, entry.watchers + change)
            idle = entry.attached and not entry.watchers
            entry.abandoned_at = now + store.ABANDONED_AFTER if idle else None

    @override
    async def settle(self) -> None:
        memory = self._memory
        with memory.turn() as now:
            for entry in list(memory.unfinished.values()):
                if entry.overdue(now):
                    self._expire(entry, now)
                elif entry.abandoned_at is not None and entry.abandoned_at <= now:
                    memory.cancel(entry, "abandoned", now)

    def _expire(self, entry: Entry, now: float) -> None:
        """Settle a job whose deadline has passed; its owner, if it has one, is asked to stop."""
        if entry.job.status is Status.RUNNING:
            self._memory.ask_to_stop(entry, "deadline")
            if entry.leased_until > now:
                return
        self._memory.finish_canceled(entry, entry.job.cancel_reason or "deadline", now)

    @override
    async def due_webhooks(self, seconds: float, most: int) -> list[tuple[Job, int]]:
        with self._memory.turn() as now:
            due = [
                entry
                for entry in self._memory.hooks.values()
                if entry.hook_at is not None
                and entry.hook_at <= now
                and entry.hook_held_until <= now
            ][:most]
            for entry in due:
                entry.hook_held_until = now + seconds
                entry.hook_attempts += 1
            return [(entry.job, entry.hook_attempts) for entry in due]

    @override
    async def webhook_failed(self, job_id: str, pause: float | None) -> None:
        if pause is None:
            return await self.webhook_done(job_id)
        with self._memory.turn() as now:
            if (entry := self._memory.hooks.get(job_id)) is not None:
                entry.hook_at, entry.hook_held_until = now + pause, 0.0
        return None

    @override
    async def webhook_done(self, job_id: str) -> None:
        with self._memory.turn():
            self._memory.hooks.pop(job_id, None)

    # Events

    @override
    async def read_events(self, job_id: str, after: str, block_ms: int) -> list[Event]:
        arrived = asyncio.Event()
        with self._roused_by(job_id, arrived):
            if not (found := self._after(job_id, after)):
                with suppress(TimeoutError):
                    await asyncio.wait_for(arrived.wait(), block_ms / 1000)
                found = self._after(job_id, after)
        return found

    def _after(self, job_id: str, after: str) -> list[Event]:
        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            return [] if entry is None else entry.stream.after(after)[:READ]

    @contextmanager
    def _roused_by(self, job_id: str, arrived: asyncio.Event) -> Iterator[None]:
        """Set `arrived`, from whichever thread, when the job has a new event."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed over its readers
                loop.call_soon_threadsafe(arrived.set)

        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            if entry is None:
                arrived.set()
            else:
                entry.stream.wake.add(wake)
        try:
            yield
        finally:
            if entry is not None:
                with self._memory.turn():
                    entry.stream.wake.discard(wake)

    @override
    async def lost_events(self, job_id: str, after: str) -> bool:
        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            return entry is not None and entry.stream.lost(after)

    # Models and workers

    @override
    async def models(self) -> dict[str, dict[str, Any]]:
        with self._memory.turn():
            return dict(sorted(self._memory.models.items()))

    @override
    async def beats(self) -> Sequence[Beat]:
        with self._memory.turn() as now:
            return [beat for until, beat in self._memory.beats.values() if until > now]

    # The store itself

    @override
    async def memory_low(self) -> bool:
        return False

    @override
    async def secret(self) -> bytes:
        return self._memory.secret


def _name(job: Job, once: Once) -> tuple[str, ...]:
    """What a request is remembered by: keys are each owner's own."""
    return job.owner, job.operation, once.key
