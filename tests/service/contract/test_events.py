"""What a reader of a job's events sees, wherever it starts, and how many of them are kept."""

import asyncio
import json
import threading
from itertools import pairwise
from typing import Any

import pytest

from service.jobs.events import FROM_THE_START, follows
from service.jobs.job import Status
from service.jobs.lease import WorkerStore
from service.jobs.store import READ, JobStore
from tests.service.backends import Backend
from tests.service.contract.conftest import Claimed, MakeWorker
from tests.service.helpers import LIMIT, a_job

pytestmark = pytest.mark.anyio


async def seen_from(store: JobStore, job: str, after: str = FROM_THE_START) -> list[Any]:
    return [event async for event in store.follow(job, after, idle=0.1) if event]


async def test_events_resume_exactly_after_the_last_one_seen(store: JobStore, claim: Claimed):
    job = (await store.submit(a_job())).id
    owned = claim()
    for calls in range(250):
        owned.event("step", {"calls": calls})
    owned.succeed({})
    events = await seen_from(store, job)
    assert len(events) == 253
    assert all(follows(later.id, event.id) for event, later in pairwise(events))
    assert await seen_from(store, job, events[99].id) == events[100:]
    assert await seen_from(store, job, events[-1].id) == []
    assert await store.read_events(job, FROM_THE_START, 1) == events[:READ]


async def test_a_reader_is_woken_by_what_another_thread_writes(store: JobStore, claim: Claimed):
    job = (await store.submit(a_job())).id
    first = (await store.read_events(job, FROM_THE_START, 1))[0].id
    owned = claim()
    started = (await store.read_events(job, first, 1))[0].id
    reading = asyncio.create_task(store.read_events(job, started, 1000 * int(LIMIT)))
    await asyncio.sleep(0.05)
    assert not reading.done()
    writer = threading.Thread(target=owned.event, args=("step", {"calls": 1}))
    writer.start()
    (event,) = await asyncio.wait_for(reading, LIMIT / 2)
    assert event.type == "step"
    writer.join()


async def test_a_quiet_stream_says_so_again_and_again(store: JobStore):
    job = (await store.submit(a_job())).id
    following = store.follow(job, FROM_THE_START, idle=0.02)
    async with asyncio.timeout(LIMIT):
        kinds = [event and event.type for event in [await anext(following) for _ in range(3)]]
    assert kinds == ["queued", None, None]
    await following.aclose()


async def test_a_stream_is_bounded_and_a_reader_who_fell_behind_is_told(
    backend: Backend, make_worker: MakeWorker, claim: Claimed
):
    store, worker = backend.store(stream_length=100), make_worker("bounded", stream_length=100)
    job = (await store.submit(a_job())).id
    first = (await store.read_events(job, FROM_THE_START, 1))[0].id
    owned = claim(worker)
    for calls in range(500):
        owned.event("step", {"calls": calls})
    owned.succeed({})
    gap, *rest = await seen_from(store, job, first)
    assert (gap.type, gap.id) == ("gap", first)
    assert json.loads(gap.data) == {"status": "succeeded", "attempt": 1}
    assert [event.type for event in rest] == ["step"] * (len(rest) - 1) + ["succeeded"]
    assert 99 <= len(rest) <= 200  # Redis trims whole nodes of 100
    assert await seen_from(store, job, rest[5].id) == rest[6:]
    await store.close()


async def test_a_reader_that_stalled_within_a_page_is_told_what_it_missed(
    backend: Backend,
    make_worker: MakeWorker,
    claim: Claimed,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("service.jobs.store.PATIENCE", 0.02)
    store, worker = backend.store(stream_length=100), make_worker("w", stream_length=100)
    job = (await store.submit(a_job())).id
    owned = claim(worker)
    following = store.follow(job, FROM_THE_START, idle=1)
    async with asyncio.timeout(LIMIT):
        assert [(await anext(following)).type for _ in range(2)] == ["queued", "started"]
        for calls in range(500):
            owned.event("step", {"calls": calls})
        await asyncio.sleep(0.05)  # the reader takes longer than it may
        owned.succeed({})
        kinds = [event.type async for event in following if event]
    assert (kinds[0], kinds[-1]) == ("gap", "succeeded")
    assert kinds.count("gap") == 1
    await store.close()


async def test_an_id_before_the_first_is_the_start(store: JobStore, claim: Claimed):
    job = (await store.submit(a_job())).id
    claim().succeed({})
    kinds = [event.type for event in await seen_from(store, job, "0")]
    assert kinds == ["queued", "started", "succeeded"]


async def test_without_a_loss_there_is_no_gap(store: JobStore, claim: Claimed):
    job = (await store.submit(a_job())).id
    first = (await store.read_events(job, FROM_THE_START, 1))[0].id
    claim().succeed({})
    assert [event.type for event in await seen_from(store, job, first)] == ["started", "succeeded"]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"max_previews": 3}, [7, 8, 9]),
        ({"preview_bytes": 250}, [8, 9]),
        ({"preview_bytes": 50}, []),
    ],
)
async def test_the_last_previews_are_kept_and_every_step(
    store: JobStore,
    make_worker: MakeWorker,
    claim: Claimed,
    bounds: dict[str, int],
    kept: list[int],
):
    job = (await store.submit(a_job())).id
    owned = claim(make_worker("w", **bounds))
    for n in range(10):
        owned.event("preview", {"n": n, "image": "x" * 80})
        owned.event("step", {"calls": n})
    owned.succeed({})
    events = await seen_from(store, job)
    assert [json.loads(e.data)["n"] for e in events if e.type == "preview"] == kept
    assert [event.type for event in events].count("step") == 10


# Those who follow


@pytest.mark.parametrize("runs", [False, True])
async def test_an_attached_job_that_nobody_follows_is_canceled(
    store: JobStore,
    worker: WorkerStore,
    claim: Claimed,
    runs: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("service.jobs.store.ABANDONED_AFTER", 0.05)
    job = (await store.submit(a_job(), attached=True)).id
    if runs:
        claim()
    for change in (1, 1, -1):
        await store.watch(job, change)
    await asyncio.sleep(0.1)
    await store.settle()
    assert await status_of(store, job) != Status.CANCELED
    assert worker.canceled() == {}, "somebody follows it still"
    await store.watch(job, -1)
    await store.watch(job, 1)
    await asyncio.sleep(0.1)
    await store.settle()
    assert worker.canceled() == {}, "somebody came back in time"
    await store.watch(job, -1)
    await asyncio.sleep(0.1)
    await store.settle()
    if runs:
        assert worker.canceled() == {job: "abandoned"}
    else:
        assert await status_of(store, job) == Status.CANCELED


async def test_a_job_that_is_attached_to_nobody_may_be_left(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.jobs.store.ABANDONED_AFTER", 0.0)
    job = (await store.submit(a_job())).id
    await store.watch(job, 1)
    await store.watch(job, -1)
    await store.settle()
    assert await status_of(store, job) == Status.QUEUED


async def status_of(store: JobStore, job: str) -> Status:
    found = await store.get(job)
    assert found is not None
    return found.status
