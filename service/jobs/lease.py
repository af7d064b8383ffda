"""The worker's side of the job store: claim what is next, own it through a lease, hand it back.

Which job is next is decided in Redis: the queues' order, not the order of hints, is that of work.

A lease is a token in the job's hash and the time it ends in an index. Every write runs in Redis
behind a check of the token, so a worker that lost its lease changes nothing (`LeaseLost`).
"""

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, cast

import redis
from redis.commands.core import Script

from service.jobs import keys, scripts
from service.jobs.beat import Beat, memory_low
from service.jobs.job import Job, Status
from service.jobs.parameters import Priority
from service.settings import Settings

Held = Literal["held", "lost"]

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


class WorkerStore:
    """What one worker does with jobs, over a blocking Redis client; safe between threads."""

    def __init__(self, settings: Settings, worker_id: str, hint: Callable[[str], None]) -> None:
        """`hint(job_id)` says to the workers that a job waits, as `hints.Hinter.hint`."""
        self.worker_id = worker_id
        self.settings = settings
        self.hint = hint
        self._redis: redis.Redis = redis.Redis.from_url(settings.require_redis())
        self._scripts: dict[str, Script] = {}
        self.short = False
        """Whether Redis was short of memory at the last `look_at_memory`."""
        self._unanswered: list[str] = []  # tokens of claims that may have been granted

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def run(self, script: str, job_id: str, data: bytes | None = None, /, **named: Any) -> Any:
        """Run one of `scripts` on a job."""
        return self._run(script, keys.SHARED, data, id=job_id, **named)

    def _run(
        self, script: str, names: Sequence[str], data: bytes | None = None, /, **named: Any
    ) -> Any:
        named |= {"ttl": self.settings.job_ttl, "stream_length": self.settings.stream_length}
        try:
            return self._script(script)(names, scripts.arguments(data, **named))
        except redis.ResponseError as error:
            if scripts.out_of_memory(error):
                raise redis.OutOfMemoryError(*error.args) from error
            raise

    def _script(self, name: str) -> Script:
        """Registered once: it hashes the script's text."""
        if name not in self._scripts:
            self._scripts[name] = self._redis.register_script(scripts.source(name))
        return self._scripts[name]

    def claim(self, digests: Collection[str], rooms: Mapping[Priority, int]) -> "Claim | None":
        """Own the first queued job that this worker can run; None if there is none.

        First is interactive before batch, then by time of submission, among the jobs of the
        checkpoints `digests` whose priority has room for at least one row: a job larger than the
        room is given all the same, or it would wait for ever. Jobs past their deadline end here.
        Where the answer to a claim was lost, the next one gives that job.
        """
        try:
            token = self._unanswered.pop()
        except IndexError:
            token = secrets.token_hex(16)
        try:
            flat = self._run(
                "claim",
                keys.SHARED,
                token=token,
                lease=self.settings.lease,
                worker=self.worker_id,
                digests=list(digests),
                rooms=dict(rooms),
            )
        except redis.RedisError:
            self._unanswered.append(token)
            raise
        if flat is None:
            return None
        return Claim(self, Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True))), token)

    def canceled(self) -> dict[str, str]:
        """The ids of all running jobs that must stop, and why: "requested" or "deadline"."""
        asked = cast(dict[bytes, bytes], self._redis.hgetall(keys.CANCELED))
        return {job_id.decode(): reason.decode() for job_id, reason in asked.items()}

    def renew(self, claims: Sequence["Claim"]) -> list[Held]:
        """Prolong leases, all in one round trip; whether each is held."""
        script = self._script("renew")
        try:
            return self._renew_by(script.sha, claims)
        except redis.exceptions.NoScriptError:  # of a server that has not seen it yet
            return self._renew_by(self._redis.script_load(script.script), claims)

    def _renew_by(self, sha: str, claims: Sequence["Claim"]) -> list[Held]:
        with self._redis.pipeline(transaction=False) as batch:
            for claim in claims:
                said = scripts.arguments(
                    id=claim.job.id, token=claim.token, lease=self.settings.lease
                )
                batch.evalsha(sha, len(keys.SHARED), *keys.SHARED, *said)
            return [cast(Held, answer.decode()) for answer in batch.execute()]

    def inputs(self, job_id: str) -> bytes | None:
        """The packed arrays of a job (see `arrays`), None if it has none."""
        return cast(bytes | None, self._redis.get(keys.inputs(job_id)))

    def announce(
        self,
        cards: Sequence[Mapping[str, Any]],
        ttl: float,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Enter models in the registry, and be alive for `ttl` more seconds.

        rates: row-calls a second by digest, where they are known.
        """
        with self._redis.pipeline() as batch:
            for card in cards:
                batch.hset(keys.MODELS, card["name"], json.dumps(card))
            beat = Beat(models=[card["name"] for card in cards], rates=dict(rates or {}))
            batch.set(keys.worker(self.worker_id), beat.to_json(), px=int(ttl * 1000))
            batch.sadd(keys.WORKERS, self.worker_id)
            batch.execute()

    def look_at_memory(self) -> None:
        """Find out whether there is memory for previews."""
        self.short = memory_low(self._redis.info("memory"))

    def withdraw(self) -> None:
        """Be alive no more; the models stay in the registry."""
        self._redis.delete(keys.worker(self.worker_id))
        self._redis.srem(keys.WORKERS, self.worker_id)

    def reap(self) -> int:
        """Settle running jobs whose lease ended; how many were requeued.

        To be called every quarter of a lease by every worker: a lock lets one of them through.
        Nothing is reaped for one lease after Redis started, since no owner could renew before.
        """
        lease = self.settings.lease
        if not self._redis.set(keys.REAPER, self.worker_id, nx=True, px=int(lease * 250) or 1):
            return 0
        if self._redis.info("server")["uptime_in_seconds"] < lease:
            return 0
        now = self._now()
        requeued = 0
        for raw in cast(list[bytes], self._redis.zrangebyscore(keys.RUNNING, "-inf", now)):
            requeued += self._reap_one(raw.decode())
        return requeued

    def _reap_one(self, job_id: str) -> int:
        outcome = self.run(
            "reap",
            job_id,
            attempts=self.settings.attempts,
            reason="the worker stopped answering",
            error=json.dumps(LEASE_EXPIRED),
            failed=json.dumps({"error": LEASE_EXPIRED}),
        )
        if outcome != b"queued":
            return 0
        self.hint(job_id)
        return 1

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1e6


class Claim:
    """A job owned by this worker, until it ends, is released, or its lease runs out."""

    def __init__(self, store: WorkerStore, job: Job, token: str) -> None:
        self.job = job
        self.token = token
        self._store = store

    def inputs(self) -> bytes | None:
        """The job's packed arrays (see `arrays`), None if it has none."""
        return self._store.inputs(self.job.id)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Append a `step` or `preview` event. Raises `LeaseLost`.

        Of a job's previews the stream keeps the last few. While Redis is short of memory, and where
        one is larger than all may be together, a preview is dropped.
        """
        text, settings = json.dumps(data), self._store.settings
        if kind == "preview" and (self._store.short or len(text) > settings.preview_bytes):
            return
        self._write(
            "event",
            type=kind,
            data=text,
            most_previews=settings.max_previews,
            preview_bytes=settings.preview_bytes,
        )

    def put_artifact(self, name: str, media_type: str, data: bytes) -> None:
        """Store an artifact, replacing one of that name. Raises `LeaseLost`."""
        self._write("artifact", data, name=name, media_type=media_type)

    def succeed(self, result: Mapping[str, Any]) -> None:
        """End the job with its result. Raises `LeaseLost`."""
        self._finish(Status.SUCCEEDED, "result", result)

    def fail(self, error: Mapping[str, Any]) -> None:
        """End the job with an error: type, title, detail. Raises `LeaseLost`."""
        self._finish(Status.FAILED, "error", error)

    def cancel(self, reason: str) -> None:
        """End the job as canceled: "requested" or "deadline". Raises `LeaseLost`."""
        data = json.dumps({"reason": reason})
        self._write(
            "finish", status=Status.CANCELED, field="cancel_reason", document=reason, data=data
        )

    def release(self, reason: str = "the worker is shutting down") -> None:
        """Hand the job back to the queue, at the same attempt. Raises `LeaseLost`."""
        self._write("release", reason=reason)
        self._store.hint(self.job.id)

    def _finish(self, status: Status, field: str, document: Mapping[str, Any]) -> None:
        self._write(
            "finish",
            status=status,
            field=field,
            document=json.dumps(document, allow_nan=False),
            data=json.dumps({field: document}, allow_nan=False),
        )

    def _write(self, script: str, data: bytes | None = None, /, **named: Any) -> None:
        if not self._store.run(script, self.job.id, data, token=self.token, **named):
            raise LeaseLost(self.job.id)
