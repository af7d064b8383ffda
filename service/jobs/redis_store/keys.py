"""Every Redis key of the service, in one place."""

PREFIX = "fokker:"


RUNNING = PREFIX + "running"
"""Sorted set: ids of the running jobs, scored by when their lease ends (Redis's seconds)."""

CANCELED = PREFIX + "canceled"
"""Hash: ids of the running jobs that must stop, to why: `requested`, `deadline`, `abandoned`."""

DEADLINES = PREFIX + "deadlines"
"""Sorted set: ids of the unfinished jobs that have a deadline, scored by it (Redis's seconds)."""

TOTALS = PREFIX + "totals"
"""Hash of sums: `jobs` that wait; row-calls (rows × network calls) that wait, by the key of their
queue; that run, by `running(digest)`; that an owner has unfinished, by `owner:` and its name."""

WATCHERS = PREFIX + "watchers"
"""Hash: ids of the unfinished jobs to the number of those who follow their events."""

ABANDONED = PREFIX + "abandoned"
"""Sorted set: ids of the jobs that are canceled unless somebody follows them by then."""

WEBHOOKS = PREFIX + "webhooks"
"""Sorted set: ids of the finished jobs whose webhook is due then (Redis's seconds)."""

COUNTS = PREFIX + "counts"
"""Hash of what ever happened, as JSON `["ended", operation, model, status]`, to how often."""

SECRET = PREFIX + "secret"
"""Bytes that sign URLs, unless a setting gives them."""

MODELS = PREFIX + "models"
"""Hash: model name to its card as JSON. It outlives the workers that announced it."""

WORKERS = PREFIX + "workers"
"""Set: ids of the workers that announced themselves, alive or not."""

REAPER = PREFIX + "reaper"
"""The reaper's lock."""

ARTIFACT = "artifact:"
"""Prefix, in a job's hash, of the fields that hold the media type of an artifact."""

FILE = "file:"
"""Prefix, in a job's hash, of the fields that hold the path of an artifact that is in a file."""


def job(job_id: str) -> str:
    """Hash: the job itself."""
    return f"{PREFIX}job:{job_id}"


def events(job_id: str) -> str:
    """Stream: the job's progress."""
    return f"{job(job_id)}:events"


def inputs(job_id: str) -> str:
    """Bytes: the job's packed arrays."""
    return f"{job(job_id)}:inputs"


def previews(job_id: str) -> str:
    """List: size and event id of the job's previews that its stream still has, oldest first."""
    return f"{job(job_id)}:previews"


def artifact(job_id: str, name: str) -> str:
    """Bytes: one artifact of the job."""
    return f"{job(job_id)}:{ARTIFACT}{name}"


def queue(priority: str, digest: str) -> str:
    """Sorted set: ids of the queued jobs of a priority and a checkpoint, scored by when they were
    first submitted (Redis's seconds), so that a job which comes back keeps its place."""
    return f"{PREFIX}queued:{priority}:{digest}"


def parts_of_queue(name: str) -> tuple[str, str] | None:
    """The priority and the checkpoint of a queue's key; None for another name."""
    priority_and_digest = name.removeprefix(f"{PREFIX}queued:")
    if priority_and_digest == name:
        return None
    priority, _, digest = priority_and_digest.partition(":")
    return priority, digest


def webhook(job_id: str) -> str:
    """Held by the process that calls the job's webhook."""
    return f"{job(job_id)}:webhook"


def running(digest: str) -> str:
    """The total of the row-calls that run on a checkpoint (a field of TOTALS, no key)."""
    return f"running:{digest}"


def digest_of_running(name: str) -> str | None:
    """The checkpoint of such a total; None for another name."""
    digest = name.removeprefix("running:")
    return None if digest == name else digest


def owned(owner: str) -> str:
    """Sorted set: ids of an owner's jobs, scored by when they were submitted."""
    return f"{PREFIX}owned:{owner}"


def request(name: str) -> str:
    """Hash: the job and the fingerprint of a request that is to be carried out only once."""
    return f"{PREFIX}request:{name}"


def claim(token: str) -> str:
    """Id of the job that was claimed by this token; it lives as long as the lease."""
    return f"{PREFIX}claim:{token}"


def worker(worker_id: str) -> str:
    """A live worker's `service.jobs.beat.Beat`; it expires with the worker."""
    return f"{PREFIX}worker:{worker_id}"


SHARED = (RUNNING, CANCELED, DEADLINES, TOTALS, WATCHERS, ABANDONED, WEBHOOKS, COUNTS)
"""The keys that every script gets, in the order in which the prelude names them."""
