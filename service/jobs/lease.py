"""The worker's side of the job store, as a port: claim what is next, own it, hand it back.

Which job is next is for the store to say: the queues' order, not the order of hints, is that of
work. A job is owned by a lease: a token, for as long as it is renewed. Every write is fenced by the
token, so a worker that lost its lease changes nothing (`LeaseLost`). `redis_store` and
`memory_store` implement the port.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from service.jobs.artifacts import Kept, open_artifacts
from service.jobs.errors import ArtifactsError, StoreError
from service.jobs.job import Job, Status
from service.jobs.parameters import Priority
from service.settings import Settings

Held = Literal["held", "lost", "deleted"]
"""Whether a claim owns its job: if not, another worker may, or its owner has deleted it."""

WORKER_LOST = "the worker stopped answering"
"""Why a job whose lease ran out is tried again."""

LEASE_EXPIRED: dict[str, Any] = {
    "type": "about:blank",
    "title": "Worker lost",
    "detail": "the worker stopped answering while it ran this job, on the last attempt allowed; "
    "submit the request again",
}


class LeaseLost(Exception):  # noqa: N818 - it is news, not a mistake
    """The job is no longer this worker's: stop working on it, and write nothing more."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the lease on job {job_id} is lost; another worker may own it now")


class JobDeleted(LeaseLost):
    """The job is no more: its owner has deleted it while it ran."""

    def __init__(self, job_id: str) -> None:
        Exception.__init__(self, f"job {job_id} was deleted while it ran")


@dataclass(frozen=True)
class End:
    """How a job ends: its status, the field of the job that says more, and what it says."""

    status: Status
    field: Literal["result", "error", "cancel_reason"]
    said: Mapping[str, Any] | str

    @property
    def stored(self) -> str:
        """The field as text: a document as JSON."""
        return self.said if isinstance(self.said, str) else json.dumps(self.said, allow_nan=False)

    @property
    def data(self) -> str:
        """The data of the terminal event, as JSON."""
        name = "reason" if self.field == "cancel_reason" else self.field
        return json.dumps({name: self.said}, allow_nan=False)


class WorkerStore(ABC):
    """What one worker does with jobs; safe between threads.

    Every method raises `StoreError` while the store is away or full.
    """

    def __init__(self, settings: Settings, worker_id: str, hint: Callable[[str], None]) -> None:
        """`hint(job_id)` says to the workers that a job waits, as `hints.Hinter.hint`."""
        self.worker_id = worker_id
        self.settings = settings
        self.hint = hint
        self.artifacts = open_artifacts(settings)
        self.short = False
        """Whether the store was short of memory at the last `look_at_memory`."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the store holds of this process."""

    @abstractmethod
    def claim(self, digests: Collection[str], rooms: Mapping[Priority, int]) -> "Claim | None":
        """Own the first queued job that this worker can run; None if there is none.

        First is interactive before batch, then by time of submission, among the jobs of the
        checkpoints `digests` whose priority has room for at least one row: a job larger than the
        room is given all the same, or it would wait for ever. Jobs past their deadline end here.
        Where the answer to a claim was lost, the next one gives that job.
        """

    @abstractmethod
    def canceled(self) -> dict[str, str]:
        """The ids of all running jobs that must stop, and why: "requested", "deadline" …"""

    @abstractmethod
    def renew(self, claims: Sequence["Claim"]) -> list[Held]:
        """Prolong leases, all in one round trip; whether each is held."""

    @abstractmethod
    def reap(self) -> int:
        """Settle running jobs whose lease ended; how many were requeued.

        To be called every quarter of a lease by every worker: one of them is let through.
        """

    @abstractmethod
    def inputs(self, job_id: str) -> bytes | None:
        """The packed arrays of a job (see `arrays`), None if it has none."""

    # Who serves what

    @abstractmethod
    def announce(
        self,
        cards: Sequence[Mapping[str, Any]],
        ttl: float,
        rates: Mapping[str, float] | None = None,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """Enter models in the registry, and be alive for `ttl` more seconds.

        rates: row-calls a second by digest, where they are known. failed: why models cannot be
        served, by name.
        """

    @abstractmethod
    def withdraw(self) -> None:
        """Be alive no more; the models stay in the registry."""

    @abstractmethod
    def look_at_memory(self) -> None:
        """Find out whether there is memory for previews."""

    # What a claim writes; nothing is written unless the answer is "held".

    @abstractmethod
    def write_event(self, claim: "Claim", kind: str, data: str) -> Held:
        """Append an event, `data` being JSON; of previews only the last few stay."""

    @abstractmethod
    def write_artifact(self, claim: "Claim", name: str, media_type: str, kept: Kept) -> Held:
        """Enter an artifact, replacing one of that name."""

    @abstractmethod
    def finish(self, claim: "Claim", end: End) -> Held:
        """End the job; once more is no mistake."""

    @abstractmethod
    def hand_back(self, claim: "Claim", reason: str) -> Held:
        """Put the job back where it stood in its queue, at the same attempt."""


class Claim:
    """A job owned by this worker, until it ends, is released, or its lease runs out."""

    def __init__(self, store: WorkerStore, job: Job, token: str) -> None:
        self.job = job
        self.token = token
        self._store = store
        self._doubtful: dict[str, tuple[bytes, Kept]] = {}  # artifacts that may be entered or not

    def inputs(self) -> bytes | None:
        """The job's packed arrays (see `arrays`), None if it has none."""
        return self._store.inputs(self.job.id)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Append a `step` or `preview` event. Raises `LeaseLost`.

        Of a job's previews the stream keeps the last few. While the store is short of memory, and
        where one is larger than all may be together, a preview is dropped.
        """
        text, most = json.dumps(data), self._store.settings.preview_bytes
        if kind == "preview" and (self._store.short or len(text) > most):
            return
        self._fence(self._store.write_event(self, kind, text))

    def put_artifact(self, name: str, media_type: str, data: bytes) -> None:
        """Store an artifact, replacing one of that name. Raises `LeaseLost`."""
        artifacts = self._store.artifacts
        before, kept = self._doubtful.pop(name, (None, b""))
        if before != data:
            kept = artifacts.put(self.job.id, name, data)
        try:
            held = self._store.write_artifact(self, name, media_type, kept)
        except StoreError:
            self._doubtful[name] = data, kept  # to be entered when this is tried again
            raise
        if held != "held" and before is None:
            # Should that fail, the file goes with those of its job.
            with suppress(ArtifactsError):
                artifacts.drop(kept)
        self._fence(held)

    def succeed(self, result: Mapping[str, Any]) -> None:
        """End the job with its result. Raises `LeaseLost`."""
        self._fence(self._store.finish(self, End(Status.SUCCEEDED, "result", result)))

    def fail(self, error: Mapping[str, Any]) -> None:
        """End the job with an error: type, title, detail. Raises `LeaseLost`."""
        self._fence(self._store.finish(self, End(Status.FAILED, "error", error)))

    def cancel(self, reason: str) -> None:
        """End the job as canceled: "requested", "deadline" or "abandoned". Raises `LeaseLost`."""
        self._fence(self._store.finish(self, End(Status.CANCELED, "cancel_reason", reason)))

    def release(self, reason: str = "the worker is shutting down") -> None:
        """Hand the job back to the queue, at the same attempt. Raises `LeaseLost`."""
        self._fence(self._store.hand_back(self, reason))
        self._store.hint(self.job.id)

    def _fence(self, held: Held) -> None:
        if held != "held":
            raise (JobDeleted if held == "deleted" else LeaseLost)(self.job.id)
