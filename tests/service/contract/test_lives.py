"""What becomes of a job: it ends by its worker, by whoever cancels it, by its deadline."""

import asyncio
import time
from collections.abc import Callable

import pytest

from service.jobs.events import FROM_THE_START, Event
from service.jobs.job import Job, Status
from service.jobs.lease import JobDeleted, WorkerStore
from service.jobs.store import JobStore
from tests.service.backends import Backend
from tests.service.contract.conftest import Claimed, MakeWorker
from tests.service.helpers import LIMIT, ROOMS, a_job

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]
SOON = 0.2  # seconds until a deadline


async def all_events(store: JobStore, job: Job, after: str = FROM_THE_START) -> list[Event]:
    return [event async for event in store.follow(job.id, after, idle=0.2) if event]


async def kinds(store: JobStore, job: Job) -> list[str]:
    return [event.type for event in await all_events(store, job)]


async def found(store: JobStore, job: Job) -> Job:
    job_now = await store.get(job.id)
    assert job_now is not None
    return job_now


async def passed(job: Job) -> None:
    """Wait until the job's deadline is over."""
    assert job.deadline is not None
    while time.time() <= job.deadline:
        await asyncio.sleep(0.01)


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
    assert await store.submit(job) == job
    assert len(await store.read_events(job.id, FROM_THE_START, 1)) == 1


async def test_an_unknown_job_is_none_to_everyone(store: JobStore, worker: WorkerStore):
    assert await store.get("nobody") is None
    assert await store.cancel("nobody") is None
    assert await store.artifact("nobody", "0.png") is None
    assert await store.place(a_job()) is None
    assert worker.inputs("nobody") is None
    await store.delete("nobody")
    await store.watch("nobody", 1)


async def test_a_claimed_job_runs_and_ends_with_its_result_and_artifacts(
    store: JobStore, claim: Claimed, queued: Callable[[], list[str]]
):
    await store.submit(a_job(), b"in")
    owned = claim()
    assert owned.job.status == Status.RUNNING
    assert owned.inputs() == b"in"
    assert queued() == []
    owned.event("step", {"calls": 3, "progress": 0.5})
    owned.put_artifact("0.png", "image/png", b"\x89PNG")
    owned.succeed({"images": [{"artifact": "0.png"}]})
    job = await found(store, owned.job)
    assert job.status == Status.SUCCEEDED
    assert job.result == {"images": [{"artifact": "0.png"}]}
    assert job.artifacts == {"0.png": "image/png"}
    assert job.created <= job.started <= job.finished
    artifact = await store.artifact(job.id, "0.png")
    assert artifact is not None
    assert (artifact[0], artifact[1].read()) == ("image/png", b"\x89PNG")
    events = await all_events(store, job)
    assert [event.type for event in events] == ["queued", "started", "step", "succeeded"]
    assert events[-1].id == job.last_event
    assert owned.inputs() is None


async def test_what_is_no_json_is_no_result(store: JobStore, claim: Claimed):
    job = await store.submit(a_job())
    with pytest.raises(ValueError, match="JSON"):
        claim().succeed({"nats": float("nan")})
    assert (await found(store, job)).status == Status.RUNNING


