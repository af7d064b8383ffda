"""Which job a worker is given, in which order, and how it keeps or loses what it has."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.jobs.events import FROM_THE_START
from service.jobs.job import Job, Status
from service.jobs.lease import Claim, LeaseLost, WorkerStore
from service.jobs.parameters import Priority
from service.jobs.store import JobStore
from tests.service.contract.conftest import SHORT, Claimed, MakeWorker
from tests.service.helpers import ROOMS, a_job, until

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]
FULL: dict[Priority, int] = {"interactive": 0, "batch": 0}


async def submitted(store: JobStore, *jobs: dict[str, Any]) -> list[str]:
    """The ids of new jobs, in the order in which they were submitted."""
    return [(await store.submit(a_job(**changes))).id for changes in jobs]


def claimed(worker: WorkerStore, rooms: dict[Priority, int] = ROOMS) -> str | None:
    """The id of the job that the worker is given."""
    claim = worker.claim(SERVED, rooms)
    return None if claim is None else claim.job.id


async def status_of(store: JobStore, job_id: str) -> tuple[Status, int]:
    job = await store.get(job_id)
    assert job is not None
    return job.status, job.attempt


async def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.type for event in await store.read_events(job_id, FROM_THE_START, 1)]


# Which job is next


async def test_jobs_are_claimed_in_the_order_of_their_submission(
    store: JobStore, worker: WorkerStore
):
    jobs = await submitted(store, {}, {}, {})
    assert [claimed(worker) for _ in range(4)] == [*jobs, None]


async def test_interactive_jobs_are_claimed_before_batch_jobs_that_came_earlier(
    store: JobStore, worker: WorkerStore
):
    batch, interactive, later = await submitted(
        store, {"priority": "batch"}, {"priority": "interactive"}, {"priority": "batch"}
    )
    assert [claimed(worker) for _ in range(3)] == [interactive, batch, later]


@pytest.mark.parametrize(
    ("interactive", "batch", "expected"),
    [(1, 1, 1), (1, 0, 1), (0, 1, 0), (-8, 1, 0), (0, 0, None), (0, -1, None)],
)
async def test_only_priorities_with_room_are_claimed(
    store: JobStore, worker: WorkerStore, interactive: int, batch: int, expected: int | None
):
    jobs = await submitted(store, {"priority": "batch"}, {"priority": "interactive"})
    wanted = None if expected is None else jobs[expected]
    assert claimed(worker, {"interactive": interactive, "batch": batch}) == wanted


async def test_batch_jobs_wait_while_only_interactive_ones_have_room(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    jobs = await submitted(store, {"priority": "batch"})
    assert claimed(worker, {"interactive": 64, "batch": 0}) is None
    assert claimed(worker, {"interactive": 64}) is None
    assert queued() == jobs


async def test_a_job_larger_than_the_room_is_claimed_while_there_is_any(
    store: JobStore, worker: WorkerStore
):
    large, small = await submitted(store, {"rows": 256}, {"rows": 1})
    assert claimed(worker, {"interactive": 1, "batch": 0}) == large
    assert claimed(worker, FULL) is None
    assert claimed(worker, {"interactive": 1, "batch": 0}) == small


async def test_jobs_of_a_checkpoint_that_is_not_served_are_left_where_they_stand(
    store: JobStore, worker: WorkerStore, queued: Callable[[], list[str]]
):
    faces, digits = await submitted(store, {"digest": "sha256:faces"}, {})
    assert claimed(worker) == digits
    assert claimed(worker) is None
    assert queued() == [faces]
    found = worker.claim(["sha256:other", "sha256:faces"], ROOMS)
    assert found is not None
    assert found.job.id == faces


async def test_of_two_checkpoints_the_job_that_came_first_is_claimed(
    store: JobStore, worker: WorkerStore
):
    jobs = await submitted(store, {"digest": "sha256:faces"}, {}, {"digest": "sha256:faces"})
    claims = [worker.claim([*SERVED, "sha256:faces"], ROOMS) for _ in jobs]
    assert [claim and claim.job.id for claim in claims] == jobs


async def test_a_job_tells_its_worker_how_large_it_is(store: JobStore, claim: Claimed):
    sent: Job = await store.submit(a_job(priority="batch", rows=12, calls=58))
    job = claim().job
    assert (job.id, job.priority, job.rows, job.calls) == (sent.id, "batch", 12, 58)


async def test_of_many_claims_at_once_exactly_one_wins(store: JobStore, worker: WorkerStore):
    await store.submit(a_job())
    gate = threading.Barrier(16)

    def claim(_: int) -> Claim | None:
        gate.wait()
        return worker.claim(SERVED, ROOMS)

    with ThreadPoolExecutor(16) as pool:
        won = [claim for claim in pool.map(claim, range(16)) if claim]
    assert len(won) == 1


async def test_two_workers_share_a_queue_and_no_job(store: JobStore, make_worker: MakeWorker):
    workers = [make_worker("one"), make_worker("two")]
    jobs = await submitted(store, *[{}] * 40)

    def all_of(worker: WorkerStore) -> list[str]:
        return list(iter(lambda: claimed(worker), None))

    with ThreadPoolExecutor(2) as pool:
        shares = list(pool.map(all_of, workers))
    assert sorted(shares[0] + shares[1]) == sorted(jobs)
    for share in shares:
        assert share == sorted(share, key=jobs.index)


# How a job is kept, and lost


async def test_renewing_many_tells_each_its_own_fate(
    store: JobStore, worker: WorkerStore, claim: Claimed
):
    await submitted(store, *[{}] * 5)
    claims = [claim() for _ in range(5)]
    claims[1].succeed({})
    await store.cancel(claims[3].job.id)
    assert worker.renew(claims) == ["held", "lost", "held", "held", "held"]
    assert worker.renew([]) == []


async def test_a_lease_that_is_renewed_is_left_alone(
    store: JobStore, quick: WorkerStore, claim: Claimed
):
    await store.submit(a_job())
    owned = claim(quick)
    end = time.monotonic() + 3 * SHORT
    while time.monotonic() < end:
        assert quick.renew([owned]) == ["held"]
        assert quick.reap() == 0
        time.sleep(SHORT / 10)
    assert quick.renew([owned]) == ["held"]


async def test_the_reaper_requeues_a_lost_job_then_fails_it_after_the_limit(
    store: JobStore, quick: WorkerStore, claim: Claimed, hints: list[str]
):
    job = (await store.submit(a_job(), b"in")).id
    claim(quick)
    assert until(quick.reap) == 1
    assert hints == [job]
    second = claim(quick)
    assert (second.job.attempt, second.inputs()) == (2, b"in")
    await reaped(store, quick, job)
    assert await status_of(store, job) == (Status.FAILED, 2)
    found = await store.get(job)
    assert found is not None
    assert found.error is not None
    assert "stopped answering" in found.error["detail"]
    assert await kinds(store, job) == ["queued", "started", "retrying", "started", "failed"]


async def reaped(store: JobStore, worker: WorkerStore, job_id: str) -> None:
    """Reap until the job has ended."""
    limit = time.monotonic() + 100 * SHORT
    while not (await status_of(store, job_id))[0].finished:
        assert time.monotonic() < limit
        worker.reap()
        time.sleep(SHORT / 10)


async def test_the_reaper_cancels_a_lost_job_that_was_to_be_canceled(
    store: JobStore, quick: WorkerStore, claim: Claimed
):
    job = (await store.submit(a_job())).id
    claim(quick)
    await store.cancel(job)
    await reaped(store, quick, job)
    assert await status_of(store, job) == (Status.CANCELED, 1)


async def test_a_job_that_comes_back_keeps_its_place_and_its_priority(
    store: JobStore, worker: WorkerStore, quick: WorkerStore
):
    first, second, urgent = await submitted(
        store, {"priority": "batch"}, {"priority": "batch"}, {"priority": "interactive"}
    )
    assert claimed(quick, {"interactive": 0, "batch": 1}) == first
    assert until(quick.reap) == 1
    released = worker.claim(SERVED, {"interactive": 0, "batch": 1})
    assert released is not None
    assert released.job.id == first
    released.release("going home")
    assert [claimed(worker) for _ in range(3)] == [urgent, first, second]


async def test_a_worker_that_lost_its_lease_writes_nothing(
    store: JobStore, quick: WorkerStore, claim: Claimed
):
    await store.submit(a_job())
    late = claim(quick)
    until(quick.reap)
    assert quick.renew([late]) == ["lost"]

    def refused() -> None:
        for write in (
            lambda: late.event("step", {}),
            lambda: late.event("preview", {}),
            lambda: late.put_artifact("0.png", "image/png", b"late"),
            lambda: late.succeed({}),
            lambda: late.fail({}),
            lambda: late.cancel("requested"),
            lambda: late.release(),
        ):
            with pytest.raises(LeaseLost):
                write()

    refused()  # while the job waits,
    owner = claim(quick)
    refused()  # while it is another's,
    owner.succeed({"by": "owner"})
    refused()  # and when it has ended
    job = await store.get(late.job.id)
    assert job is not None
    assert (job.result, job.artifacts) == ({"by": "owner"}, {})
    assert await kinds(store, job.id) == ["queued", "started", "retrying", "started", "succeeded"]


async def test_ending_twice_writes_one_terminal_event(store: JobStore, claim: Claimed):
    await store.submit(a_job())
    owned = claim()
    owned.succeed({})
    owned.succeed({})
    with pytest.raises(LeaseLost):
        owned.fail({})
    events = await store.read_events(owned.job.id, FROM_THE_START, 1)
    assert [event.type for event in events if event.last] == ["succeeded"]
