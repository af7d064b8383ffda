"""How much a store takes, what it says of what waits, and what it lists."""

import asyncio

import pytest

from service.jobs.job import Status
from service.jobs.lease import WorkerStore
from service.jobs.store import JobStore, Once, OtherContentError, QueueFullError, QuotaError
from tests.service.backends import Backend
from tests.service.contract.conftest import Claimed, MakeWorker
from tests.service.helpers import LIMIT, a_job

pytestmark = pytest.mark.anyio


async def waiting(store: JobStore) -> int:
    """How many jobs wait."""
    return sum(queue.jobs for queue in (await store.overview()).waiting.values())


# Refusals


async def test_a_full_queue_takes_no_job_until_one_is_claimed(backend: Backend, claim: Claimed):
    store = backend.store(max_queued=2)
    for _ in range(2):
        await store.submit(a_job())
    with pytest.raises(QueueFullError) as refused:
        await store.submit(a_job())
    assert refused.value.jobs == 2
    owned = claim()
    await store.submit(a_job())
    owned.release()  # what runs already comes back, full or not
    assert await waiting(store) == 3
    await store.close()


async def test_an_owner_s_unfinished_work_is_bounded_and_others_are_not(
    backend: Backend, claim: Claimed
):
    store = backend.store(max_owner_cost=150)
    first = await store.submit(a_job(owner="anna", rows=4, calls=50))  # a single one is taken
    with pytest.raises(QuotaError) as refused:
        await store.submit(a_job(owner="anna"))
    assert refused.value.cost == 200
    await store.submit(a_job(owner="bela", rows=2, calls=50))
    owned = claim()
    assert owned.job.id == first.id
    with pytest.raises(QuotaError):
        await store.submit(a_job(owner="anna"))
    owned.succeed({})
    await store.submit(a_job(owner="anna", rows=3, calls=50))
    await store.close()


async def test_a_request_is_carried_out_once(store: JobStore):
    once = Once("key", "content")
    jobs = await asyncio.gather(*(store.submit(a_job(owner="anna"), once=once) for _ in range(20)))
    assert len({job.id for job in jobs}) == 1
    with pytest.raises(OtherContentError) as refused:
        await store.submit(a_job(owner="anna"), once=Once("key", "other"))
    assert refused.value.job_id == jobs[0].id
    others = [
        await store.submit(a_job(owner="bela"), once=once),
        await store.submit(a_job(owner="anna", operation="invert"), once=once),
        await store.submit(a_job(owner="anna"), once=Once("another", "content")),
    ]
    assert len({job.id for job in (*jobs, *others)}) == 4
    assert await waiting(store) == 4


async def test_a_request_s_name_is_free_when_its_job_is_gone_or_its_time_over(backend: Backend):
    store = backend.store(idempotency_ttl=1)
    first = await store.submit(a_job(), once=Once("key", "one"))
    await store.delete(first.id)
    second = await store.submit(a_job(), once=Once("key", "two"))
    async with asyncio.timeout(LIMIT):
        while (again := await store.submit(a_job(), once=Once("key", "two"))).id == second.id:
            await asyncio.sleep(0.05)
    assert (await store.get(second.id)) is not None
    assert again.id != first.id
    await store.close()


# What waits


async def test_a_queued_job_knows_its_place_and_about_when(
    store: JobStore, worker: WorkerStore, make_worker: MakeWorker, claim: Claimed
):
    size = {"rows": 2, "calls": 50}
    batch = await store.submit(a_job(priority="batch", **size))
    first, second = [await store.submit(a_job(**size)) for _ in range(2)]
    await store.submit(a_job(digest="sha256:faces", **size))

    async def places() -> list[tuple[int, float | None]]:
        found = [await store.place(job) for job in (batch, first, second)]
        return [(place.position, place.eta) for place in found if place]

    assert await places() == [(2, None), (0, None), (1, None)], "nobody is there to do it"
    for one in (worker, make_worker("other")):
        one.announce([], ttl=60, rates={"sha256:digits": 5.0})
    assert await places() == [(2, 30.0), (0, 10.0), (1, 20.0)]
    assert claim().job.id == first.id
    # Half of what runs is taken to be done.
    assert await places() == [(1, 25.0), (0, 15.0)]
    assert await store.seconds_for("sha256:digits", 50) == 5.0
    assert await store.seconds_for("sha256:faces", 50) is None


# Lists


async def test_jobs_are_listed_by_owner_newest_first_in_pages(store: JobStore):
    jobs = [await store.submit(a_job(owner="anna")) for _ in range(5)]
    await store.submit(a_job(owner="bela"))
    newest = [job.id for job in reversed(jobs)]
    found, after = [], None
    for expected in (2, 2, 1):
        page = await store.page("anna", 2, after)
        assert len(page.jobs) == expected
        found += [job.id for job in page.jobs]
        after = page.following
    assert found == newest
    assert after is None
    await store.cancel(jobs[1].id)
    canceled = await store.page("anna", 2, None, Status.CANCELED)
    assert [job.id for job in canceled.jobs] == [jobs[1].id]
    assert (await store.page("nobody", 2)).jobs == []


# Webhooks


async def test_a_webhook_is_due_at_the_end_once_and_again_where_it_failed(
    store: JobStore, claim: Claimed
):
    job = (await store.submit(a_job(webhook="https://example.org"))).id
    await store.submit(a_job())
    assert await store.due_webhooks(60, 9) == []
    claim().succeed({})
    claim().succeed({})

    async def due(seconds: float = 60) -> list[tuple[str, int]]:
        return [(job.id, attempt) for job, attempt in await store.due_webhooks(seconds, 9)]

    assert await due() == [(job, 1)]
    assert await due() == [], "somebody else has it"
    await store.webhook_failed(job, pause=60)
    assert await due() == []
    await store.webhook_failed(job, pause=0)
    assert await due(seconds=0.05) == [(job, 2)]
    await asyncio.sleep(0.1)
    assert await due() == [(job, 3)], "whoever had it is dead"
    await store.webhook_done(job)
    await store.webhook_failed(job, pause=0)
    assert await due() == []


async def test_a_webhook_that_is_given_up_or_whose_job_is_deleted_is_forgotten(
    store: JobStore, claim: Claimed
):
    for _ in range(2):
        await store.submit(a_job(webhook="https://example.org"))
    for _ in range(2):
        claim().fail({"title": "no"})
    (first, _), (second, _) = await store.due_webhooks(0.05, 9)
    await store.webhook_failed(first.id, None)
    await store.delete(second.id)
    await asyncio.sleep(0.1)
    assert await store.due_webhooks(60, 9) == []


# Models


async def test_models_outlive_the_workers_that_serve_them(store: JobStore, worker: WorkerStore):
    cards = [{"name": "a", "levels": 17}, {"name": "b", "levels": 256}]
    worker.announce(cards, ttl=60)
    assert await store.live_models() == {"a", "b"}
    worker.withdraw()
    assert await store.live_models() == frozenset()
    assert await store.models() == {card["name"]: card for card in cards}


async def test_a_silent_worker_is_not_alive(
    store: JobStore, worker: WorkerStore, make_worker: MakeWorker
):
    make_worker("loud").announce([{"name": "a"}], ttl=60)
    worker.announce([{"name": "a"}, {"name": "b"}], ttl=0.05)
    await asyncio.sleep(0.1)
    assert [beat.models for beat in await store.beats()] == [["a"]]


async def test_a_store_has_one_secret(backend: Backend):
    first, second = backend.store(), backend.store()
    assert len(await first.secret()) >= 32
    assert await first.secret() == await second.secret()
    for store in (first, second):
        await store.close()
