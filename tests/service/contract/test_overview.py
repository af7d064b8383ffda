"""What the job store tells operators."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from service.jobs.lease import WorkerStore
from service.jobs.overview import Overview
from service.jobs.store import JobStore
from tests.service.helpers import LIMIT, ROOMS, a_job

pytestmark = pytest.mark.anyio

DIGITS, FACES = "sha256:digits", "sha256:faces"


async def test_every_queue_tells_its_jobs_their_cost_and_how_long_its_first_waits(store: JobStore):
    first = await store.submit(a_job(rows=4, calls=10))
    await store.submit(a_job(rows=1, calls=100))
    await store.submit(a_job(rows=2, calls=3, priority="batch", digest=FACES))
    earliest = time.time() - first.created
    seen = await store.overview()
    assert set(seen.waiting) == {(DIGITS, "interactive"), (FACES, "batch")}
    digits, faces = seen.waiting[DIGITS, "interactive"], seen.waiting[FACES, "batch"]
    assert (digits.jobs, digits.row_calls) == (2, 140)
    assert (faces.jobs, faces.row_calls) == (1, 6)
    assert digits.oldest >= faces.oldest >= 0
    assert earliest <= digits.oldest <= time.time() - first.created


async def test_a_job_that_is_taken_up_again_waits_since_it_was_first_submitted(
    store: JobStore, worker: WorkerStore
):
    job = await store.submit(a_job())
    claim = worker.claim([DIGITS], ROOMS)
    assert claim
    claim.release()
    seen = await store.overview()
    assert seen.waiting[DIGITS, "interactive"].oldest >= time.time() - job.created - 1
    assert seen.counts["released",] == 1


async def test_claimed_jobs_run_and_cost_their_checkpoint(store: JobStore, worker: WorkerStore):
    await store.submit(a_job(rows=4, calls=10))
    assert worker.claim([DIGITS], ROOMS)
    seen = await store.overview()
    assert (seen.running, seen.overdue, seen.waiting) == (1, 0, {})
    assert seen.row_calls_running == {DIGITS: 40}


async def test_every_end_is_counted_whoever_ends_the_job(store: JobStore, worker: WorkerStore):
    await store.submit(a_job())
    claim = worker.claim([DIGITS], ROOMS)
    assert claim
    claim.succeed({})
    claim.succeed({})  # sent again after a lost answer: one end
    queued = await store.submit(a_job(operation="invert"))
    await store.cancel(queued.id)
    await store.submit(a_job(), cancel_after=0)
    await store.settle()
    counts = (await store.overview()).counts
    assert counts["submitted", "generate", "digits"] == 2
    assert counts["submitted", "invert", "digits"] == 1
    assert {what: times for what, times in counts.items() if what[0] == "ended"} == {
        ("ended", "generate", "digits", "succeeded"): 1,
        ("ended", "invert", "digits", "canceled"): 1,
        ("ended", "generate", "digits", "aborted"): 1,
    }


async def test_a_lease_that_ended_is_overdue_until_it_is_reaped(
    store: JobStore, quick: WorkerStore
):
    await store.submit(a_job())
    for outcome in ("queued", "failed"):
        assert quick.claim([DIGITS], ROOMS)
        await _until(store, lambda seen: seen.overdue == 1)

        def reaped(seen: Overview, outcome: str = outcome) -> bool:
            quick.reap()
            return seen.counts["expired", outcome] == 1

        seen = await _until(store, reaped)
        assert (seen.overdue, seen.running) == (0, 0)
    assert seen.counts["ended", "generate", "digits", "failed"] == 1


async def test_nothing_is_nothing(store: JobStore):
    seen = await store.overview()
    assert replace(seen, memory_used=0, memory_limit=0) == Overview()


async def _until(store: JobStore, condition: Callable[[Overview], bool]) -> Overview:
    limit = time.monotonic() + LIMIT
    while not condition(seen := await store.overview()):
        assert time.monotonic() < limit, "the condition never came true"
    return seen
