"""What is Redis's own in the job store: keys, scripts, lost answers, a full memory."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from service.api import create_app
from service.jobs.errors import StoreError
from service.jobs.events import FROM_THE_START
from service.jobs.lease import Claim, WorkerStore
from service.jobs.parameters import Priority
from service.jobs.redis_store import RedisJobStore, RedisWorkerStore, keys
from service.jobs.store import (
    JobStore,
    Once,
    OtherContentError,
    QueueFullError,
    QuotaError,
)
from service.settings import Settings
from tests.service.helpers import CARDS, LIMIT, ROOMS, a_job, until
from tests.service.network import served

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]


async def submitted(store: JobStore, *jobs: dict[str, Any]) -> list[str]:
    """The ids of new jobs, in the order in which they were submitted."""
    return [(await store.submit(a_job(**changes))).id for changes in jobs]


def claimed(worker: WorkerStore, rooms: dict[Priority, int] = ROOMS) -> str | None:
    """The id of the job that the worker is given."""
    claim = worker.claim(SERVED, rooms)
    return None if claim is None else claim.job.id


def next_claim(worker: WorkerStore) -> Claim:
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    return claim


async def test_all_that_a_finished_job_leaves_behind_expires(
    store: JobStore, worker: WorkerStore, settings: Settings
):
    await store.submit(a_job(), b"in")
    claim = next_claim(worker)
    claim.put_artifact("0.png", "image/png", b"x")
    with redis.Redis.from_url(settings.require_redis()) as client:
        owned = list(client.scan_iter(keys.job(claim.job.id) + "*"))
        assert len(owned) == 4
        claim.fail({"title": "no"})
        owned = list(client.scan_iter(keys.job(claim.job.id) + "*"))
        assert len(owned) == 3
        assert all(0 < client.ttl(key) <= settings.job_ttl for key in owned)


async def test_nothing_of_a_deleted_job_is_left(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    with redis.Redis.from_url(redis_url) as client:
        before = set(client.keys())
        for ends in (False, True):
            await store.submit(a_job(), b"inputs", cancel_after=100, attached=True)
            claim = next_claim(worker)
            claim.put_artifact("0.png", "image/png", b"png")
            claim.event("preview", {"n": 1})
            await store.watch(claim.job.id, 1)
            if ends:
                claim.succeed({})
            await store.delete(claim.job.id)
            assert worker.renew([claim]) == ["deleted"]
            client.delete(keys.claim(claim.token))
        assert set(client.keys()) - {keys.COUNTS.encode()} == before


async def test_expired_jobs_leave_the_list(store: JobStore, redis_url: str):
    jobs = [await store.submit(a_job(owner="anna")) for _ in range(3)]
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys.job(jobs[0].id))
        client.delete(keys.job(jobs[1].id))
        assert [job.id for job in (await store.page("anna", 2)).jobs] == [jobs[2].id]
        assert client.zcard(keys.owned("anna")) == 1
        client.delete(keys.job(jobs[2].id))
        await store.submit(a_job(owner="anna"))
        assert client.zcard(keys.owned("anna")) == 1, "the list forgets as it grows"


async def test_totals_are_zero_when_all_has_ended(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    jobs = [await store.submit(a_job(rows=3, calls=7, owner=f"o{n % 2}")) for n in range(6)]
    claims = [worker.claim(SERVED, ROOMS) for _ in range(3)]
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.hgetall(keys.TOTALS) == {
            "jobs": "3",
            keys.queue("interactive", "sha256:digits"): "63",
            keys.running("sha256:digits"): "63",
            "owner:o0": "63",
            "owner:o1": "63",
        }
        assert all(claims)
        claims[0].succeed({})  # type: ignore[union-attr]
        claims[1].release()  # type: ignore[union-attr]
        await store.delete(jobs[2].id)  # runs
        await store.delete(jobs[3].id)  # waits
        for job in jobs:
            await store.cancel(job.id)
        assert client.hgetall(keys.TOTALS) == {}


async def test_the_store_refuses_without_writing(
    settings: Settings, redis_url: str, worker: WorkerStore
):
    store = RedisJobStore(settings.model_copy(update={"max_queued": 1, "max_owner_cost": 10}))
    await store.submit(a_job(owner="x", rows=2, calls=5), once=Once("k", "one"))
    with redis.Redis.from_url(redis_url) as client:
        before = sorted(client.keys())
        with pytest.raises(QueueFullError):
            await store.submit(a_job(owner="y"))
        with pytest.raises(OtherContentError):
            await store.submit(a_job(owner="x"), once=Once("k", "two"))
        assert worker.claim(SERVED, ROOMS)
        with pytest.raises(QuotaError):
            await store.submit(a_job(owner="x"))
        await store.close()
        after = [key for key in sorted(client.keys()) if b":claim:" not in key]
    assert set(after) - set(before) == {keys.RUNNING.encode()}


async def test_at_the_limit_of_memory_leases_are_kept_and_jobs_end(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    jobs = [await store.submit(a_job(), bytes(1000)) for _ in range(3)]
    claims = [worker.claim(SERVED, ROOMS) for _ in range(2)]
    held = [claim for claim in claims if claim is not None]
    worker.announce(CARDS, ttl=60)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.OutOfMemoryError):
                client.set("x", "y")
            with pytest.raises(StoreError):
                await store.submit(a_job())
            before = client.pttl(keys.claim(held[0].token))
            await asyncio.sleep(0.05)
            assert worker.renew(held) == ["held", "held"]
            beat = client.pttl(keys.worker(worker.worker_id))
            with pytest.raises(StoreError):
                worker.announce(CARDS, ttl=120)
            assert client.pttl(keys.worker(worker.worker_id)) > beat + 30_000, "its beat goes on"
            assert client.pttl(keys.claim(held[0].token)) > before - 50
            held[0].succeed({"images": []})
            held[1].release()
            await store.cancel(jobs[2].id)
        finally:
            client.config_set("maxmemory", 0)
    found = [await store.get(job.id) for job in jobs]
    assert [job.status for job in found if job] == ["succeeded", "queued", "canceled"]


async def test_at_the_limit_of_memory_what_a_dead_worker_held_is_reaped(
    store: JobStore, settings: Settings, redis_url: str
):
    job = await store.submit(a_job())
    short = settings.model_copy(update={"lease": 0.05})
    dead, other = (RedisWorkerStore(short, name, lambda _: None) for name in ("dead", "other"))
    assert dead.claim(SERVED, ROOMS) is not None
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            async with asyncio.timeout(5):
                while other.reap() == 0:
                    await asyncio.sleep(0.02)
        finally:
            client.config_set("maxmemory", 0)
    found = await store.get(job.id)
    assert found is not None
    assert (found.status, found.attempt) == ("queued", 2)
    for one in (dead, other):
        one.close()


async def test_a_served_job_is_found_behind_many_that_are_not(store: JobStore, worker: WorkerStore):
    await submitted(store, *[{"digest": "sha256:faces"}] * 1500)
    [job] = await submitted(store, {})
    assert claimed(worker) == job


async def test_an_id_without_a_job_is_removed_from_its_queue(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]], redis_url: str
):
    gone, job, later = await submitted(store, {}, {}, {})
    with redis.Redis.from_url(redis_url) as client:
        client.delete(keys.job(gone))
    assert claimed(worker) == job
    assert queued() == [later]


def lose_the_answer(worker: WorkerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's next claim is done in Redis, but its answer does not arrive."""
    assert isinstance(worker, RedisWorkerStore)
    ask = worker._run

    def deaf(script: str, *arguments: Any, **named: Any) -> Any:
        ask(script, *arguments, **named)
        monkeypatch.undo()
        raise StoreError("the answer is lost")

    monkeypatch.setattr(worker, "_run", deaf)


