"""The API's side of the job store, over an asyncio Redis client."""

import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ResponseError

from service.jobs import keys, scripts
from service.jobs.beat import Beat, memory_low
from service.jobs.job import FINISHED, Job, Status, is_job_id
from service.jobs.overview import Overview, look
from service.jobs.parameters import PRIORITIES
from service.settings import Settings

FROM_THE_START = "0-0"
BLOCK = 15.0  # seconds that one read of a stream may block
CONNECTIONS = 10_000  # at most, of a pool; every open stream holds one
READ = 100  # events that one read gives at most
ABANDONED_AFTER = 10.0  # seconds without a subscriber


def follows(event_id: str, other: str) -> bool:
    """Whether the stream id `event_id` comes after `other`; both are `milliseconds-sequence`."""

    def key(stream_id: str) -> tuple[int, int]:
        milliseconds, _, sequence = stream_id.partition("-")
        return int(milliseconds), int(sequence or 0)

    return key(event_id) > key(other)


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream: its id, its type and its data as JSON text.

    A `gap` is no entry: it stands where entries were removed before this reader came to them.
    """

    id: str
    type: str
    data: str

    @property
    def last(self) -> bool:
        """Whether this is the terminal event."""
        return self.type in FINISHED


GAP = "gap"


class RefusedError(Exception):
    """A job that was not stored, and why."""


@dataclass
class QueueFullError(RefusedError):
    """So many jobs wait already."""

    jobs: int


@dataclass
class QuotaError(RefusedError):
    """The owner has so many row-calls unfinished already."""

    cost: int


@dataclass
class OtherContentError(RefusedError):
    """The request's idempotency key was used before, for other content, by this job."""

    job_id: str


@dataclass(frozen=True)
class Once:
    """A request that is carried out once. key: its owner's. fingerprint: of its content."""

    key: str
    fingerprint: str


@dataclass(frozen=True)
class Place:
    """Where a queued job stands: jobs before it, and seconds until it is done; None: no telling."""

    position: int
    eta: float | None


@dataclass(frozen=True)
class Page:
    """Jobs of an owner, newest first; following: where the next page begins, None at the end."""

    jobs: list[Job]
    following: str | None


