"""The API's side of the job store in Redis."""

import hashlib
import secrets
from collections.abc import Sequence
from itertools import compress
from typing import Any, cast

from typing_extensions import override

from service.jobs import store
from service.jobs.artifacts import Kept
from service.jobs.job import Job, is_job_id
from service.jobs.redis_store import hashes, keys
from service.jobs.redis_store.connection import memory_low
from service.jobs.redis_store.listing import Listing
from service.jobs.redis_store.queues import Queues
from service.jobs.redis_store.streams import Streams
from service.jobs.redis_store.webhooks import Webhooks
from service.jobs.store import Once, OtherContentError, QueueFullError, QuotaError


class RedisJobStore(Listing, Queues, Streams, Webhooks):
    """Jobs in Redis: each move of one is a script, hence atomic."""

    @override
    async def submit(
        self,
        job: Job,
        inputs: bytes | None = None,
        *,
        cancel_after: float | None = None,
        once: Once | None = None,
        attached: bool = False,
    ) -> Job:
        settings = self.settings
        what, found = await self._run(
            "submit",
            job.id,
            inputs,
            fields=hashes.hash_of(job),
            cancel_after=cancel_after,
            attached=attached or None,
            idempotency=None if once is None else _named(once, job, settings.idempotency_ttl),
            most_jobs=settings.max_queued,
            most_cost=settings.max_owner_cost,
        )
        match what:
            case b"job":
                return hashes.job_of_flat(found)
            case b"queue full":
                raise QueueFullError(int(found))
            case b"quota":
                raise QuotaError(int(found))
            case _:
                raise OtherContentError(found.decode())

    @override
    async def get(self, job_id: str) -> Job | None:
        if not is_job_id(job_id):
            return None
        stored = await cast(Any, self._redis.hgetall(keys.job(job_id)))
        return hashes.job_of(stored) if stored else None

    @override
    async def cancel(self, job_id: str, reason: str = "requested") -> Job | None:
        await self._run("cancel", job_id, reason=reason)
        return await self.get(job_id)

    @override
    async def forget(self, job_id: str) -> None:
        await self._run("delete", job_id)

    @override
    async def watch(self, job_id: str, change: int) -> None:
        await self._run("watch", job_id, change=change, grace=store.ABANDONED_AFTER)

    @override
    async def settle(self) -> None:
        now = await self._now()
        async with self._redis.pipeline(transaction=False) as batch:
            for index in (keys.DEADLINES, keys.ABANDONED):
                batch.zrangebyscore(index, "-inf", now, start=0, num=1000)
            late, abandoned = await batch.execute()
        for job_id in late:
            await self._run("expire", job_id.decode())
        for job_id in abandoned:
            await self._run("cancel", job_id.decode(), reason="abandoned")

    @override
    async def known(self, job_ids: Sequence[str]) -> set[str]:
        async with self._redis.pipeline(transaction=False) as batch:
            for job_id in job_ids:
                batch.exists(keys.job(job_id))
            return set(compress(job_ids, await batch.execute()))

    @override
    async def artifact_entry(self, job_id: str, name: str) -> tuple[str, Kept] | None:
        async with self._redis.pipeline(transaction=False) as batch:
            batch.hmget(keys.job(job_id), [keys.ARTIFACT + name, keys.FILE + name])
            batch.get(keys.artifact(job_id, name))
            (media_type, file), data = await batch.execute()
        if media_type is None or (file is None and data is None):
            return None
        return media_type.decode(), data if file is None else file.decode()

    @override
    async def memory_low(self) -> bool:
        return memory_low(await self._redis.info("memory"))

    @override
    async def secret(self) -> bytes:
        await self._redis.set(keys.SECRET, secrets.token_bytes(32), nx=True)
        return cast(bytes, await self._redis.get(keys.SECRET))


def _named(once: Once, job: Job, ttl: int) -> dict[str, Any]:
    """What the script `submit` needs to carry a request out once: keys are each owner's own."""
    name = hashlib.sha256("\0".join((job.owner, job.operation, once.key)).encode()).hexdigest()
    return {"name": name, "fingerprint": once.fingerprint, "ttl": ttl}
