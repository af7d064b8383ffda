"""What clients see when processes die, stop or starve: real processes, real signals.

Each test says in its last line what it counted; benchmarks/RESULTS.md has those lines.
"""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import psutil
import pytest
import redis

from service.client import Client
from service.redis_server import find_executable, free_port
from tests.e2e.conftest import start_api
from tests.e2e.running import Part, Service, wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
T = TypeVar("T")
LEASE = 4.0  # seconds
JOBS, STREAMS = 20, 50


class OwnRedis:
    """A Redis server that keeps an append-only file, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start it on the same port, with the data that its file has."""
        options = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [find_executable(), *place, *options], stdout=log, stderr=log
            )
        wait_until(self._answers, "Redis to answer")

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = OwnRedis(folder)
    yield server
    server.kill()


StartApi = Callable[[], Service]


@pytest.fixture
def start(own_redis: OwnRedis, tmp_path: Path) -> Iterator[StartApi]:
    """`start()`: one more API process over the test's own Redis; its workers are stopped, too."""
    with ExitStack() as stack:

        def start_one() -> Service:
            folder = tmp_path / f"api-{free_port()}"
            folder.mkdir()
            service = start_api(stack, own_redis.url, folder, FOKKER_LEASE=str(LEASE))
            begin = service.start_worker

            def start_worker(**environment: str) -> Part:
                worker = begin(FOKKER_LEASE=str(LEASE), **environment)
                stack.callback(worker.stop)
                return worker

            service.start_worker = start_worker  # type: ignore[method-assign]
            return service

        yield start_one


def request(seed: int, steps: int = 200) -> dict[str, Any]:
    sampler = {"name": "ddpm", "steps": steps}
    return {"model": "digits", "count": 1, "seed": seed, "sampler": sampler, "format": "npy"}


def submitted(service: Service, steps: int = 200, count: int = JOBS) -> list[dict[str, Any]]:
    return [service.submit("/generate", request(seed, steps)) for seed in range(count)]


def running(service: Service, jobs: list[dict[str, Any]]) -> bool:
    return all(service.get(job)["status"] == "running" for job in jobs)


def images(service: Service, job: dict[str, Any]) -> np.ndarray:
    """Of a finished job, in levels."""
    return service.array(job, "images.npy")


def kinds(service: Service, job: dict[str, Any]) -> Counter[str]:
    return Counter(event.event for event in service.events(job))


def settled(measure: Callable[[], T], seconds: float = 1.0) -> T:
    """What is measured, when it has been the same for some seconds."""
    since, found = time.monotonic(), measure()

    def still() -> bool:
        nonlocal since, found
        if (now := measure()) != found:
            since, found = time.monotonic(), now
        return time.monotonic() - since > seconds

    wait_until(still, "what is measured to settle")
    return found


def test_a_killed_worker_s_jobs_are_done_by_another_just_the_same(start: StartApi) -> None:
    service = start()
    first = service.start_worker()
    undisturbed = [images(service, service.succeeded(job)) for job in submitted(service)]
    jobs = submitted(service)
    wait_until(lambda: running(service, jobs), "all jobs to run")
    first.kill_group()
    killed = time.monotonic()
    second = Part(service.folder, "worker", FOKKER_REDIS_URL=service.redis_url, FOKKER_LEASE="4")
    try:
        wait_until(lambda: service.get(jobs[0])["attempt"] == 2, "the second attempt")
        again = time.monotonic() - killed
        ended = [service.succeeded(job) for job in jobs]
        assert [job["attempt"] for job in ended] == [2] * JOBS
        # To the float32 of a network whose batches were composed otherwise, far below a level.
        for job, expected in zip(ended, undisturbed, strict=True):
            np.testing.assert_allclose(images(service, job), expected, atol=1e-3)
        assert all(kinds(service, job)["succeeded"] == 1 for job in jobs)
        assert again < 2 * LEASE
    finally:
        second.stop()
    print(f"\n1. {JOBS} of {JOBS} jobs done again and equal; second attempt after {again:.1f} s")


def test_jobs_and_streams_outlive_redis(start: StartApi, own_redis: OwnRedis) -> None:
    service = start()
    service.start_worker()
    jobs = submitted(service, steps=400)
    seen: dict[int, list[tuple[str, str]]] = {n: [] for n in range(STREAMS)}

    def follow(n: int) -> None:
        with Client(str(service.client.base_url), retries=20) as client:
            for event in client.events(jobs[n % JOBS]["id"]):
                seen[n].append((event.id, event.type))

    threads = [threading.Thread(target=follow, args=(n,)) for n in range(STREAMS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: running(service, jobs) and all(seen.values()), "jobs and streams")
    own_redis.kill()
    answer = service.client.post("/generate", json=request(1))
    assert answer.status_code == 503
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) > 0
    assert service.client.get("/healthz").status_code == 200
    assert service.ready() == 503
    own_redis.start()
    ended = [service.succeeded(job) for job in jobs]
    for thread in threads:
        thread.join(60)
    for n, events in seen.items():
        whole = [(event.id, event.event) for event in service.events(jobs[n % JOBS])]
        assert events == whole, "a gap or a repeat"
    attempts = Counter(job["attempt"] for job in ended)
    print(f"\n2. {JOBS} jobs ended, attempts {dict(attempts)}; {STREAMS} streams whole")