class JobStore:
    """Submit, read and cancel jobs. Every method raises redis's `RedisError` if it is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.require_redis()
        # One retry: a pooled connection may be stale after Redis came back.
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 1), max_connections=CONNECTIONS)
        # A blocking read outlives the usual socket timeout, so it has a client of its own.
        self._blocking = Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 1),
            socket_timeout=BLOCK + 5,
            max_connections=CONNECTIONS,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._blocking.aclose()

    async def ping(self) -> None:
        """Return if Redis answers."""
        await self._redis.ping()

    async def submit(
        self,
        job: Job,
        inputs: bytes | None = None,
        *,
        cancel_after: float | None = None,
        once: Once | None = None,
        attached: bool = False,
    ) -> Job:
        """Store a new job with its inputs and its `queued` event, at once or not at all.

        cancel_after: seconds until its deadline, if it is to have one. once: gives the job of an
        earlier request with the same key and content, if that has not expired. attached: the job is
        canceled when the last of its subscribers has left for a while.

        Raises `RefusedError`: a full queue, the owner's quota, a key with other content.
        """
        settings = self._settings
        what, found = await self._run(
            "submit",
            job.id,
            inputs,
            fields=job.to_hash(),
            cancel_after=cancel_after,
            attached=attached or None,
            idempotency=None if once is None else _named(once, job, settings.idempotency_ttl),
            most_jobs=settings.max_queued,
            most_cost=settings.max_owner_cost,
        )
        match what:
            case b"job":
                return _job_of(found)
            case b"queue full":
                raise QueueFullError(int(found))
            case b"quota":
                raise QuotaError(int(found))
            case _:
                raise OtherContentError(found.decode())

    async def get(self, job_id: str) -> Job | None:
        """The job, None if it never was or has expired."""
        if not is_job_id(job_id):
            return None
        stored = await cast(Any, self._redis.hgetall(keys.job(job_id)))
        return Job.from_hash(stored) if stored else None

    async def cancel(self, job_id: str, reason: str = "requested") -> Job | None:
        """End a queued job, ask for the end of a running one, leave a finished one unchanged."""
        await self._run("cancel", job_id, reason=reason)
        return await self.get(job_id)

    async def delete(self, job_id: str) -> None:
        """Remove a job with its events and artifacts; one that runs is lost to its worker."""
        await self._run("delete", job_id)

    async def page(
        self, owner: str, limit: int, after: str | None = None, status: Status | None = None
    ) -> Page:
        """At most `limit` jobs of an owner, newest first, from after the page that gave `after`."""
        found: list[Job] = []
        highest = "+inf" if after is None else f"({after}"
        while True:
            listed = await self._listed(owner, highest, limit)
            for job_id, score, job in listed:
                highest = f"({score:.6f}"
                if job is None:
                    await cast(Any, self._redis.zrem(keys.owned(owner), job_id))
                elif status in (None, job.status):
                    found.append(job)
                    if len(found) == limit:
                        return Page(found, f"{score:.6f}")
            if len(listed) < limit:
                return Page(found, None)

    async def _listed(
        self, owner: str, highest: str, limit: int
    ) -> list[tuple[str, float, Job | None]]:
        """Ids of an owner's list below a score, with their scores and jobs."""
        ids = self._redis.zrevrangebyscore(
            keys.owned(owner), highest, "-inf", start=0, num=limit, withscores=True
        )
        scored = [(raw.decode(), score) for raw, score in cast(Any, await cast(Any, ids))]
        async with self._redis.pipeline(transaction=False) as batch:
            for job_id, _ in scored:
                batch.hgetall(keys.job(job_id))
            hashes = await batch.execute()
        jobs = [Job.from_hash(stored) if stored else None for stored in hashes]
        return [(*entry, job) for entry, job in zip(scored, jobs, strict=True)]

    async def place(self, job: Job) -> Place | None:
        """Where a queued job stands in the queues of its checkpoint; None for any other job.

        The time is that of the row-calls before it and its own, at the rate that live workers
        measured; it leaves out what comes later and goes first.
        """
        urgent = PRIORITIES[: PRIORITIES.index(job.priority) + 1]
        queues = [keys.queue(priority, job.digest) for priority in urgent]
        async with self._redis.pipeline(transaction=False) as batch:
            batch.zrank(queues[-1], job.id)
            batch.hmget(keys.TOTALS, [*queues, keys.running(job.digest)])
            for queue in queues:
                batch.zcard(queue)
            rank, totals, *lengths = await batch.execute()
        if rank is None:
            return None
        *waiting, running = (int(total or 0) for total in totals)
        ahead = sum(waiting[:-1]) + waiting[-1] * rank / lengths[-1] + running / 2
        rate = await self.rate(job.digest)
        return Place(sum(lengths[:-1]) + rank, (ahead + job.cost) / rate if rate > 0 else None)

    async def seconds_for(self, digest: str, cost: int) -> float | None:
        """Seconds that the live workers of a checkpoint take for row-calls; None: no telling."""
        rate = await self.rate(digest)
        return cost / rate if rate > 0 else None

    async def rate(self, digest: str) -> float:
        """Row-calls a second that the live workers of a checkpoint make; 0 if there are none."""
        return sum(beat.rates.get(digest, 0.0) for beat in await self.beats())

    async def watch(self, job_id: str, change: int) -> None:
        """Count a subscriber that comes (1) or leaves (-1)."""
        await self._run("watch", job_id, change=change, grace=ABANDONED_AFTER)

    async def settle(self) -> None:
        """Settle the jobs whose deadline has passed and those that nobody follows any more.

        Every process with a store may call it, as often as it likes.
        """
        now = await self._now()
        async with self._redis.pipeline(transaction=False) as batch:
            for index in (keys.DEADLINES, keys.ABANDONED):
                batch.zrangebyscore(index, "-inf", now, start=0, num=1000)
            late, abandoned = await batch.execute()
        for job_id in late:
            await self._run("expire", job_id.decode())
        for job_id in abandoned:
            await self._run("cancel", job_id.decode(), reason="abandoned")

    async def due_webhooks(self, seconds: float) -> list[tuple[Job, int]]:
        """Jobs whose webhook is due, and the number of this attempt; nobody else gets them.

        seconds: after which they are due again, should the caller die.
        """
        now = await self._now()
        due = self._redis.zrangebyscore(keys.WEBHOOKS, "-inf", now, start=0, num=20)
        found = []
        for raw in cast(list[bytes], await due):
            job_id = raw.decode()
            lock = keys.webhook(job_id)
            if not await self._redis.set(lock, 1, nx=True, px=int(seconds * 1000)):
                continue
            job = await self.get(job_id)
            if job is None:
                await self.webhook_done(job_id)
                continue
            attempt = await cast(Any, self._redis.hincrby(keys.job(job_id), "webhook_attempts", 1))
            found.append((job, int(attempt)))
        return found

    async def webhook_failed(self, job_id: str, pause: float | None) -> None:
        """Try again after so many seconds; None: never."""
        if pause is None:
            return await self.webhook_done(job_id)
        await self._redis.zadd(keys.WEBHOOKS, {job_id: await self._now() + pause}, xx=True)
        await self._redis.delete(keys.webhook(job_id))
        return None

    async def webhook_done(self, job_id: str) -> None:
        """Forget the webhook of a job."""
        await self._redis.zrem(keys.WEBHOOKS, job_id)
        await self._redis.delete(keys.webhook(job_id))

    async def _now(self) -> float:
        seconds, microseconds = await self._redis.time()
        return float(seconds) + microseconds / 1e6

    async def read_events(self, job_id: str, after: str, block_ms: int) -> list[Event]:
        """The events after the id `after`; waits up to `block_ms` for the first one."""
        stream = keys.events(job_id)
        answer = await cast(Any, self._blocking.xread({stream: after}, count=READ, block=block_ms))
        entries = answer[0][1] if answer else []
        return [
            Event(entry.decode(), fields[b"type"].decode(), fields[b"data"].decode())
            for entry, fields in entries
        ]

    async def follow(
        self, job_id: str, after: str, idle: float
    ) -> AsyncGenerator[Event | None, None]:
        """The events after `after` up to the terminal one; None after each `idle` seconds.

        Where events were removed before they could be given, a `gap` with the job's status stands
        in their place. It also ends when the job or the rest of its events have expired.
        """
        behind = after != FROM_THE_START
        while True:
            events = await self.read_events(job_id, after, block_ms=max(1, int(idle * 1000)))
            if behind and events and (gap := await self._gap(job_id, after)):
                yield gap
            for event in events:
                yield event
                if event.last:
                    return
                after = event.id
            behind = len(events) == READ
            if not events:
                job = await self.get(job_id)
                if job is None or (job.last_event and not follows(job.last_event, after)):
                    return
                yield None

    async def _gap(self, job_id: str, after: str) -> Event | None:
        """A `gap` if events after `after` were removed, or may have been."""
        try:
            info = await cast(Any, self._redis.xinfo_stream(keys.events(job_id)))
        except ResponseError:  # the stream has expired
            return None
        removed = info.get("max-deleted-entry-id")  # from Redis 7 on
        if removed is None:
            first = info["first-entry"]
            lost = first is not None and follows(first[0].decode(), after)
        else:
            lost = follows(removed.decode(), after)
        job = await self.get(job_id) if lost else None
        if job is None:
            return None
        return Event(after, GAP, json.dumps({"status": job.status, "attempt": job.attempt}))

    async def artifact(self, job_id: str, name: str) -> tuple[str, bytes] | None:
        """Media type and bytes of an artifact, None if there is none of that name."""
        async with self._redis.pipeline(transaction=False) as batch:
            batch.hget(keys.job(job_id), keys.ARTIFACT + name)
            batch.get(keys.artifact(job_id, name))
            media_type, data = await batch.execute()
        if media_type is None or data is None:
            return None
        return media_type.decode(), data

    async def models(self) -> dict[str, dict[str, Any]]:
        """The card of every model that a worker ever announced, by name."""
        stored = await cast(Any, self._redis.hgetall(keys.MODELS))
        return {name.decode(): json.loads(card) for name, card in sorted(stored.items())}

    async def live_models(self) -> frozenset[str]:
        """The names of the models that a live worker serves now."""
        return frozenset(name for beat in await self.beats() for name in beat.models)

    async def overview(self) -> Overview:
        """All queues, leases and counts of what happened, for operators."""
        return await look(self._redis)

    async def beats(self) -> list[Beat]:
        """What the live workers last said; forgets those that have died."""
        workers = sorted(await cast(Any, self._redis.smembers(keys.WORKERS)))
        if not workers:
            return []
        said = await self._redis.mget([keys.worker(worker.decode()) for worker in workers])
        dead = [worker for worker, beat in zip(workers, said, strict=True) if beat is None]
        if dead:
            await cast(Any, self._redis.srem(keys.WORKERS, *dead))
        return [Beat(**json.loads(beat)) for beat in said if beat is not None]

    async def memory_low(self) -> bool:
        """Whether Redis has used so much of its memory that new jobs must wait."""
        return memory_low(await self._redis.info("memory"))

    async def secret(self) -> bytes:
        """Bytes that all processes of this store share and nobody else knows."""
        await self._redis.set(keys.SECRET, secrets.token_bytes(32), nx=True)
        return cast(bytes, await self._redis.get(keys.SECRET))

    async def _run(
        self, script: str, job_id: str, data: bytes | None = None, /, **named: Any
    ) -> Any:
        named |= {"ttl": self._settings.job_ttl, "stream_length": self._settings.stream_length}
        call = self._redis.register_script(scripts.source(script))
        try:
            return await call(keys.SHARED, scripts.arguments(data, id=job_id, **named))
        except ResponseError as error:
            if scripts.out_of_memory(error):
                raise OutOfMemoryError(*error.args) from error
            raise


def _job_of(flat: Sequence[bytes]) -> Job:
    """The job of what a script's HGETALL gives."""
    return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))


def _named(once: Once, job: Job, ttl: int) -> dict[str, Any]:
    """What the script `submit` needs to carry a request out once: keys are each owner's own."""
    name = hashlib.sha256("\0".join((job.owner, job.operation, once.key)).encode()).hexdigest()
    return {"name": name, "fingerprint": once.fingerprint, "ttl": ttl}
