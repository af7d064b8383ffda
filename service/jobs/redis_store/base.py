"""What the parts of the API's side share: a client, the scripts, Redis's clock."""

from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from typing_extensions import override

from service.jobs.redis_store import keys, scripts
from service.jobs.redis_store.connection import AsyncClient
from service.jobs.store import JobStore
from service.settings import Settings

CONNECTIONS = 10_000
"""At most, of the pool."""


class RedisBase(JobStore):
    """The connections of a job store in Redis."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        url = settings.require_redis()
        # One retry: a pooled connection may be stale after Redis came back.
        retry = Retry(NoBackoff(), 1)
        self._redis = AsyncClient.from_url(url, retry=retry, max_connections=CONNECTIONS)

    @override
    async def close(self) -> None:
        await self._redis.aclose()

    @override
    async def ping(self) -> None:
        await self._redis.ping()

    async def _now(self) -> float:
        seconds, microseconds = await self._redis.time()
        return float(seconds) + microseconds / 1e6

    async def _run(
        self, script: str, job_id: str, data: bytes | None = None, /, **named: Any
    ) -> Any:
        named |= {"ttl": self.settings.job_ttl, "stream_length": self.settings.stream_length}
        call = self._redis.register_script(scripts.source(script))
        return await call(keys.SHARED, scripts.arguments(data, id=job_id, **named))
