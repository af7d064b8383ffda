"""Many streams, followed over one connection.

A blocking XREAD holds its connection, so that a reader of its own for each open stream costs one
connection a stream. Here whoever waits for the next entries of a stream says so, and one loop asks
for those of all streams at once; who waits for the same stream shares what comes.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.jobs.errors import StoreError
from service.jobs.events import order
from service.jobs.redis_store.connection import AsyncClient
from service.jobs.store import READ
from service.jobs.tasks import end

BLOCK = 15.0  # seconds that one question may block
PAUSE = 0.01  # seconds between an answer and the next question, which then asks for more at once
REMEMBERED = 10_000  # streams whose newest entry is known
AGAIN = 0.002  # seconds until a question that had not begun is interrupted again

Place = tuple[int, int]
"""The `order` of an id."""


@dataclass(eq=False)
class _Waiting:
    """Who waits for entries after a place of a stream."""

    after: Place
    found: asyncio.Future[Sequence[Any]]


class Tail:
    """Follows streams; entries are made by `entry(id, fields)`, once for all who wait for them."""

    def __init__(
        self, url: str, redis: Redis, entry: Callable[[bytes, dict[bytes, bytes]], Any]
    ) -> None:
        """redis: an `AsyncClient` for what must not wait for the loop's own connection to url."""
        self._redis, self._entry = redis, entry
        # The loop's. Without retries: a connection made anew while it asks would have another id.
        self._connection = AsyncClient.from_url(
            url,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=BLOCK + 5,
        )
        self._waiting: dict[str, set[_Waiting]] = defaultdict(set)
        self._loop: asyncio.Task[None] | None = None
        self._newest: dict[str, Place] = {}  # handed out of each stream; the latest ones last
        self._asked: dict[str, Place] = {}  # of the question that blocks now, if one does
        self._client_id = 0
        self._interrupted: dict[str, Place] | None = None  # the last question that was to end
        self._interrupting: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End the loop, then its connection: the loop may be canceled while it closes that."""
        try:
            await end(*self._interrupting, *([self._loop] if self._loop else []))
        finally:
            await self._connection.aclose()

    async def read(self, stream: str, after: str, seconds: float) -> Sequence[Any]:
        """The next entries after an id, none if none comes in so many seconds.

        Raises `StoreError` if Redis is away.
        """
        after_place = order(after)
        # Who is not where the loop is catches up alone, so as not to hold the others back.
        if self._newest.get(stream) != after_place and (found := await self._now(stream, after)):
            return found
        waiting = _Waiting(after_place, asyncio.get_running_loop().create_future())
        self._waiting[stream].add(waiting)
        self._see_to(stream, after_place)
        try:
            async with asyncio.timeout(seconds):
                return await waiting.found
        except TimeoutError:
            return []
        finally:
            self._waiting[stream].discard(waiting)
            if not self._waiting[stream]:
                del self._waiting[stream]

    async def _now(self, stream: str, after: str) -> Sequence[Any]:
        """The entries after an id that there are."""
        answer = await cast(Any, self._redis.xread({stream: after}, count=READ))
        return [self._entry(*entry) for entry in answer[0][1]] if answer else []

    def _see_to(self, stream: str, after: Place) -> None:
        """Let the loop run, and ask anew if what it asks now leaves this out."""
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._follow())
        elif (
            self._asked
            and (stream not in self._asked or after < self._asked[stream])
            and self._interrupted is not self._asked
        ):
            self._interrupted = self._asked
            task = asyncio.create_task(self._interrupt(self._asked))
            self._interrupting.add(task)
            task.add_done_callback(self._interrupting.discard)

    async def _interrupt(self, question: dict[str, Place]) -> None:
        """End a question that blocks; it may not have begun to."""
        try:
            while self._asked is question and not await self._redis.client_unblock(self._client_id):
                await asyncio.sleep(AGAIN)
        except StoreError:  # the loop's own connection says so, too
            self._interrupted = None

    async def _follow(self) -> None:
        """Ask, as long as anyone waits; a failure is that of all who do."""
        try:
            while self._waiting:
                try:
                    self._client_id = await self._connection.client_id()
                    while self._waiting:
                        self._hand_out(await self._ask())
                        await asyncio.sleep(PAUSE)
                finally:
                    await self._connection.aclose()
        except Exception as error:
            for waiting in [one for ones in self._waiting.values() for one in ones]:
                if not waiting.found.done():
                    waiting.found.set_exception(error)

    async def _ask(self) -> list[Any]:
        self._asked = {
            stream: min(one.after for one in ones) for stream, ones in self._waiting.items()
        }
        places = {stream: f"{ms}-{number}" for stream, (ms, number) in self._asked.items()}
        try:
            answer = self._connection.xread(cast(Any, places), count=READ, block=int(BLOCK * 1000))
            return await cast(Any, answer) or []
        finally:
            self._asked = {}

    def _hand_out(self, answer: list[Any]) -> None:
        for name, found in answer:
            stream = name.decode()
            entries = [(order(key.decode()), self._entry(key, fields)) for key, fields in found]
            self._newest.pop(stream, None)
            self._newest[stream] = entries[-1][0]
            for one in self._waiting.get(stream, ()):
                mine = [entry for at, entry in entries if at > one.after]
                if mine and not one.found.done():
                    one.found.set_result(mine)
        while len(self._newest) > REMEMBERED:
            del self._newest[next(iter(self._newest))]
