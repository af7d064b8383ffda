"""One connection that follows the streams of many: who waits gets what comes, once, in order."""

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.jobs.errors import StoreError
from service.jobs.redis_store.connection import AsyncClient
from service.jobs.redis_store.tail import Tail
from service.jobs.store import READ
from tests.service.helpers import LIMIT

pytestmark = pytest.mark.anyio
START = "0-0"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[AsyncClient]:
    client = AsyncClient.from_url(redis_url, retry=Retry(NoBackoff(), 1))
    yield client
    await client.aclose()


@pytest.fixture
async def tail(redis: AsyncClient, redis_url: str) -> AsyncIterator[Tail]:
    tail = Tail(redis_url, redis, lambda key, fields: (key.decode(), int(fields[b"n"])))
    yield tail
    await tail.close()


async def follow(tail: Tail, stream: str, count: int, after: str = START) -> list[int]:
    """The numbers of so many entries."""
    seen: list[int] = []
    async with asyncio.timeout(LIMIT):
        while len(seen) < count:
            found = await tail.read(stream, after, LIMIT)
            seen += [n for _, n in found]
            after = found[-1][0] if found else after
    return seen


async def looked(tail: Tail, stream: str) -> None:
    """Until somebody waits for what is not there yet."""
    async with asyncio.timeout(LIMIT):
        while stream not in tail._waiting:
            await asyncio.sleep(0)


async def blocked(tail: Tail, redis: AsyncClient) -> None:
    """Until the tail's question waits in Redis, whose other clients may be another test's."""
    async with asyncio.timeout(LIMIT):
        while not any("b" in one["flags"] for one in await of(tail, redis)):
            await asyncio.sleep(0.01)


async def of(tail: Tail, redis: AsyncClient) -> list[dict[str, str]]:
    """What Redis says of the tail's connection, if it has one."""
    return await redis.client_list(client_id=[str(tail._client_id)]) if tail._client_id else []


async def add(redis: AsyncClient, stream: str, *numbers: int) -> None:
    for n in numbers:
        await redis.xadd(stream, {"n": n})


async def test_readers_of_many_streams_share_one_connection(tail: Tail, redis: AsyncClient):
    tasks = [asyncio.create_task(follow(tail, f"s{n % 30}", 5)) for n in range(90)]
    await blocked(tail, redis)
    for n in range(5):
        for stream in range(30):
            await add(redis, f"s{stream}", 100 * stream + n)
    for number, task in enumerate(tasks):
        assert await task == [100 * (number % 30) + n for n in range(5)]


async def test_a_stream_that_joins_does_not_wait_for_the_others(tail: Tail, redis: AsyncClient):
    quiet = asyncio.create_task(follow(tail, "quiet", 1))
    await blocked(tail, redis)
    joins = asyncio.create_task(follow(tail, "joins", 2))
    await looked(tail, "joins")
    await add(redis, "joins", 1, 2)
    assert await asyncio.wait_for(joins, 2) == [1, 2]
    await add(redis, "quiet", 3)
    assert await quiet == [3]


async def test_who_joins_the_next_question_does_not_wait_for_the_last_one_s_interrupt(
    tail: Tail, redis: AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    begun, held, unblock = asyncio.Event(), asyncio.Event(), redis.client_unblock

    async def held_up(client_id: int) -> Any:
        begun.set()
        await held.wait()
        return await unblock(client_id)

    quiet = asyncio.create_task(follow(tail, "quiet", 2))
    await blocked(tail, redis)
    monkeypatch.setattr(redis, "client_unblock", held_up)
    second = asyncio.create_task(follow(tail, "second", 1))
    await asyncio.wait_for(begun.wait(), LIMIT)
    monkeypatch.setattr(redis, "client_unblock", unblock)
    first_question = tail._asked
    await add(redis, "quiet", 1)  # ends the question while its interrupt is on its way
    async with asyncio.timeout(LIMIT):
        while tail._asked is first_question or not tail._asked:
            await asyncio.sleep(0.001)
    third = asyncio.create_task(follow(tail, "third", 1))
    await looked(tail, "third")
    await add(redis, "third", 3)
    assert await asyncio.wait_for(third, 2) == [3]
    held.set()
    await add(redis, "second", 2)
    await add(redis, "quiet", 4)
    assert (await second, await quiet) == ([2], [1, 4])


async def test_each_goes_on_from_where_it_was(tail: Tail, redis: AsyncClient):
    await add(redis, "s", *range(3))
    ids = [key.decode() for key, _ in await redis.xrange("s")]
    tasks = [
        asyncio.create_task(follow(tail, "s", 2 * READ - seen, after))
        for seen, after in ((0, START), (1, ids[0]), (3, ids[2]))
    ]
    await blocked(tail, redis)
    await add(redis, "s", *range(3, 2 * READ))
    for seen, task in zip((0, 1, 3), tasks, strict=True):
        assert await task == list(range(seen, 2 * READ))


async def test_who_is_ahead_of_another_gets_nothing_twice(tail: Tail, redis: AsyncClient):
    behind = asyncio.create_task(follow(tail, "s", 2))
    ahead = asyncio.create_task(follow(tail, "s", 1, "5-0"))
    await blocked(tail, redis)
    await redis.xadd("s", {"n": 3}, id="3-0")
    await asyncio.sleep(0.1)  # it is given to one of them, and the question asked anew
    await redis.xadd("s", {"n": 6}, id="6-0")
    assert await behind == [3, 6]
    assert await ahead == [6]


async def test_entries_are_made_once_for_all_who_wait(redis: AsyncClient, redis_url: str):
    made: list[bytes] = []

    def entry(key: bytes, fields: dict[bytes, bytes]) -> Any:
        made.append(key)
        return key.decode(), 0

    tail = Tail(redis_url, redis, entry)
    tasks = [asyncio.create_task(follow(tail, "s", 1)) for _ in range(20)]
    await blocked(tail, redis)
    await add(redis, "s", 0)
    await asyncio.gather(*tasks)
    assert len(made) == 1
    await tail.close()


async def test_nothing_in_time_is_nothing(tail: Tail):
    assert list(await tail.read("s", START, 0.01)) == []


async def test_who_waits_is_told_that_redis_is_away_and_may_wait_again(
    tail: Tail, redis: AsyncClient
):
    first = asyncio.create_task(follow(tail, "s", 1))
    await blocked(tail, redis)
    await redis.client_kill_filter(_id=str(tail._client_id))
    with pytest.raises(StoreError):
        await first
    again = asyncio.create_task(follow(tail, "s", 1))
    await blocked(tail, redis)
    await add(redis, "s", 7)
    assert await again == [7]


async def test_a_tail_that_is_closed_leaves_no_connection_whatever_it_was_at(
    redis: AsyncClient, redis_url: str
):
    gc.collect()  # what other tests left is not meant
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for steps in range(100):
            tail = Tail(redis_url, redis, lambda key, _: key)
            await tail.read("s", START, 0.001 * (steps % 5))
            for _ in range(steps):
                await asyncio.sleep(0)
            await tail.close()
        del tail
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
