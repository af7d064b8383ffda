"""Clients of Redis whose errors are the port's, and what they say of its memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio.client
import redis.client
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from service.jobs.errors import StoreError

FULL = 0.8
"""Part of Redis's memory (`maxmemory`) from which new jobs and previews are turned away, so that
those that run can still end."""


def memory_low(info: Mapping[str, Any]) -> bool:
    """Whether memory is short, by the section `memory` of Redis's INFO; never without a limit."""
    limit = int(info["maxmemory"])
    return limit > 0 and int(info["used_memory"]) >= FULL * limit


@contextmanager
def port_errors() -> Iterator[None]:
    """Raise `StoreError` where Redis is away, full or read-only; other mistakes are our own."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreError(f"Redis does not answer: {error}") from error
    except ResponseError as error:
        # Before Redis 7 the error of a script that was refused has no class.
        if isinstance(error, OutOfMemoryError | ReadOnlyError) or "-OOM " in str(error):
            raise StoreError(f"Redis takes nothing: {error}") from error
        raise


class _Pipeline(redis.client.Pipeline):
    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with port_errors():
            return super().execute(raise_on_error)


class Client(redis.Redis):
    """A blocking client."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, wait for its answer."""
        with port_errors():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        """Commands that are sent together."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _AsyncPipeline(redis.asyncio.client.Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with port_errors():
            return await super().execute(raise_on_error)


class AsyncClient(redis.asyncio.Redis):
    """An asyncio client."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, wait for its answer."""
        with port_errors():
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _AsyncPipeline:
        """Commands that are sent together."""
        return _AsyncPipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
