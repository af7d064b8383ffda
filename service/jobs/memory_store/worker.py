"""The worker's side of the job store in memory."""

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from typing_extensions import override

from service.jobs.artifacts import Kept
from service.jobs.beat import Beat
from service.jobs.job import Status
from service.jobs.lease import LEASE_EXPIRED, WORKER_LOST, Claim, End, Held, WorkerStore
from service.jobs.memory_store.memory import Entry, Memory
from service.jobs.parameters import PRIORITIES, Priority
from service.settings import Settings


class MemoryWorkerStore(WorkerStore):
    """A worker's jobs in a `Memory`."""

    def __init__(
        self, settings: Settings, worker_id: str, hint: Callable[[str], None], memory: Memory
    ) -> None:
        super().__init__(settings, worker_id, hint)
        self._memory = memory

    @override
    def close(self) -> None:
        pass

    @override
    def claim(self, digests: Collection[str], rooms: Mapping[Priority, int]) -> Claim | None:
        with self._memory.turn() as now:
            for priority in PRIORITIES:
                if rooms.get(priority, 0) <= 0:
                    continue
                heads = (self._first_of(priority, digest, now) for digest in digests)
                first = min((head for head in heads if head), default=None)
                if first is not None:
                    return self._begin(self._memory.jobs[first[1]], now)
        return None

    def _first_of(self, priority: Priority, digest: str, now: float) -> tuple[float, str] | None:
        """When the first job of a queue came, and its id; those that are late end here."""
        queue = self._memory.queues[priority, digest]
        while queue and (entry := self._memory.jobs[queue[0][1]]).overdue(now):
            self._memory.finish_canceled(entry, "deadline", now)
        return queue[0] if queue else None

    def _begin(self, entry: Entry, now: float) -> Claim:
        self._memory.leave_queue(entry)
        entry.token = secrets.token_hex(16)
        entry.leased_until = now + self.settings.lease
        entry.change(status=Status.RUNNING, started=now)
        entry.event("started", {"worker": self.worker_id, "attempt": entry.job.attempt}, now)
        return Claim(self, entry.job, entry.token)

    @override
    def canceled(self) -> dict[str, str]:
        with self._memory.turn():
            running = (entry.job for entry in self._memory.unfinished.values())
            return {job.id: job.cancel_reason for job in running if job.cancel_reason is not None}

    @override
    def renew(self, claims: Sequence[Claim]) -> list[Held]:
        with self._memory.turn() as now:
            return [self._renew(claim, now) for claim in claims]

    def _renew(self, claim: Claim, now: float) -> Held:
        if (entry := self._held(claim)) is None:
            return self._refusal(claim)
        entry.leased_until = now + self.settings.lease
        return "held"

    @override
    def reap(self) -> int:
        with self._memory.turn() as now:
            if now < self._memory.next_reap:
                return 0
            self._memory.next_reap = now + self.settings.lease / 4
            lost = [
                entry
                for entry in self._memory.unfinished.values()
                if entry.job.status is Status.RUNNING and entry.leased_until <= now
            ]
            requeued = [entry.job.id for entry in lost if self._reap_one(entry, now)]
        for job_id in requeued:
            self.hint(job_id)
        return len(requeued)

    def _reap_one(self, entry: Entry, now: float) -> bool:
        """Settle a running job whose lease ended; whether it was requeued."""
        job, memory = entry.job, self._memory
        outcome = "queued"
        if job.cancel_reason is not None:
            outcome = "canceled"
            memory.finish_canceled(entry, job.cancel_reason, now)
        elif job.attempt >= self.settings.attempts:
            outcome = "failed"
            data = json.dumps({"error": LEASE_EXPIRED})
            memory.finish(entry, Status.FAILED, data, now, error=LEASE_EXPIRED)
        else:
            memory.requeue(entry, job.attempt + 1, WORKER_LOST, now)
        memory.counts["expired", outcome] += 1
        return outcome == "queued"

    @override
    def inputs(self, job_id: str) -> bytes | None:
        with self._memory.turn():
            entry = self._memory.jobs.get(job_id)
            return None if entry is None else entry.inputs

    @override
    def announce(
        self,
        cards: Sequence[Mapping[str, Any]],
        ttl: float,
        rates: Mapping[str, float] | None = None,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        names = [card["name"] for card in cards]
        beat = Beat(models=names, rates=dict(rates or {}), failed=dict(failed or {}))
        with self._memory.turn() as now:
            self._memory.models |= {card["name"]: dict(card) for card in cards}
            self._memory.beats[self.worker_id] = now + ttl, beat

    @override
    def withdraw(self) -> None:
        with self._memory.turn():
            self._memory.beats.pop(self.worker_id, None)

    @override
    def look_at_memory(self) -> None:
        pass  # a process has no measure of its own

    @override
    def write_event(self, claim: Claim, kind: str, data: str) -> Held:
        with self._memory.turn() as now:
            if (entry := self._held(claim)) is None:
                return self._refusal(claim)
            if kind == "preview":
                bounds = self.settings.max_previews, self.settings.preview_bytes
                entry.stream.append_preview(data, now, *bounds)
            else:
                entry.stream.append(kind, data, now)
            return "held"

    @override
    def write_artifact(self, claim: Claim, name: str, media_type: str, kept: Kept) -> Held:
        with self._memory.turn():
            if (entry := self._held(claim)) is None:
                return self._refusal(claim)
            entry.artifacts[name] = kept
            entry.change(artifacts=entry.job.artifacts | {name: media_type})
            return "held"

    @override
    def finish(self, claim: Claim, end: End) -> Held:
        # As it is kept: whoever reads it must not change it, and it must be JSON.
        fields = {end.field: end.said if isinstance(end.said, str) else json.loads(end.stored)}
        with self._memory.turn() as now:
            entry = self._memory.jobs.get(claim.job.id)
            if entry is None or entry.token != claim.token:
                return self._refusal(claim)
            if entry.job.status is end.status:
                return "held"  # said again
            if not entry.may_become(end.status):
                return self._refusal(claim)
            self._memory.finish(entry, end.status, end.data, now, **fields)
            return "held"

    @override
    def hand_back(self, claim: Claim, reason: str) -> Held:
        with self._memory.turn() as now:
            if (entry := self._held(claim)) is None:
                return self._refusal(claim)
            if entry.job.cancel_reason is not None:
                self._memory.finish_canceled(entry, entry.job.cancel_reason, now)
            else:
                self._memory.requeue(entry, entry.job.attempt, reason, now)
                self._memory.counts["released",] += 1
            return "held"

    def _held(self, claim: Claim) -> Entry | None:
        """The job, if the claim still owns it: the fence in front of every write."""
        entry = self._memory.unfinished.get(claim.job.id)
        owned = entry is not None and entry.token == claim.token
        return entry if owned else None

    def _refusal(self, claim: Claim) -> Held:
        """What a claim is told that may not write."""
        return "lost" if claim.job.id in self._memory.jobs else "deleted"
