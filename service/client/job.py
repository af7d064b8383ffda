"""A job as the service last described it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.jobs.job import FINISHED


@dataclass(frozen=True)
class Job:
    """A snapshot of a job; `document` is all that the service said, as JSON values.

    Statuses are `queued`, `running` and, when it has finished, `succeeded`, `failed`, `canceled`
    or `aborted`. Whatever takes a job takes its id as well.
    """

    id: str
    operation: str
    model: str
    status: str
    document: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Job":
        """The job that a document of the API describes."""
        named = {name: str(document[name]) for name in ("id", "operation", "model", "status")}
        return cls(**named, document=document)

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, whichever."""
        return self.status in FINISHED

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The request with every default filled in."""
        return dict(self.document["parameters"])

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it ended with, None unless it succeeded."""
        result: Mapping[str, Any] | None = self.document["result"]
        return result

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Why it failed (`title`, `detail`), None unless it did."""
        error: Mapping[str, Any] | None = self.document["error"]
        return error

    @property
    def artifacts(self) -> list[str]:
        """The names of its files."""
        return list(self.document["links"]["artifacts"])


@dataclass(frozen=True)
class Page:
    """Some of the jobs, and the cursor of those that follow (None: these were the last)."""

    jobs: tuple[Job, ...]
    next: str | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Page":
        """The page that a document of the API holds."""
        return cls(tuple(Job.of(job) for job in document["jobs"]), document["next"])