async def test_a_queued_job_is_canceled_at_once(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    job = await store.submit(a_job())
    canceled = await store.cancel(job.id)
    assert canceled is not None
    assert (canceled.status, canceled.cancel_reason) == (Status.CANCELED, "requested")
    assert queued() == []
    assert worker.claim(SERVED, ROOMS) is None
    assert await kinds(store, job) == ["queued", "canceled"]


async def test_the_owner_of_a_running_job_is_asked_to_stop(
    store: JobStore, worker: WorkerStore, claim: Claimed
):
    await store.submit(a_job())
    owned = claim()
    assert worker.canceled() == {}
    asked = await store.cancel(owned.job.id)
    assert asked is not None
    assert (asked.status, asked.cancel_requested) == (Status.RUNNING, True)
    assert worker.canceled() == {owned.job.id: "requested"}
    assert worker.renew([owned]) == ["held"]
    owned.cancel("requested")
    assert (await found(store, owned.job)).status == Status.CANCELED
    assert worker.canceled() == {}


async def test_canceling_a_finished_job_changes_nothing(store: JobStore, claim: Claimed):
    job = await store.submit(a_job())
    claim().succeed({})
    before = await store.get(job.id)
    assert await store.cancel(job.id) == before


async def test_a_released_job_waits_again_at_the_same_attempt(
    store: JobStore, claim: Claimed, hints: list[str]
):
    job = await store.submit(a_job())
    claim().release("going home")
    assert hints == [job.id]
    again = claim()
    assert again.job.attempt == 1
    again.succeed({})
    assert await kinds(store, job) == ["queued", "started", "retrying", "started", "succeeded"]


async def test_a_released_job_whose_owner_asked_to_cancel_ends(store: JobStore, claim: Claimed):
    job = await store.submit(a_job())
    owned = claim()
    await store.cancel(job.id)
    owned.release()
    assert (await kinds(store, job))[-1] == "canceled"


async def test_a_deleted_job_is_gone_for_everyone(
    store: JobStore, worker: WorkerStore, claim: Claimed, queued: Callable[[], list[str]]
):
    waits, runs, ended = [await store.submit(a_job()) for _ in range(3)]
    await store.delete(waits.id)
    owned, last = claim(), claim()
    owned.put_artifact("0.png", "image/png", b"x")
    last.succeed({})
    await store.delete(runs.id)
    await store.delete(ended.id)
    assert queued() == []
    assert worker.renew([owned]) == ["deleted"]
    for write in (owned.release, lambda: owned.event("step", {}), lambda: owned.succeed({})):
        with pytest.raises(JobDeleted):
            write()
    for job in (waits, runs, ended):
        assert await store.get(job.id) is None
        assert await store.read_events(job.id, FROM_THE_START, 1) == []
    assert await store.artifact(runs.id, "0.png") is None
    assert (await store.page("", 10)).jobs == []
    assert (await store.overview()).waiting == {}


async def test_a_deleted_job_ends_its_stream(store: JobStore):
    job = (await store.submit(a_job())).id
    async with asyncio.timeout(LIMIT):
        seen = []
        async for event in store.follow(job, FROM_THE_START, idle=0.1):
            seen.append(event and event.type)
            await store.delete(job)
    assert seen == ["queued"]


async def test_a_finished_job_expires_with_all_that_it_has(
    backend: Backend, claim: Claimed, make_worker: MakeWorker
):
    store = backend.store(job_ttl=1)
    owned = claim(make_worker("w", job_ttl=1)) if await store.submit(a_job(owner="anna")) else None
    assert owned is not None
    owned.put_artifact("0.png", "image/png", b"x")
    owned.succeed({})
    waits = await store.submit(a_job(owner="anna"))
    async with asyncio.timeout(LIMIT):
        while await store.get(owned.job.id):
            await asyncio.sleep(0.05)
    assert await store.artifact(owned.job.id, "0.png") is None
    assert await store.read_events(owned.job.id, FROM_THE_START, 1) == []
    assert [job.id for job in (await store.page("anna", 10)).jobs] == [waits.id]
    await store.close()


# Deadlines


async def test_the_deadline_is_part_of_the_job(store: JobStore):
    job = await store.submit(a_job(), cancel_after=90)
    assert job.created is not None
    assert job.deadline == pytest.approx(job.created + 90, abs=1e-3)
    assert (await store.submit(a_job())).deadline is None


async def test_a_late_job_is_not_claimed(store: JobStore, claim: Claimed):
    late = await store.submit(a_job(), cancel_after=0.01)
    job = await store.submit(a_job())
    await passed(late)
    assert claim().job.id == job.id
    assert (await found(store, late)).status is Status.ABORTED
    assert await kinds(store, late) == ["queued", "aborted"]


async def test_with_no_worker_alive_a_late_job_is_aborted(store: JobStore):
    job = await store.submit(a_job(), cancel_after=SOON)
    await store.settle()
    assert (await found(store, job)).status is Status.QUEUED
    await passed(job)
    await store.settle()
    assert (await found(store, job)).status is Status.ABORTED


async def test_the_owner_of_a_late_job_is_asked_to_stop(
    store: JobStore, worker: WorkerStore, claim: Claimed
):
    job = await store.submit(a_job(), cancel_after=SOON)
    owned = claim()
    await passed(job)
    await store.settle()
    assert worker.canceled() == {job.id: "deadline"}
    owned.cancel("deadline")
    ended = await found(store, job)
    assert (ended.status, ended.cancel_reason) == (Status.CANCELED, "deadline")


async def test_a_late_job_of_a_lost_worker_is_canceled(
    store: JobStore, make_worker: MakeWorker, claim: Claimed
):
    job = await store.submit(a_job(), cancel_after=SOON)
    claim(make_worker("lost", lease=0.05))
    await passed(job)
    await store.settle()
    settled = await found(store, job)
    assert (settled.status, settled.cancel_reason) == (Status.CANCELED, "deadline")


async def test_a_job_that_ended_in_time_stays_as_it_is(store: JobStore, claim: Claimed):
    job = await store.submit(a_job(), cancel_after=SOON)
    claim().succeed({})
    await passed(job)
    await store.settle()
    assert (await found(store, job)).status is Status.SUCCEEDED


async def test_a_job_that_was_handed_back_late_is_aborted_once(store: JobStore, claim: Claimed):
    job = await store.submit(a_job(), cancel_after=SOON)
    owned = claim()
    await passed(job)
    owned.release()
    await store.settle()
    await store.settle()
    assert await kinds(store, job) == ["queued", "started", "retrying", "aborted"]
