"""What a job is, and which moves between its statuses are legal."""

import re
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from service.jobs.parameters import Priority


class Status(StrEnum):
    """Where a job stands; `aborted` is a job whose deadline passed before it started."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    ABORTED = "aborted"

    @property
    def finished(self) -> bool:
        """Whether this status is the last one of its job."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELED, Status.ABORTED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
    Status.ABORTED: frozenset(),
}
"""The legal moves; every store checks against this very table."""

FINISHED = frozenset(status for status in Status if status.finished)
"""The statuses that end a job; each is also the type of the event that ends its stream."""

JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def new_job_id() -> str:
    """An id that cannot be guessed (144 bits), is safe in a URL and never starts with `-`."""
    while (job_id := secrets.token_urlsafe(18)).startswith("-"):
        pass
    return job_id


def is_job_id(text: str) -> bool:
    """Whether a job could have this id; ids are parts of keys, so nobody chooses them freely."""
    return JOB_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Job:
    """One request and what became of it. Times are seconds of the store's clock."""

    id: str
    operation: str
    model: str
    digest: str  # of the checkpoint that must answer, also on a retry
    parameters: dict[str, Any]
    priority: Priority = "interactive"
    rows: int = 1  # of a network's batch, that it occupies
    calls: int = 1  # network calls of one row, about
    owner: str = ""
    status: Status = Status.QUEUED
    attempt: int = 1
    created: float | None = None
    started: float | None = None
    finished: float | None = None
    error: dict[str, Any] | None = None  # type, title, detail
    result: dict[str, Any] | None = None
    deadline: float | None = None  # aborted or canceled then
    cancel_reason: str | None = None  # requested, deadline or abandoned: it is to stop, or has
    webhook: str | None = None  # URL that is told of the job's end
    artifacts: dict[str, str] = field(default_factory=dict)  # name → media type
    last_event: str | None = None  # id of the terminal event

    @property
    def cancel_requested(self) -> bool:
        """Whether the job has stopped before its end, or is to."""
        return self.cancel_reason is not None

    @property
    def cost(self) -> int:
        """Row-calls: rows times network calls, about what the job takes of a device."""
        return self.rows * self.calls
