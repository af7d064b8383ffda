"""The API's side of the job store, over an asyncio Redis client."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.jobs import keys, scripts
from service.jobs.job import FINISHED, Job, is_job_id
from service.settings import Settings

FROM_THE_START = "0-0"
BLOCK = 15.0  # seconds that one read of a stream may block


def follows(event_id: str, other: str) -> bool:
    """Whether the stream id `event_id` comes after `other`; both are `milliseconds-sequence`."""

    def key(stream_id: str) -> tuple[int, int]:
        milliseconds, _, sequence = stream_id.partition("-")
        return int(milliseconds), int(sequence or 0)

    return key(event_id) > key(other)


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream: its id, its type and its data as JSON text."""

    id: str
    type: str
    data: str

    @property
    def last(self) -> bool:
        """Whether this is the terminal event."""
        return self.type in FINISHED


class JobStore:
    """Submit, read and cancel jobs. Every method raises redis's `RedisError` if it is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.require_redis()
        # One retry: a pooled connection may be stale after Redis came back.
        self._redis = Redis.from_url(url, retry=Retry(NoBackoff(), 1))
        # A blocking read outlives the usual socket timeout, so it has a client of its own.
        self._blocking = Redis.from_url(url, retry=Retry(NoBackoff(), 1), socket_timeout=BLOCK + 5)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._blocking.aclose()

    async def ping(self) -> None:
        """Return if Redis answers."""
        await self._redis.ping()

    async def submit(
        self, job: Job, inputs: bytes | None = None, cancel_after: float | None = None
    ) -> Job:
        """Store a new job with its inputs and its `queued` event, at once or not at all.

        cancel_after: seconds until its deadline, if it is to have one.
        """
        flat = await self._run(
            "submit", job.id, inputs, fields=job.to_hash(), cancel_after=cancel_after
        )
        return Job.from_hash(dict(zip(flat[::2], flat[1::2], strict=True)))

    async def get(self, job_id: str) -> Job | None:
        """The job, None if it never was or has expired."""
        if not is_job_id(job_id):
            return None
        stored = await cast(Any, self._redis.hgetall(keys.job(job_id)))
        return Job.from_hash(stored) if stored else None

    async def cancel(self, job_id: str) -> Job | None:
        """End a queued job, ask for the end of a running one, leave a finished one unchanged."""
        await self._run("cancel", job_id)
        return await self.get(job_id)

    async def expire(self) -> None:
        """Settle the jobs whose deadline has passed; whoever has a store may call it."""
        seconds, microseconds = await self._redis.time()
        now = seconds + microseconds / 1e6
        late = self._redis.zrangebyscore(keys.DEADLINES, "-inf", now, start=0, num=1000)
        for job_id in cast(list[bytes], await late):
            await self._run("expire", job_id.decode())

    async def read_events(self, job_id: str, after: str, block_ms: int) -> list[Event]:
        """The events after the id `after`; waits up to `block_ms` for the first one."""
        stream = keys.events(job_id)
        answer = await cast(Any, self._blocking.xread({stream: after}, count=100, block=block_ms))
        entries = answer[0][1] if answer else []
        return [
            Event(entry.decode(), fields[b"type"].decode(), fields[b"data"].decode())
            for entry, fields in entries
        ]

    async def follow(
        self, job_id: str, after: str, idle: float
    ) -> AsyncGenerator[Event | None, None]:
        """The events after `after` up to the terminal one; None after each `idle` seconds.

        It also ends when the job or the rest of its events have expired.
        """
        while True:
            events = await self.read_events(job_id, after, block_ms=max(1, int(idle * 1000)))
            for event in events:
                yield event
                if event.last:
                    return
                after = event.id
            if not events:
                job = await self.get(job_id)
                if job is None or (job.last_event and not follows(job.last_event, after)):
                    return
                yield None

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
        workers = sorted(await cast(Any, self._redis.smembers(keys.WORKERS)))
        if not workers:
            return frozenset()
        beats = await self._redis.mget([keys.worker(worker.decode()) for worker in workers])
        dead = [worker for worker, beat in zip(workers, beats, strict=True) if beat is None]
        if dead:
            await cast(Any, self._redis.srem(keys.WORKERS, *dead))
        return frozenset(name for beat in beats if beat is not None for name in json.loads(beat))

    async def _run(
        self, script: str, job_id: str, data: bytes | None = None, /, **named: Any
    ) -> Any:
        named |= {"ttl": self._settings.job_ttl, "stream_length": self._settings.stream_length}
        call = self._redis.register_script(scripts.source(script))
        return await call(keys.SHARED, scripts.arguments(data, id=job_id, **named))
