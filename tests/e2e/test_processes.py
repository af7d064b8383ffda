"""A worker of two processes, as a CPU's is: they share its jobs, and end together."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from service.redis_server import free_port
from tests.e2e.running import STOP_LIMIT, Part, Service, wait_until

LONG = {"model": "digits", "count": 16, "seed": 6, "sampler": {"name": "ddpm", "steps": 300}}
SHORT = LONG | {"count": 1, "sampler": {"name": "ddim", "steps": 10}}

Own = tuple[Service, Callable[..., Part]]


@pytest.fixture
def children(own_service: Own) -> tuple[Service, Part, list[psutil.Process], int]:
    """A service with a worker, the worker's two processes, and the port of its metrics."""
    service, start_worker = own_service
    port = free_port()
    worker = start_worker(FOKKER_WORKER_PROCESSES="2", FOKKER_WORKER_METRICS_PORT=str(port))
    found = psutil.Process(worker.process.pid).children()
    assert len(found) == 2
    return service, worker, found, port


def ended(*processes: psutil.Process) -> bool:
    """Whether all are gone; one that nobody has waited for yet is."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.timeout(300)
def test_both_compute_and_are_counted_as_one_worker(
    children: tuple[Service, Part, list[psutil.Process], int],
) -> None:
    service, _, processes, port = children
    before = [sum(p.cpu_times()[:2]) for p in processes]
    spent, images = [0.0, 1.0], 0
    # On a busy machine one may have claimed all before the other wakes: that is no fault.
    while min(spent) < 0.1 * max(spent) and images < 5 * 96:
        jobs = [service.submit("/generate", LONG | {"seed": seed}) for seed in range(6)]
        for job in jobs:
            assert len(service.succeeded(job)["result"]["images"]) == 16
        images += 96
        spent = [sum(p.cpu_times()[:2]) - was for p, was in zip(processes, before, strict=True)]
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    assert f'fokker_images_total{{model="digits",operation="generate"}} {images}.0' in text
    assert f'fokker_nfe_total{{model="digits",operation="generate"}} {300 * images}.0' in text
    assert min(spent) >= 0.1 * max(spent)


@pytest.mark.timeout(300)
def test_both_end_when_the_worker_is_stopped_and_hand_their_jobs_back(
    children: tuple[Service, Part, list[psutil.Process], int],
) -> None:
    service, worker, processes, _ = children
    long = LONG | {"sampler": {"name": "ddpm", "steps": 4000}}
    jobs = [service.submit("/generate", long | {"seed": seed}) for seed in range(4)]
    for job in jobs:
        wait_until(lambda job=job: service.get(job)["status"] == "running", "all to run")
    worker.process.terminate()
    assert worker.process.wait(STOP_LIMIT) == 0
    assert ended(*processes)
    assert [service.get(job)["status"] for job in jobs] == ["queued"] * 4


@pytest.mark.timeout(300)
def test_none_outlives_the_worker(
    children: tuple[Service, Part, list[psutil.Process], int],
) -> None:
    _, worker, processes, _ = children
    worker.process.kill()
    worker.process.wait(STOP_LIMIT)
    wait_until(lambda: ended(*processes), "the processes to end", limit=STOP_LIMIT)


@pytest.mark.timeout(300)
def test_when_one_dies_the_worker_says_so_and_ends(
    children: tuple[Service, Part, list[psutil.Process], int],
) -> None:
    _, worker, processes, _ = children
    os.kill(processes[1].pid, signal.SIGKILL)
    assert worker.process.wait(STOP_LIMIT) == 1
    assert ended(*processes)
    assert "process 2 ended with -9; the worker stops" in worker.err.read_text()


def failed_start(redis_url: str, folder: Path, **given: str) -> tuple[int, str]:
    """The exit code of a worker that does not start, and what it says."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "service", "worker"],
        env=os.environ | {"FOKKER_REDIS_URL": redis_url, "FOKKER_WORKER_PROCESSES": "2"} | given,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.timeout(120)
def test_a_model_folder_with_nothing_in_it_is_said_once(redis_url: str, tmp_path: Path) -> None:
    code, said = failed_start(redis_url, tmp_path, FOKKER_MODELS=str(tmp_path))
    assert code == 1
    assert said.count("has no checkpoint that can be served") == 1


@pytest.mark.timeout(120)
def test_a_metrics_port_that_is_taken_stops_the_start(redis_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = failed_start(redis_url, tmp_path, FOKKER_WORKER_METRICS_PORT=port)
    assert code == 2
    assert said.count("FOKKER_WORKER_METRICS_PORT: cannot listen") == 1
