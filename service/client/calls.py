"""The API's calls as data: a method, a path, and what goes along. Nothing is sent here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from service.client.errors import InvalidInput
from service.client.job import Job

JobOrId = Job | str


@dataclass(frozen=True)
class Call:
    """One HTTP request; `arguments` are httpx's: params, headers, json, files."""

    method: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def job(which: JobOrId) -> Call:
    """A job's state."""
    return Call("GET", _job_path(which))


def jobs(status: str | None, limit: int | None, cursor: str | None) -> Call:
    """A page of jobs."""
    given = {"status": status, "limit": limit, "cursor": cursor}
    params = {name: value for name, value in given.items() if value is not None}
    return Call("GET", "/jobs", {"params": params})


def cancel(which: JobOrId) -> Call:
    """A job's cancellation."""
    return Call("POST", _job_path(which) + "/cancel")


def delete(which: JobOrId) -> Call:
    """A job's removal, with its artifacts."""
    return Call("DELETE", _job_path(which))


def artifact(which: JobOrId, name: str) -> Call:
    """One file of a job."""
    return Call("GET", f"{_job_path(which)}/artifacts/{quote(name, safe='')}")


def events(which: JobOrId, after: str | None) -> Call:
    """A job's stream of events, from the start or from behind the event `after`."""
    resume = {"Last-Event-ID": after} if after else {}
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"} | resume
    return Call("GET", _job_path(which) + "/events", {"headers": headers})


def models() -> Call:
    """Every model's card."""
    return Call("GET", "/models")


def model(name: str) -> Call:
    """One model's card."""
    return Call("GET", f"/models/{quote(name, safe='')}")


def ready() -> Call:
    """Whether the service can serve."""
    return Call("GET", "/readyz")


def _job_path(which: JobOrId) -> str:
    job_id = which.id if isinstance(which, Job) else which
    if not job_id:
        raise InvalidInput("job: given no id; give a Job or the id of one")
    return f"/jobs/{quote(job_id, safe='')}"
