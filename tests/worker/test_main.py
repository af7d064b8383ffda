"""The claimer over the real Redis and real engines, whose ticks the tests make themselves."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.jobs.errors import StoreError
from service.jobs.job import Job, Status, new_job_id
from service.jobs.lease import Claim, WorkerStore
from service.jobs.redis_store import RedisJobStore
from service.settings import Settings
from tests.worker.conftest import KNEE, Stopped
from worker import main
from worker.courier import Courier
from worker.engine import ROOM, Engine
from worker.main import Claimer
from worker.shelf import ServedModel, Shelf

Submit = Callable[..., str]
StartClaimer = Callable[[Engine], Claimer]
FOREVER = 60.0
FULL = ROOM * KNEE  # rows of one priority that an engine has room for


def until(condition: Callable[[], Any], limit: float = 10.0) -> Any:
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)
    return found


@pytest.fixture
def submit(settings: Settings, served: ServedModel) -> Submit:
    """`submit(rows=…)`: the id of a new job, of which no worker gets a hint."""

    async def store(job: Job) -> None:
        jobs = RedisJobStore(settings)
        await jobs.submit(job)
        await jobs.close()

    def make(rows: int = 1, **changes: Any) -> str:
        parameters = {
            "model": served.name,
            "count": rows,
            "seed": 1,
            "sampler": {"name": "ddpm", "steps": 3},
        }
        job = Job(
            id=new_job_id(),
            operation="generate",
            model=served.name,
            digest=served.checkpoint.digest,
            parameters=parameters,
            rows=rows,
            **changes,
        )
        asyncio.run(store(job))
        return job.id

    return make


@pytest.fixture
def start_claimer(store: WorkerStore, stopped: Stopped, shelf: Shelf) -> Iterator[StartClaimer]:
    """`start_claimer(engine)`: a claimer at work for an engine."""
    claimers: list[Claimer] = []

    def start(engine: Engine) -> Claimer:
        claimers.append(Claimer(store, engine, stopped.courier, shelf))
        claimers[-1].start()
        return claimers[-1]

    yield start
    for claimer in claimers:
        claimer.stop()


def ids(claims: list[Claim]) -> list[str]:
    return [claim.job.id for claim in claims]


def test_a_job_whose_hint_was_swallowed_is_claimed_within_a_second(
    stopped: Stopped, submit: Submit, start_claimer: StartClaimer
) -> None:
    start_claimer(stopped.engine)
    time.sleep(0.1)  # the claimer has found nothing and waits
    job = submit()
    until(lambda: ids(stopped.engine.claims()) == [job], limit=1)


def test_a_hint_wakes_a_claimer_that_found_nothing(
    stopped: Stopped, submit: Submit, start_claimer: StartClaimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_LOOK", FOREVER)
    claimer = start_claimer(stopped.engine)
    job = submit()
    claimer.wake()
    until(lambda: ids(stopped.engine.claims()) == [job])


def test_jobs_are_claimed_while_there_is_room_and_in_order(
    stopped: Stopped, submit: Submit, start_claimer: StartClaimer
) -> None:
    jobs = [submit(rows=FULL // 2) for _ in range(3)]
    start_claimer(stopped.engine)
    until(lambda: len(stopped.engine.claims()) == 2)
    assert ids(stopped.engine.claims()) == jobs[:2]
    time.sleep(2 * main._LOOK)  # in which it looks again, and finds room for batch jobs only
    assert ids(stopped.engine.claims()) == jobs[:2]


def test_the_next_job_is_claimed_as_soon_as_there_is_room_again(
    stopped: Stopped, submit: Submit, start_claimer: StartClaimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_LOOK", FOREVER)
    first, second = submit(rows=FULL), submit(rows=FULL)
    start_claimer(stopped.engine)
    until(lambda: ids(stopped.engine.claims()) == [first])
    until(lambda: stopped.engine.tick() or first not in ids(stopped.engine.claims()))
    until(lambda: ids(stopped.engine.claims()) == [second])
    stopped.run()  # the claimer shall not wait for room when it is stopped


def test_two_workers_share_a_queue(
    stopped: Stopped, shelf: Shelf, submit: Submit, start_claimer: StartClaimer
) -> None:
    other = Engine(shelf, Courier())
    jobs = [submit(rows=FULL) for _ in range(3)]
    start_claimer(stopped.engine)
    until(lambda: ids(stopped.engine.claims()) == jobs[:1])
    start_claimer(other)
    until(lambda: ids(other.claims()) == jobs[1:2])
    until(lambda: stopped.engine.tick() or jobs[0] not in ids(stopped.engine.claims()))
    until(lambda: ids(stopped.engine.claims()) == jobs[2:])


def test_a_claimer_outlives_an_absence_of_redis_and_speaks_of_it_once(
    stopped: Stopped,
    store: WorkerStore,
    submit: Submit,
    start_claimer: StartClaimer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(main, "_PAUSE", 0.01)
    failures = iter([StoreError("away"), StoreError("slow")] * 5)
    claim = store.claim

    def away(*arguments: Any) -> Claim | None:
        for error in failures:
            raise error
        return claim(*arguments)

    monkeypatch.setattr(store, "claim", away)
    job = submit()
    with caplog.at_level(logging.WARNING, logger="worker.main"):
        start_claimer(stopped.engine)
        until(lambda: ids(stopped.engine.claims()) == [job])
    assert [record.message for record in caplog.records] == [
        "no job can be claimed (away); trying every 0.01 s"
    ]


def test_a_job_whose_inputs_cannot_be_read_goes_back_with_the_reason(
    stopped: Stopped,
    store: WorkerStore,
    submit: Submit,
    start_claimer: StartClaimer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "_PAUSE", 0.01)
    failures = iter([StoreError("too slow")])
    read = store.inputs

    def slow(job_id: str) -> bytes | None:
        for error in failures:
            raise error
        return read(job_id)

    monkeypatch.setattr(store, "inputs", slow)
    job = submit()
    start_claimer(stopped.engine)
    [claim] = until(stopped.engine.claims)
    assert (claim.job.id, claim.job.attempt) == (job, 1)
    [(_, said)] = [event for event in stopped.events(claim) if event[0] == "retrying"]
    assert said["reason"] == "its inputs could not be read: too slow"


def test_a_stopped_claimer_claims_no_more(
    stopped: Stopped, submit: Submit, start_claimer: StartClaimer, store: WorkerStore
) -> None:
    claimer = start_claimer(stopped.engine)
    claimer.stop()
    job = submit()
    claimer.wake()
    time.sleep(2 * main._LOOK)
    assert stopped.engine.claims() == []
    assert stopped.client.hget(f"fokker:job:{job}", "status") == Status.QUEUED
