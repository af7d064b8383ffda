"""What Redis knows of all jobs at one moment."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.jobs.overview import Overview, Waiting
from service.jobs.redis_store import keys


async def look(redis: Redis) -> Overview:
    """The overview of the jobs in this Redis."""
    async with redis.pipeline(transaction=False) as batch:
        batch.time()
        batch.hgetall(keys.TOTALS)
        batch.zcard(keys.RUNNING)
        batch.zcard(keys.WEBHOOKS)
        batch.hgetall(keys.COUNTS)
        batch.info("memory")
        (seconds, microseconds), totals, running, webhooks, counts, memory = await batch.execute()
    now = seconds + microseconds / 1e6
    row_calls = {name.decode(): int(total) for name, total in totals.items()}
    return Overview(
        waiting=await _waiting(redis, row_calls, now),
        running=running,
        row_calls_running=Counter(
            {
                digest: total
                for name, total in row_calls.items()
                if (digest := keys.digest_of_running(name)) is not None
            }
        ),
        overdue=await redis.zcount(keys.RUNNING, "-inf", now),
        webhooks=webhooks,
        counts=Counter({tuple(json.loads(what)): int(total) for what, total in counts.items()}),
        memory_used=int(memory["used_memory"]),
        memory_limit=int(memory["maxmemory"]),
    )


async def _waiting(
    redis: Redis, row_calls: Mapping[str, int], now: float
) -> dict[tuple[str, str], Waiting]:
    """The queues among the totals, whose names are those of the queues."""
    queues = [(name, parts) for name in row_calls if (parts := keys.parts_of_queue(name))]
    async with redis.pipeline(transaction=False) as batch:
        for name, _ in queues:
            batch.zcard(name)
            batch.zrange(name, 0, 0, withscores=True)
        answers: Sequence[Any] = await batch.execute()
    return {
        (digest, priority): Waiting(jobs, row_calls[name], max(0.0, now - first[0][1]))
        for (name, (priority, digest)), jobs, first in zip(
            queues, answers[::2], answers[1::2], strict=True
        )
        if first
    }
