"""What waits, and who is alive to do it."""

import json
from collections.abc import Sequence
from typing import Any, cast

from typing_extensions import override

from service.jobs.beat import Beat
from service.jobs.job import Job
from service.jobs.overview import Overview
from service.jobs.parameters import PRIORITIES
from service.jobs.recent import Recent
from service.jobs.redis_store import keys
from service.jobs.redis_store.base import RedisBase
from service.jobs.redis_store.overview import look
from service.settings import Settings

RECENT = 0.5
"""Seconds that what workers said is taken for what they say."""


class Queues(RedisBase):
    """The part of the store that knows queues, models and workers."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._recent = Recent(self.beats, RECENT)

    @override
    async def ahead(self, job: Job) -> tuple[int, float] | None:
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
        row_calls = sum(waiting[:-1]) + waiting[-1] * rank / lengths[-1] + running / 2
        return sum(lengths[:-1]) + rank, row_calls

    @override
    async def overview(self) -> Overview:
        return await look(self._redis)

    @override
    async def models(self) -> dict[str, dict[str, Any]]:
        stored = await cast(Any, self._redis.hgetall(keys.MODELS))
        return {name.decode(): json.loads(card) for name, card in sorted(stored.items())}

    @override
    async def beats(self) -> Sequence[Beat]:
        workers = sorted(await cast(Any, self._redis.smembers(keys.WORKERS)))
        if not workers:
            return []
        said = await self._redis.mget([keys.worker(worker.decode()) for worker in workers])
        dead = [worker for worker, beat in zip(workers, said, strict=True) if beat is None]
        if dead:
            await cast(Any, self._redis.srem(keys.WORKERS, *dead))
        return [Beat(**json.loads(beat)) for beat in said if beat is not None]

    @override
    async def recent_beats(self) -> Sequence[Beat]:
        return await self._recent()
