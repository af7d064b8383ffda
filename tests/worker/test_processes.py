"""The supervisor of a worker's processes, with processes that do what a test needs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import wait_until

STUBBORN = """
import signal, sys, time
from worker import processes

def serve(metrics, cores):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("serving", flush=True)
    time.sleep(600)

processes.GRACE = float(sys.argv[1])
raise SystemExit(processes.run(serve, 2, "127.0.0.1", None))
"""

HALF_FORKED = """
import errno, os, time
from worker import processes

fork, forks = os.fork, []

def scarce():
    forks.append(None)
    if len(forks) == 2:
        raise OSError(errno.EAGAIN, "no process is left")
    return fork()

os.fork = scarce
processes.run(lambda metrics, cores: time.sleep(600), 3, "127.0.0.1", None)
"""

Worker = tuple[subprocess.Popen[str], list[psutil.Process]]


@contextmanager
def stubborn(folder: Path, grace: float) -> Iterator[Worker]:
    """A worker whose two processes take no notice of SIGTERM, and those; folder: for its files."""
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(folder)}
    command = [sys.executable, "-c", STUBBORN, str(grace)]
    with subprocess.Popen(command, env=ours, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout is not None
            assert [worker.stdout.readline() for _ in range(2)] == ["serving\n"] * 2
            wait_until(lambda: handles(worker.pid, signal.SIGTERM), "the supervisor's handler")
            yield worker, psutil.Process(worker.pid).children()
        finally:
            worker.kill()


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = (
        int(line.split()[1], 16)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    )
    return bool(caught >> (number - 1) & 1)


@pytest.mark.timeout(60)
def test_a_second_signal_kills_processes_that_do_not_end(tmp_path: Path) -> None:
    with stubborn(tmp_path, grace=50.0) as (worker, children):
        worker.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(10) == 1
        assert not any(child.is_running() for child in children)
        assert list(tmp_path.iterdir()) == []  # the folder of their metrics is gone


@pytest.mark.timeout(60)
def test_a_process_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    with stubborn(tmp_path, grace=0.5) as (worker, children):
        children[0].kill()
        assert worker.wait(10) == 1
        assert not any(child.is_running() for child in children)


@pytest.mark.timeout(60)
def test_a_fork_that_fails_leaves_no_process_behind(tmp_path: Path) -> None:
    ours = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", HALF_FORKED]
    with subprocess.Popen(command, env=ours, stderr=subprocess.PIPE, text=True) as worker:
        try:
            _, said = worker.communicate(timeout=30)  # its child holds the pipe while it lives
        finally:
            worker.kill()
    assert worker.returncode == 1
    assert "no process is left" in said
    assert list(tmp_path.iterdir()) == []
