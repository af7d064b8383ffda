"""How many jobs an owner may submit in a minute, counted in Redis for all API processes."""

import math
import time
from http import HTTPStatus

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.asyncio import ConnectionPool

from service.api.problems import Problem
from service.jobs.redis_store.connection import port_errors


class Rates:
    """A moving window of one minute for each owner."""

    def __init__(self, redis_url: str | None, requests_per_minute: int | None) -> None:
        """redis_url: None counts for this process alone. requests_per_minute: None, nothing."""
        self._allowed = requests_per_minute
        self._pool = None if redis_url is None else ConnectionPool.from_url(redis_url)
        if requests_per_minute is not None:
            self._limiter = MovingWindowRateLimiter(_storage(redis_url, self._pool))
            self._item = RateLimitItemPerMinute(requests_per_minute, namespace="fokker:rate")

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def count(self, owner: str) -> None:
        """Count a job of this owner's; raises `Problem` 429 if it is one too many."""
        if self._allowed is None:
            return
        with port_errors():
            if await self._limiter.hit(self._item, owner):
                return
            window = await self._limiter.get_window_stats(self._item, owner)
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"more than the {self._allowed} jobs a minute that a key may submit; "
            f"try again in {seconds} seconds",
            headers={"Retry-After": str(seconds)},
        )


def _storage(redis_url: str | None, pool: ConnectionPool | None) -> MemoryStorage | RedisStorage:
    if redis_url is None:
        return MemoryStorage()
    return RedisStorage(
        f"async+{redis_url}",
        implementation="redispy",
        connection_pool=pool,  # type: ignore[arg-type]  # as its documentation says
    )
