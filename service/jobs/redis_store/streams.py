"""Jobs' events, which are Redis streams."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from redis.exceptions import ResponseError
from typing_extensions import override

from service.jobs.events import Event, follows
from service.jobs.redis_store import keys
from service.jobs.redis_store.base import RedisBase
from service.jobs.redis_store.tail import Tail
from service.settings import Settings


class Streams(RedisBase):
    """The part of the store that reads events."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._tail = Tail(settings.require_redis(), self._redis, _event_of)

    @override
    async def close(self) -> None:
        await self._tail.close()
        await super().close()

    @override
    async def read_events(self, job_id: str, after: str, block_ms: int) -> Sequence[Event]:
        return await self._tail.read(keys.events(job_id), after, block_ms / 1000)

    @override
    async def lost_events(self, job_id: str, after: str) -> bool:
        try:
            info = await cast(Any, self._redis.xinfo_stream(keys.events(job_id)))
        except ResponseError:  # the stream has expired
            return False
        first = info["first-entry"]
        if first is not None and follows(first[0].decode(), after):
            return True  # the last one that was given is no more
        removed = info.get("max-deleted-entry-id")  # from Redis 7 on, and not by trimming
        return removed is not None and follows(removed.decode(), after)


def _event_of(entry: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """The event of an entry of a stream."""
    return Event(entry.decode(), fields[b"type"].decode(), fields[b"data"].decode())
