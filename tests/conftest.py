"""The real Redis that tests run against: one server a process, emptied before every test."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from service.redis_server import find_executable, free_port

# Tests, workers and Redis share the cores: OpenMP threads must not spin long, and test processes
# side by side (`-n`) divide the cores among them. Read by torch, here and in what tests start.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if side_by_side := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // side_by_side)))

START_LIMIT = 10.0  # seconds


def _wait_until_it_answers(url: str) -> None:
    limit = time.monotonic() + START_LIMIT
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.ConnectionError:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.02)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Redis server: FOKKER_TEST_REDIS_URL's, whose data are lost, else one of our own."""
    if url := os.environ.get("FOKKER_TEST_REDIS_URL"):
        if side_by_side > 1:
            pytest.fail("FOKKER_TEST_REDIS_URL is one Redis, for one process: run with -n 0")
        yield url
        return
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    log = Path(folder, "redis.log")
    with log.open("wb") as output:
        process = subprocess.Popen([find_executable(), *options], stdout=output, stderr=output)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        _wait_until_it_answers(url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of an empty Redis database."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushdb()
    return redis_server