async def test_a_claim_whose_answer_was_lost_is_given_again_and_no_other(
    store: JobStore, worker: WorkerStore, monkeypatch: pytest.MonkeyPatch
):
    first, second = await submitted(store, {"priority": "batch"}, {"priority": "batch"})
    lose_the_answer(worker, monkeypatch)
    with pytest.raises(StoreError):
        worker.claim(SERVED, ROOMS)
    await submitted(store, {"priority": "interactive"})
    found = worker.claim(SERVED, ROOMS)
    assert found is not None
    assert (found.job.id, found.job.attempt) == (first, 1)
    assert worker.renew([found]) == ["held"]
    assert (await store.get(second) or found.job).status == "queued"
    events = await store.read_events(first, FROM_THE_START, 1)
    assert [event.type for event in events] == ["queued", "started"]


async def test_a_lost_answer_does_not_give_a_job_that_another_worker_has_by_now(
    store: JobStore,
    worker: WorkerStore,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
):
    deaf = RedisWorkerStore(settings.model_copy(update={"lease": 0.1}), "deaf", lambda job_id: None)
    [job] = await submitted(store, {})
    lose_the_answer(deaf, monkeypatch)
    with pytest.raises(StoreError):
        deaf.claim(SERVED, ROOMS)
    with redis.Redis.from_url(redis_url) as client:
        until(lambda: client.info("server")["uptime_in_seconds"] > 0)
    until(deaf.reap)
    assert claimed(worker) == job
    assert claimed(deaf) is None
    deaf.close()


