"""What both sides of the store in memory share: the jobs, and how each of them may move.

Everything happens in a `turn`, which one thread has at a time. What `redis_store/prelude.lua` is to
its scripts, this is to the two sides.
"""

import heapq
import json
import secrets
import threading
import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from service.jobs.artifacts import Kept
from service.jobs.beat import Beat
from service.jobs.job import TRANSITIONS, Job, Status
from service.jobs.memory_store.stream import Stream

Queue = list[tuple[float, str]]
"""When jobs were first submitted, and their ids, in that order."""


@dataclass(eq=False)
class Entry:
    """A job with all that it owns.

    ttl: seconds that it is kept when it has finished. token, leased_until: of its lease.
    abandoned_at: when it is canceled unless somebody follows it by then. hook_at: when its webhook
    is due; hook_held_until: nobody else calls it before.
    """

    job: Job
    inputs: bytes | None
    attached: bool
    stream: Stream
    ttl: float
    artifacts: dict[str, Kept] = field(default_factory=dict)
    token: str | None = None
    leased_until: float = 0.0
    watchers: int = 0
    abandoned_at: float | None = None
    expires: float | None = None
    hook_at: float | None = None
    hook_held_until: float = 0.0
    hook_attempts: int = 0

    def change(self, **fields: Any) -> None:
        """Change fields of the job."""
        self.job = replace(self.job, **fields)

    def may_become(self, status: Status) -> bool:
        """Whether the job may move to a status."""
        return status in TRANSITIONS[self.job.status]

    def overdue(self, now: float) -> bool:
        """Whether the job's deadline has passed."""
        return self.job.deadline is not None and self.job.deadline <= now

    def event(self, kind: str, data: dict[str, Any], now: float) -> None:
        """Append an event."""
        self.stream.append(kind, json.dumps(data), now)


class Memory:
    """The jobs of one process; both sides work on it in turns."""

    def __init__(self) -> None:
        self.jobs: dict[str, Entry] = {}  # in the order of their submission
        self.queues: dict[tuple[str, str], Queue] = defaultdict(list)  # by priority and digest
        self.unfinished: dict[str, Entry] = {}
        self.hooks: dict[str, Entry] = {}
        self.requests: dict[tuple[str, ...], tuple[str, str, float]] = {}
        """Job, fingerprint and expiry of the requests that are to be carried out only once."""
        self.counts = Counter[tuple[str, ...]]()  # of what ever happened
        self.models: dict[str, dict[str, Any]] = {}
        self.beats: dict[str, tuple[float, Beat]] = {}  # by worker: until when, and what it said
        self.secret = secrets.token_bytes(32)
        self.next_reap = 0.0
        self._expiring: list[tuple[float, str]] = []  # a heap
        self._lock = threading.RLock()
        self._clock = 0.0

    @contextmanager
    def turn(self) -> Iterator[float]:
        """Have the memory to oneself; gives the time, in seconds, later than any turn before."""
        with self._lock:
            self._clock = max(round(time.time(), 6), round(self._clock + 1e-6, 6))
            self._forget_expired()
            yield self._clock

    def _forget_expired(self) -> None:
        while self._expiring and self._expiring[0][0] <= self._clock:
            _, job_id = heapq.heappop(self._expiring)
            self.jobs.pop(job_id, None)
            self.hooks.pop(job_id, None)
        for name, (*_, expires) in list(self.requests.items()):  # in the order of their coming
            if expires > self._clock:
                break
            del self.requests[name]

    # Moves; each is a part of a turn

    def enter_queue(self, entry: Entry) -> None:
        """Let a job wait, in the place that the time of its submission gives it."""
        assert entry.job.created is not None
        insort(self.queue_of(entry.job), (entry.job.created, entry.job.id))

    def leave_queue(self, entry: Entry) -> None:
        """Let a job wait no more, if it does."""
        place = (entry.job.created, entry.job.id)
        if place in (queue := self.queue_of(entry.job)):
            queue.remove(place)

    def queue_of(self, job: Job) -> Queue:
        """The queue that a job waits in, whenever it waits."""
        return self.queues[job.priority, job.digest]

    def finish(self, entry: Entry, status: Status, data: str, now: float, **fields: Any) -> None:
        """End a job: status, the one terminal event, and a lifetime for all that it owns."""
        self.forget(entry)
        self.counts["ended", entry.job.operation, entry.job.model, status.value] += 1
        last = entry.stream.append(status, data, now)
        entry.change(status=status, finished=now, last_event=last.id, **fields)
        entry.inputs = None
        entry.expires = now + entry.ttl
        heapq.heappush(self._expiring, (entry.expires, entry.job.id))
        if entry.job.webhook:
            entry.hook_at = now
            self.hooks[entry.job.id] = entry

    def finish_canceled(self, entry: Entry, reason: str, now: float) -> None:
        """End a job because somebody asked, or because its deadline has passed."""
        late = reason == "deadline" and entry.job.status is Status.QUEUED
        status = Status.ABORTED if late else Status.CANCELED
        data = json.dumps({"reason": reason})
        self.finish(entry, status, data, now, cancel_reason=reason)

    def ask_to_stop(self, entry: Entry, reason: str) -> None:
        """Ask the owner of a running job to stop; the first reason stands."""
        entry.abandoned_at = None
        entry.change(cancel_reason=entry.job.cancel_reason or reason)

    def cancel(self, entry: Entry, reason: str, now: float) -> None:
        """End a queued job, ask for the end of a running one, leave a finished one alone."""
        if entry.job.status is Status.RUNNING:
            self.ask_to_stop(entry, reason)
        elif entry.may_become(Status.CANCELED):
            self.finish_canceled(entry, reason, now)

    def requeue(self, entry: Entry, attempt: int, reason: str, now: float) -> None:
        """Put a running job back where it stood, for whichever worker claims it next."""
        entry.token = None
        entry.change(status=Status.QUEUED, attempt=attempt)
        self.enter_queue(entry)
        entry.event("retrying", {"attempt": attempt, "reason": reason}, now)

    def forget(self, entry: Entry) -> None:
        """Take a job out of everything that unfinished jobs are in."""
        self.leave_queue(entry)
        self.unfinished.pop(entry.job.id, None)
        entry.abandoned_at = None
        entry.watchers = 0

    def delete(self, entry: Entry) -> None:
        """Remove a job and all that it owns."""
        self.forget(entry)
        self.hooks.pop(entry.job.id, None)
        del self.jobs[entry.job.id]
        entry.stream.rouse()
