"""A job as a Redis hash."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from service.jobs.job import Job, Status
from service.jobs.parameters import Priority
from service.jobs.redis_store import keys


def hash_of(job: Job) -> dict[str, str]:
    """The fields that a new job is stored with; what is None is left out."""
    fields = {
        "id": job.id,
        "operation": job.operation,
        "model": job.model,
        "digest": job.digest,
        "parameters": json.dumps(job.parameters),
        "priority": job.priority,
        "rows": str(job.rows),
        "calls": str(job.calls),
        "owner": job.owner,
        "status": job.status.value,
        "attempt": str(job.attempt),
    }
    for name in ("created", "started", "finished", "deadline"):
        if (time := getattr(job, name)) is not None:
            fields[name] = f"{time:.6f}"
    for name in ("error", "result"):
        if (value := getattr(job, name)) is not None:
            fields[name] = json.dumps(value)
    for name in ("cancel_reason", "webhook", "last_event"):
        if (value := getattr(job, name)) is not None:
            fields[name] = value
    return fields | {keys.ARTIFACT + name: kind for name, kind in job.artifacts.items()}


def job_of(stored: Mapping[bytes, bytes]) -> Job:
    """The job of a Redis hash, as `hash_of` and the scripts leave it."""
    text = {name.decode(): value.decode() for name, value in stored.items()}

    def time(name: str) -> float | None:
        return float(text[name]) if name in text else None

    def document(name: str) -> dict[str, Any] | None:
        return json.loads(text[name]) if name in text else None

    return Job(
        id=text["id"],
        operation=text["operation"],
        model=text["model"],
        digest=text["digest"],
        parameters=json.loads(text["parameters"]),
        priority=cast(Priority, text["priority"]),
        rows=int(text["rows"]),
        calls=int(text["calls"]),
        owner=text["owner"],
        status=Status(text["status"]),
        attempt=int(text["attempt"]),
        created=time("created"),
        started=time("started"),
        finished=time("finished"),
        error=document("error"),
        result=document("result"),
        deadline=time("deadline"),
        cancel_reason=text.get("cancel_reason"),
        webhook=text.get("webhook"),
        artifacts={
            name.removeprefix(keys.ARTIFACT): kind
            for name, kind in text.items()
            if name.startswith(keys.ARTIFACT)
        },
        last_event=text.get("last_event"),
    )


def job_of_flat(flat: Sequence[bytes]) -> Job:
    """The job of what a script's HGETALL gives."""
    return job_of(dict(zip(flat[::2], flat[1::2], strict=True)))
