"""The job store against a real Redis, from both of its sides."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from service.jobs import keys
from service.jobs.job import Job, Status
from service.jobs.lease import Claim, LeaseLost, WorkerStore
from service.jobs.store import FROM_THE_START, Event, JobStore
from service.settings import Settings
from tests.service.helpers import ROOMS, a_job, until

pytestmark = pytest.mark.anyio

SERVED = ["sha256:digits"]
SHORT = 0.1  # a lease, in seconds


async def all_events(store: JobStore, job: Job, after: str = FROM_THE_START) -> list[Event]:
    return [event async for event in store.follow(job.id, after, idle=0.2) if event]


async def claimed(store: JobStore, worker: WorkerStore, inputs: bytes | None = None) -> Claim:
    await store.submit(a_job(), inputs)
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    return claim


@pytest.fixture
def quick(settings: Settings, hints: list[str]) -> Iterator[WorkerStore]:
    """A worker whose leases are short, on a server that is up for longer than one."""
    worker = WorkerStore(settings.model_copy(update={"lease": SHORT}), "quick", hints.append)
    with redis.Redis.from_url(settings.require_redis()) as client:
        until(lambda: client.info("server")["uptime_in_seconds"] > SHORT)
    yield worker
    worker.close()


async def test_a_submitted_job_waits_with_its_inputs_and_a_time(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    job = await store.submit(a_job(parameters={"seed": 7}), b"\x00\xff")
    assert job == await store.get(job.id)
    assert (job.status, job.attempt, job.parameters) == (Status.QUEUED, 1, {"seed": 7})
    assert job.created is not None
    assert abs(job.created - time.time()) < 60
    assert queued() == [job.id]
    assert worker.inputs(job.id) == b"\x00\xff"


async def test_a_job_submitted_twice_is_stored_once(store: JobStore):
    job = await store.submit(a_job())
    await store.submit(job)
    assert len(await store.read_events(job.id, FROM_THE_START, 1)) == 1


async def test_an_unknown_job_is_none_to_everyone(store: JobStore, worker: WorkerStore):
    assert await store.get("nobody") is None
    assert await store.cancel("nobody") is None
    assert await store.artifact("nobody", "0.png") is None


async def test_a_claimed_job_runs_and_ends_with_its_result_and_artifacts(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    claim = await claimed(store, worker, b"in")
    assert claim.job.status == Status.RUNNING
    assert claim.inputs() == b"in"
    assert queued() == []
    claim.event("step", {"calls": 3, "progress": 0.5})
    claim.put_artifact("0.png", "image/png", b"\x89PNG")
    claim.succeed({"images": [{"artifact": "0.png"}]})
    job = await store.get(claim.job.id)
    assert job is not None
    assert job.status == Status.SUCCEEDED
    assert job.result == {"images": [{"artifact": "0.png"}]}
    assert job.artifacts == {"0.png": "image/png"}
    assert job.created <= job.started <= job.finished
    assert await store.artifact(job.id, "0.png") == ("image/png", b"\x89PNG")
    events = await all_events(store, job)
    assert [event.type for event in events] == ["queued", "started", "step", "succeeded"]
    assert events[-1].id == job.last_event
    assert claim.inputs() is None


async def test_all_that_a_finished_job_leaves_behind_expires(
    store: JobStore, worker: WorkerStore, settings: Settings
):
    claim = await claimed(store, worker, b"in")
    claim.put_artifact("0.png", "image/png", b"x")
    with redis.Redis.from_url(settings.require_redis()) as client:
        owned = list(client.scan_iter(keys.job(claim.job.id) + "*"))
        assert len(owned) == 4
        claim.fail({"title": "no"})
        owned = list(client.scan_iter(keys.job(claim.job.id) + "*"))
        assert len(owned) == 3
        assert all(0 < client.ttl(key) <= settings.job_ttl for key in owned)


async def test_a_worker_does_not_get_a_job_of_another_checkpoint(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    job = await store.submit(a_job())
    assert worker.claim(["sha256:other"], ROOMS) is None
    assert queued() == [job.id]


async def test_of_many_claims_at_once_exactly_one_wins(store: JobStore, worker: WorkerStore):
    await store.submit(a_job())
    gate = threading.Barrier(16)

    def claim(_: int) -> Claim | None:
        gate.wait()
        return worker.claim(SERVED, ROOMS)

    with ThreadPoolExecutor(16) as pool:
        won = [claim for claim in pool.map(claim, range(16)) if claim]
    assert len(won) == 1


async def test_a_queued_job_is_canceled_at_once(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    job = await store.submit(a_job())
    canceled = await store.cancel(job.id)
    assert canceled is not None
    assert canceled.status == Status.CANCELED
    assert queued() == []
    assert worker.claim(SERVED, ROOMS) is None
    assert [event.type for event in await all_events(store, job)] == ["queued", "canceled"]


async def test_renewing_tells_the_worker_that_its_job_is_to_be_canceled(
    store: JobStore, worker: WorkerStore
):
    claim = await claimed(store, worker)
    assert worker.renew([claim]) == ["held"]
    asked = await store.cancel(claim.job.id)
    assert asked is not None
    assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)
    assert worker.canceled() == {claim.job.id: "requested"}
    assert worker.renew([claim]) == ["held"]
    claim.cancel("requested")
    ended = await store.get(claim.job.id)
    assert ended is not None
    assert ended.status == Status.CANCELED


async def test_canceling_a_finished_job_changes_nothing(store: JobStore, worker: WorkerStore):
    claim = await claimed(store, worker)
    claim.succeed({})
    before = await store.get(claim.job.id)
    assert await store.cancel(claim.job.id) == before


async def test_a_released_job_waits_again_at_the_same_attempt(
    store: JobStore, worker: WorkerStore, hints: list[str]
):
    claim = await claimed(store, worker)
    claim.release("going home")
    assert hints == [claim.job.id]
    again = worker.claim(SERVED, ROOMS)
    assert again is not None
    assert again.job.attempt == 1
    again.succeed({})
    kinds = [event.type for event in await all_events(store, claim.job)]
    assert kinds == ["queued", "started", "retrying", "started", "succeeded"]


async def test_a_released_job_whose_owner_asked_to_cancel_ends(
    store: JobStore, worker: WorkerStore
):
    claim = await claimed(store, worker)
    await store.cancel(claim.job.id)
    claim.release()
    assert (await all_events(store, claim.job))[-1].type == "canceled"


async def test_a_live_lease_is_left_alone(store: JobStore, worker: WorkerStore, quick: WorkerStore):
    claim = await claimed(store, worker)
    assert until(lambda: _took_the_lock(quick)) == "done"
    assert worker.renew([claim]) == ["held"]


def _took_the_lock(worker: WorkerStore) -> str | None:
    with redis.Redis.from_url(worker.settings.require_redis()) as client:
        free = not client.exists(keys.REAPER)
    worker.reap()
    return "done" if free else None


async def test_the_reaper_requeues_a_lost_job_then_fails_it_after_the_limit(
    store: JobStore, quick: WorkerStore, hints: list[str]
):
    first = await claimed(store, quick, b"in")
    assert until(quick.reap) == 1
    assert hints == [first.job.id]
    second = quick.claim(SERVED, ROOMS)
    assert second is not None
    assert (second.job.attempt, second.inputs()) == (2, b"in")
    until(lambda: quick.reap() or _finished(quick, first.job.id))
    job = await store.get(first.job.id)
    assert job is not None
    assert (job.status, job.attempt) == (Status.FAILED, 2)
    assert job.error is not None
    assert "stopped answering" in job.error["detail"]
    kinds = [event.type for event in await all_events(store, job)]
    assert kinds == ["queued", "started", "retrying", "started", "failed"]


def _finished(worker: WorkerStore, job_id: str) -> bool:
    with redis.Redis.from_url(worker.settings.require_redis()) as client:
        return client.hexists(keys.job(job_id), "finished")


async def test_the_reaper_cancels_a_lost_job_that_was_to_be_canceled(
    store: JobStore, quick: WorkerStore
):
    claim = await claimed(store, quick)
    await store.cancel(claim.job.id)
    until(lambda: quick.reap() or _finished(quick, claim.job.id))
    job = await store.get(claim.job.id)
    assert job is not None
    assert job.status == Status.CANCELED


async def test_a_worker_that_lost_its_lease_writes_nothing(store: JobStore, quick: WorkerStore):
    late = await claimed(store, quick)
    until(quick.reap)
    assert quick.renew([late]) == ["lost"]
    for write in (
        lambda: late.event("step", {}),
        lambda: late.put_artifact("0.png", "image/png", b"late"),
        lambda: late.succeed({}),
        lambda: late.fail({}),
        lambda: late.cancel("requested"),
        lambda: late.release(),
    ):
        with pytest.raises(LeaseLost):
            write()
    owner = quick.claim(SERVED, ROOMS)
    assert owner is not None
    with pytest.raises(LeaseLost):
        late.succeed({"by": "late"})
    owner.succeed({"by": "owner"})
    with pytest.raises(LeaseLost):
        late.succeed({"by": "late"})
    job = await store.get(late.job.id)
    assert job is not None
    assert (job.result, job.artifacts) == ({"by": "owner"}, {})
    kinds = [event.type for event in await store.read_events(job.id, FROM_THE_START, 1)]
    assert kinds == ["queued", "started", "retrying", "started", "succeeded"]


async def test_ending_twice_writes_one_terminal_event(store: JobStore, worker: WorkerStore):
    claim = await claimed(store, worker)
    claim.succeed({})
    claim.succeed({})
    with pytest.raises(LeaseLost):
        claim.fail({})
    events = await store.read_events(claim.job.id, FROM_THE_START, 1)
    assert [event.type for event in events if event.last] == ["succeeded"]


async def test_models_outlive_the_workers_that_serve_them(store: JobStore, worker: WorkerStore):
    cards = [{"name": "a", "levels": 17}, {"name": "b", "levels": 256}]
    worker.announce(cards, ttl=60)
    assert await store.live_models() == {"a", "b"}
    worker.withdraw()
    assert await store.live_models() == frozenset()
    assert await store.models() == {card["name"]: card for card in cards}


async def test_a_silent_worker_is_not_alive(store: JobStore, worker: WorkerStore):
    worker.announce([{"name": "a"}], ttl=0.05)
    with redis.Redis.from_url(worker.settings.require_redis()) as client:
        until(lambda: not client.exists(keys.worker(worker.worker_id)))
    assert await store.live_models() == frozenset()


async def test_events_resume_exactly_after_the_last_one_seen(store: JobStore, worker: WorkerStore):
    claim = await claimed(store, worker)
    for calls in range(250):
        claim.event("step", {"calls": calls})
    claim.succeed({})
    events = await all_events(store, claim.job)
    assert len(events) == 253
    assert await all_events(store, claim.job, after=events[99].id) == events[100:]
    assert await all_events(store, claim.job, after=events[-1].id) == []


async def test_a_stream_is_bounded(settings: Settings, store: JobStore, hints: list[str]):
    bounded = settings.model_copy(update={"stream_length": 100})
    worker = WorkerStore(bounded, "bounded", hints.append)
    claim = await claimed(store, worker)
    for calls in range(500):
        claim.event("step", {"calls": calls})
    claim.succeed({})
    assert len(await all_events(store, claim.job)) <= 200  # Redis trims whole nodes of 100
    worker.close()
