"""Every Redis key of the service, in one place."""

PREFIX = "fokker:"


RUNNING = PREFIX + "running"
"""Sorted set: ids of the running jobs, scored by when their lease ends (Redis's seconds)."""

CANCELED = PREFIX + "canceled"
"""Hash: ids of the running jobs that must stop, to the reason: `requested` or `deadline`."""

DEADLINES = PREFIX + "deadlines"
"""Sorted set: ids of the unfinished jobs that have a deadline, scored by it (Redis's seconds)."""

MODELS = PREFIX + "models"
"""Hash: model name to its card as JSON. It outlives the workers that announced it."""

WORKERS = PREFIX + "workers"
"""Set: ids of the workers that announced themselves, alive or not."""

REAPER = PREFIX + "reaper"
"""The reaper's lock."""

HINTS = "fokker"
"""List: Celery's queue of hints, hence without a prefix."""

ARTIFACT = "artifact:"
"""Prefix, in a job's hash, of the fields that hold the media type of an artifact."""


def job(job_id: str) -> str:
    """Hash: the job itself."""
    return f"{PREFIX}job:{job_id}"


def events(job_id: str) -> str:
    """Stream: the job's progress."""
    return f"{job(job_id)}:events"


def inputs(job_id: str) -> str:
    """Bytes: the job's packed arrays."""
    return f"{job(job_id)}:inputs"


def artifact(job_id: str, name: str) -> str:
    """Bytes: one artifact of the job."""
    return f"{job(job_id)}:{ARTIFACT}{name}"


def queue(priority: str, digest: str) -> str:
    """Sorted set: ids of the queued jobs of a priority and a checkpoint, scored by when they were
    first submitted (Redis's seconds), so that a job which comes back keeps its place."""
    return f"{PREFIX}queued:{priority}:{digest}"


def claim(token: str) -> str:
    """Id of the job that was claimed by this token, for as long as one lease."""
    return f"{PREFIX}claim:{token}"


def worker(worker_id: str) -> str:
    """JSON list of the models that a live worker serves; it expires with the worker."""
    return f"{PREFIX}worker:{worker_id}"


SHARED = (RUNNING, CANCELED, DEADLINES)
"""The keys that every script gets first, in the order in which the prelude names them."""
