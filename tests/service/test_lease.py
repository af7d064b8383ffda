"""Which job a worker is given, in which order, and how it keeps what it has."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from service.jobs import keys
from service.jobs.job import Job
from service.jobs.lease import Claim, WorkerStore
from service.jobs.parameters import Priority
from service.jobs.store import FROM_THE_START, JobStore
from service.settings import Settings
from tests.service.helpers import ROOMS, a_job, until

pytestmark = pytest.mark.anyio

SERVED = ["sha256:digits"]
FULL: dict[Priority, int] = {"interactive": 0, "batch": 0}

MakeWorker = Callable[..., WorkerStore]


@pytest.fixture
def make_worker(settings: Settings, hints: list[str]) -> Iterator[MakeWorker]:
    """`make_worker(name, lease=…)`: one more worker over the same Redis."""
    made: list[WorkerStore] = []

    def make(name: str, **changes: Any) -> WorkerStore:
        made.append(WorkerStore(settings.model_copy(update=changes), name, hints.append))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


async def submitted(store: JobStore, *jobs: dict[str, Any]) -> list[str]:
    """The ids of new jobs, in the order in which they were submitted."""
    return [(await store.submit(a_job(**changes))).id for changes in jobs]


def claimed(worker: WorkerStore, rooms: dict[Priority, int] = ROOMS) -> str | None:
    """The id of the job that the worker is given."""
    claim = worker.claim(SERVED, rooms)
    return None if claim is None else claim.job.id


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


async def test_a_released_job_keeps_its_place(store: JobStore, worker: WorkerStore):
    first, second = await submitted(store, {}, {})
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    claim.release("going home")
    assert [claimed(worker), claimed(worker)] == [first, second]


async def test_a_job_of_a_lost_worker_keeps_its_place_and_its_priority(
    store: JobStore, make_worker: MakeWorker, redis_url: str
):
    quick = make_worker("quick", lease=0.1)
    first, second, urgent = await submitted(
        store, {"priority": "batch"}, {"priority": "batch"}, {"priority": "interactive"}
    )
    assert claimed(quick, {"interactive": 0, "batch": 1}) == first
    with redis.Redis.from_url(redis_url) as client:
        until(lambda: client.info("server")["uptime_in_seconds"] > 0)
    assert until(quick.reap) == 1
    assert [claimed(quick) for _ in range(3)] == [urgent, first, second]


def lose_the_answer(worker: WorkerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's next claim is done in Redis, but its answer does not arrive."""
    ask = worker._run

    def deaf(script: str, *arguments: Any, **named: Any) -> Any:
        ask(script, *arguments, **named)
        monkeypatch.undo()
        raise redis.TimeoutError("the answer is lost")

    monkeypatch.setattr(worker, "_run", deaf)


async def test_a_claim_whose_answer_was_lost_is_given_again_and_no_other(
    store: JobStore, worker: WorkerStore, monkeypatch: pytest.MonkeyPatch
):
    first, second = await submitted(store, {"priority": "batch"}, {"priority": "batch"})
    lose_the_answer(worker, monkeypatch)
    with pytest.raises(redis.TimeoutError):
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
    store: JobStore, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch, redis_url: str
):
    deaf, other = make_worker("deaf", lease=0.1), make_worker("other")
    [job] = await submitted(store, {})
    lose_the_answer(deaf, monkeypatch)
    with pytest.raises(redis.TimeoutError):
        deaf.claim(SERVED, ROOMS)
    with redis.Redis.from_url(redis_url) as client:
        until(lambda: client.info("server")["uptime_in_seconds"] > 0)
    until(deaf.reap)
    assert claimed(other) == job
    assert claimed(deaf) is None


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


async def five_claims(store: JobStore, worker: WorkerStore) -> list[Claim]:
    await submitted(store, *[{}] * 5)
    claims = [worker.claim(SERVED, ROOMS) for _ in range(5)]
    return [claim for claim in claims if claim is not None]


async def test_renewing_many_tells_each_its_own_fate(store: JobStore, worker: WorkerStore):
    claims = await five_claims(store, worker)
    claims[1].succeed({})
    await store.cancel(claims[3].job.id)
    assert worker.renew(claims) == ["held", "lost", "held", "held", "held"]
    assert worker.renew([]) == []


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


async def test_a_job_tells_its_worker_how_large_it_is(store: JobStore, worker: WorkerStore):
    sent: Job = await store.submit(a_job(priority="batch", rows=12, calls=58))
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    assert (claim.job.id, claim.job.priority, claim.job.rows, claim.job.calls) == (
        sent.id,
        "batch",
        12,
        58,
    )
