"""Jobs' events, which are Redis streams."""

from typing import Any, cast

from redis.exceptions import ResponseError
from typing_extensions import override

from service.jobs.events import Event, follows
from service.jobs.redis_store import keys
from service.jobs.redis_store.base import RedisBase
from service.jobs.store import READ


class Streams(RedisBase):
    """The part of the store that reads events."""

    @override
    async def read_events(self, job_id: str, after: str, block_ms: int) -> list[Event]:
        stream = keys.events(job_id)
        answer = await cast(Any, self._blocking.xread({stream: after}, count=READ, block=block_ms))
        entries = answer[0][1] if answer else []
        return [
            Event(entry.decode(), fields[b"type"].decode(), fields[b"data"].decode())
            for entry, fields in entries
        ]

    @override
    async def lost_events(self, job_id: str, after: str) -> bool:
        try:
            info = await cast(Any, self._redis.xinfo_stream(keys.events(job_id)))
        except ResponseError:  # the stream has expired
            return False
        removed = info.get("max-deleted-entry-id")  # from Redis 7 on
        if removed is None:
            first = info["first-entry"]
            return first is not None and follows(first[0].decode(), after)
        return follows(removed.decode(), after)
