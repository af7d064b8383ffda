"""Whose end is to be told, and by whom."""

from typing import Any, cast

from typing_extensions import override

from service.jobs.job import Job
from service.jobs.redis_store import keys
from service.jobs.redis_store.base import RedisBase


class Webhooks(RedisBase):
    """The part of the store that says which webhooks are due."""

    @override
    async def due_webhooks(self, seconds: float, most: int) -> list[tuple[Job, int]]:
        now = await self._now()
        due = self._redis.zrangebyscore(keys.WEBHOOKS, "-inf", now, start=0, num=most)
        found = []
        for raw in cast(list[bytes], await due):
            job_id = raw.decode()
            lock = keys.webhook(job_id)
            if not await self._redis.set(lock, 1, nx=True, px=int(seconds * 1000)):
                continue
            # Out of the way of those behind it, for as long as it may take.
            await self._redis.zadd(keys.WEBHOOKS, {job_id: now + seconds}, xx=True)
            job = await self.get(job_id)
            if job is None:
                await self.webhook_done(job_id)
                continue
            attempt = await cast(Any, self._redis.hincrby(keys.job(job_id), "webhook_attempts", 1))
            found.append((job, int(attempt)))
        return found

    @override
    async def webhook_failed(self, job_id: str, pause: float | None) -> None:
        if pause is None:
            return await self.webhook_done(job_id)
        await self._redis.zadd(keys.WEBHOOKS, {job_id: await self._now() + pause}, xx=True)
        await self._redis.delete(keys.webhook(job_id))
        return None

    @override
    async def webhook_done(self, job_id: str) -> None:
        await self._redis.zrem(keys.WEBHOOKS, job_id)
        await self._redis.delete(keys.webhook(job_id))