async def five_claims(store: JobStore, worker: WorkerStore) -> list[Claim]:
    await submitted(store, *[{}] * 5)
    claims = [worker.claim(SERVED, ROOMS) for _ in range(5)]
    return [claim for claim in claims if claim is not None]


async def test_renewing_many_is_one_round_trip_and_prolongs_each(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    claims = await five_claims(store, worker)
    worker.renew(claims)  # the script is known from here on
    with redis.Redis.from_url(redis_url) as client:
        ends = dict(client.zrange(keys.RUNNING, 0, -1, withscores=True))
        before = client.info("stats")["total_reads_processed"]
        worker.renew(claims)
        reads = client.info("stats")["total_reads_processed"] - before - 1  # INFO itself
        assert reads == 1
        later = dict(client.zrange(keys.RUNNING, 0, -1, withscores=True))
    assert len(later) == 5
    assert all(later[job] > ends[job] for job in ends)


async def test_renewing_goes_on_when_redis_has_forgotten_its_scripts(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    claims = await five_claims(store, worker)
    worker.renew(claims)
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    assert worker.renew(claims) == ["held"] * 5


async def test_readers_share_a_connection_and_those_that_vanish_leave_nothing(
    store: JobStore, settings: Settings
):
    job_id = (await store.submit(a_job())).id
    with (
        served(create_app(settings)) as url,
        redis.Redis.from_url(settings.require_redis()) as admin,
    ):
        remote = httpx.AsyncClient(base_url=url)

        def connected() -> int:
            return int(admin.info("clients")["connected_clients"])

        def waiting() -> int:
            """Connections that wait for events, as Celery's of other tests do not."""
            return sum(c["cmd"] == "xread" and "b" in c["flags"] for c in admin.client_list())

        async def watched(count: int) -> None:
            async with asyncio.timeout(LIMIT):
                while int(admin.hget(keys.WATCHERS, job_id) or 0) != count:
                    await asyncio.sleep(0.02)

        before = connected()
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                leave = asyncio.Event()
                for _ in range(40):
                    group.create_task(read_until(leave, remote, job_id))
                await watched(40)
                assert waiting() <= 2, "ours, and another test's on its way out"
                leave.set()
            await watched(0)
        # Those that come and leave at once are counted over several; one each would make 120.
        assert connected() <= before + 45
        await remote.aclose()


async def read_until(leave: asyncio.Event, client: httpx.AsyncClient, job_id: str) -> None:
    async with client.stream("GET", f"/jobs/{job_id}/events") as answer:
        async for _ in answer.aiter_lines():
            await leave.wait()
            return