def test_a_worker_that_slept_through_its_lease_writes_nothing_more(start: StartApi) -> None:
    service = start()
    sleeper = service.start_worker()
    jobs = submitted(service, count=5)
    wait_until(lambda: running(service, jobs), "all jobs to run")
    sleeper.process.send_signal(signal.SIGSTOP)
    second = Part(service.folder, "worker", FOKKER_REDIS_URL=service.redis_url, FOKKER_LEASE="4")
    try:
        ended = [service.succeeded(job) for job in jobs]
    finally:
        second.stop()
    sleeper.process.send_signal(signal.SIGCONT)
    service.succeeded(service.submit("/generate", request(9)))  # by the sleeper: it is awake
    sleeper.stop()  # and what it still had to say, it has tried to
    for job in ended:
        assert job["attempt"] == 2
        assert service.get(job) | {"links": None} == job | {"links": None}
        told = kinds(service, job)
        assert (told["succeeded"], told["started"]) == (1, 2)
    print("\n3. 5 jobs done by the second worker; nothing written by the first one after it woke")


def test_a_request_sent_fifty_times_at_once_is_one_job(start: StartApi) -> None:
    service = start()
    service.start_worker()

    def send(_: int) -> str:
        with httpx.Client(base_url=service.client.base_url, timeout=30) as client:
            answer = client.post("/generate", json=request(1), headers={"Idempotency-Key": "k"})
            return str(answer.raise_for_status().json()["id"])

    with ThreadPoolExecutor(50) as pool:
        ids = set(pool.map(send, range(50)))
    assert len(ids) == 1
    assert len(service.client.get("/jobs").json()["jobs"]) == 1
    print("\n4. 50 requests, 1 job")


def test_a_stream_goes_on_at_another_api_process(start: StartApi) -> None:
    first, second = start(), start()
    first.start_worker()
    job = first.submit("/generate", request(1, steps=1000))
    events = first.events(job)
    seen = [next(events) for _ in range(2)]
    os.killpg(first.api.process.pid, signal.SIGKILL)
    with pytest.raises(httpx.TransportError):
        list(events)
    resumed = {"Last-Event-ID": seen[-1].id}
    with second.client.stream("GET", job["links"]["events"], headers=resumed) as answer:
        text = "".join(answer.iter_text())
    rest = [line.removeprefix("event: ") for line in text.splitlines() if "event: " in line]
    whole = [event.event for event in second.events(job)]
    assert [event.event for event in seen] + rest == whole
    assert whole[-1] == "succeeded"
    print(f"\n5. {len(seen)} events from the first process, {len(rest)} from the second, none lost")


def test_vanished_clients_leave_nothing_open(start: StartApi, own_redis: OwnRedis) -> None:
    service = start()
    service.start_worker().stop()  # it has announced its model
    job = service.submit("/generate", request(1))  # waits: there is no worker
    process = psutil.Process(service.api.process.pid)

    def open_now() -> tuple[int, int]:
        with redis.Redis.from_url(own_redis.url) as client:
            return process.num_fds(), int(client.info("clients")["connected_clients"])

    async def visit() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=service.client.base_url, limits=limits, timeout=60
        ) as client:

            async def read() -> None:
                async with client.stream("GET", job["links"]["events"]) as answer:
                    async for _ in answer.aiter_lines():
                        return

            await asyncio.gather(*(read() for _ in range(100)))

    asyncio.run(visit())
    before = settled(open_now)
    for _ in range(5):
        asyncio.run(visit())
    after = before

    def back() -> bool:
        nonlocal after
        after = open_now()
        return after[0] <= before[0] + 10 and after[1] <= before[1] + 10

    wait_until(back, "descriptors and connections to return", limit=30)
    print(f"\n7. 500 streams: descriptors {before[0]} → {after[0]}, Redis {before[1]} → {after[1]}")


def test_a_worker_killed_with_hints_in_hand_delays_nothing(start: StartApi) -> None:
    service = start()
    service.start_worker()
    busy = submitted(service, steps=2000, count=3)
    first = service.start_worker(FOKKER_ENGINE_JOBS="1")
    first.process.send_signal(signal.SIGSTOP)  # it may take a hint now, and claim nothing
    job = service.submit("/generate", request(9, steps=5))
    first.kill_group()
    started = wait_until(lambda: service.get(job)["started"], "the job to start", limit=LEASE)
    delay = started - service.get(job)["created"]
    assert delay < LEASE
    for other in busy:
        service.client.post(other["links"]["cancel"])
    print(f"\n8. started after {delay:.2f} s")


def test_all_stop_under_load_and_all_jobs_end_later(start: StartApi) -> None:
    service = start()
    worker = service.start_worker()
    jobs = submitted(service, steps=400)
    wait_until(lambda: running(service, jobs), "all jobs to run")
    begin = time.monotonic()
    for part in (service.api, worker):
        part.process.terminate()
    for part in (service.api, worker):
        part.process.wait(15)
    took = time.monotonic() - begin
    again = start()
    states = Counter(again.get(job)["status"] for job in jobs)
    assert set(states) <= {"queued", "succeeded"}, "handed back or done"
    again.start_worker()
    ended = [again.succeeded(job) for job in jobs]
    assert {job["attempt"] for job in ended} == {1}, "a clean stop costs no attempt"
    print(f"\n9. stopped in {took:.1f} s, {dict(states)}; all {JOBS} ended")
