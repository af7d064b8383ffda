"""What an operator wants to know of all jobs at one moment, as `JobStore.overview` finds it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from service.jobs import keys


@dataclass(frozen=True)
class Waiting:
    """One queue: its jobs, their row-calls (rows × network calls), seconds that its first waits."""

    jobs: int
    row_calls: int
    oldest: float


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All queues, leases and counts, and the memory that they are kept in.

    waiting: by (checkpoint, priority); queues without jobs are left out. row_calls_running: by
    checkpoint. overdue: running jobs whose lease ended, and that no reaper has settled yet.
    counts: of what ever happened, by its name and what the script `count` was told with it.
    memory_limit: bytes; 0 without a limit.
    """

    waiting: dict[tuple[str, str], Waiting] = field(default_factory=dict)
    running: int = 0
    row_calls_running: Counter[str] = field(default_factory=Counter)
    overdue: int = 0
    webhooks: int = 0
    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    memory_used: int = 0
    memory_limit: int = 0


async def look(redis: Redis) -> Overview:
    """The overview of the jobs in this Redis; raises redis's `RedisError`."""
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
