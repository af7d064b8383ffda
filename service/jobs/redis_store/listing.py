"""Owners' lists of jobs, in pages."""

from typing import Any, cast

from typing_extensions import override

from service.jobs.job import Job, Status
from service.jobs.redis_store import hashes, keys
from service.jobs.redis_store.base import RedisBase
from service.jobs.store import Page


class Listing(RedisBase):
    """The part of the store that lists jobs."""

    @override
    async def page(
        self, owner: str, limit: int, after: str | None = None, status: Status | None = None
    ) -> Page:
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
            found = await batch.execute()
        jobs = [hashes.job_of(stored) if stored else None for stored in found]
        return [(*entry, job) for entry, job in zip(scored, jobs, strict=True)]
