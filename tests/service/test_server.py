"""Several API processes behind one port: as processes, with signals, over a real Redis."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from service.jobs.lease import WorkerStore
from service.redis_server import free_port
from tests.service.helpers import CARDS, until
from tests.service.test_metrics import samples

PROCESSES = 2
STREAMS = 6


@contextmanager
def serving(redis_url: str, log: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A client of `fokker serve` in several processes, and the parent of these."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "service", "serve", "--port", str(port)]
    environment = os.environ | {"FOKKER_REDIS_URL": redis_url, "TMPDIR": str(log.parent)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--processes", str(PROCESSES)], env=environment, stderr=output
        )
    try:
        # A connection a request, so that the kernel chooses a process for each.
        limits = httpx.Limits(max_keepalive_connections=0)
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=10, limits=limits) as client:
            until(lambda: ready(log) == PROCESSES)
            yield client, process
    finally:
        process.terminate()
        process.wait(10)


def ready(log: Path) -> int:
    """How many processes have begun to serve."""
    return log.read_text().count("Application startup complete")


def children(log: Path) -> list[int]:
    """The pids of the processes that serve, oldest first."""
    return [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log.read_text())]


def value(client: httpx.Client, name: str, *labels: tuple[str, str]) -> float:
    return samples(client.get("/metrics").text).get((name, *labels), 0.0)


def follow(client: httpx.Client, path: str) -> socket.socket:
    """A connection on which the events of a job arrive; its first one has."""
    url = client.base_url
    connection = socket.create_connection((url.host, url.port or 80), timeout=10)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.host}\r\n\r\n".encode())
    received = b""
    while b"event: queued" not in received:
        received += connection.recv(4096)
    connection.setblocking(False)
    return connection


def broken(connection: socket.socket) -> bool:
    """Whether the other side is gone."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


def test_a_connection_may_idle_for_longer_than_clients_keep_theirs(redis_url: str, log: Path):
    """httpx and uvicorn keep one for 5 s each: who closes first must not be the server."""
    with serving(redis_url, log) as (client, _):
        connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        kept = connection.sock
        time.sleep(5.5)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        assert connection.sock is kept
        connection.close()


def test_processes_share_a_port_and_their_metrics_and_are_replaced(
    redis_url: str, worker: WorkerStore, log: Path
):
    worker.announce(CARDS, ttl=60)
    with serving(redis_url, log) as (client, process), ExitStack() as open_streams:
        created = client.post("/generate", json={"model": "digits"})
        for _ in range(20):
            assert client.get("/healthz").is_success
        healthy = ("method", "GET"), ("route", "/healthz"), ("status", "200")
        assert value(client, "fokker_http_requests_total", *healthy) == 20

        events = created.json()["links"]["events"]
        streams = [open_streams.enter_context(follow(client, events)) for _ in range(STREAMS)]
        assert value(client, "fokker_streams_open") == STREAMS

        killed = children(log)[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: ready(log) == PROCESSES + 1)
        left = STREAMS - sum(map(broken, streams))
        assert value(client, "fokker_streams_open") == left
        # What the killed one has answered stays counted.
        assert value(client, "fokker_http_requests_total", *healthy) == 20

        # As many open files as there may be: streams take two each.
        limits = Path(f"/proc/{children(log)[-1]}/limits").read_text()
        soft, hard = re.findall(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)[0]
        assert soft == hard

        process.terminate()
        assert process.wait(10) == 0
    assert not list(log.parent.glob("fokker-metrics-*"))


def test_settings_are_refused_before_a_process_is_started(tmp_path: Path):
    command = [sys.executable, "-P", "-m", "service", "serve", "--port", str(free_port())]
    environment = os.environ | {"FOKKER_REDIS_URL": "http://no-redis", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [*command, "--processes", "2"],
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"fokker serve: FOKKER_REDIS_URL is not the URL")
    assert b"server process" not in ended.stderr
