"""Processes of a benchmark: started in groups of their own, ended by id whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.serve.errors import BenchError
from service.children import bound_to_parent
from worker.cli import heaps

ROOT = Path(__file__).resolve().parents[2]
GRACE = 15.0  # seconds from SIGTERM to SIGKILL


def say(line: str) -> None:
    """Tell what is going on, on standard error: standard output is the report."""
    print(line, file=sys.stderr, flush=True)


def bound() -> Callable[[], None] | None:
    """What a child runs first so that it dies with this process, also when that is killed."""
    return bound_to_parent()


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this repository."""
    return [sys.executable, "-m", module, *arguments]


def environment(**given: str) -> dict[str, str]:
    """The environment of children whose threads spin, and share heaps, as those of a worker do."""
    arenas = str(heaps())
    ours = {"GOMP_SPINCOUNT": "10000", "MALLOC_ARENA_MAX": arenas, "PYTHONPATH": str(ROOT)}
    return ours | os.environ | given


def outputs(command: list[str], limit: float, processes: int = 1) -> list[str]:
    """What so many processes print that run a command at once, each with its part of the cores.

    Their starts differ by as much as their imports take. Raises BenchError where one fails, or
    takes more than `limit` seconds; then all are ended.
    """
    threads = len(os.sched_getaffinity(0)) // processes
    variables = environment(OMP_NUM_THREADS=str(threads)) if processes > 1 else environment()
    started: list[subprocess.Popen[str]] = []
    found = []
    try:
        for _ in range(processes):
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=variables,
                start_new_session=True,
                preexec_fn=bound(),
            )
            started.append(process)
        for process in started:
            found.append(process.communicate(timeout=limit)[0])
            if process.returncode != 0:
                raise BenchError(f"{command[2]} ended with {process.returncode}")
    except subprocess.TimeoutExpired as late:
        raise BenchError(f"{command[2]} was not done after {limit:.0f} s") from late
    finally:
        for process in started:
            process.kill()
            process.wait()
    return found


@contextmanager
def running(
    name: str,
    command: list[str],
    folder: Path,
    variables: Mapping[str, str],
    given: bytes = b"",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block runs; its output goes to `folder/name.log`."""
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env=dict(variables),
            start_new_session=True,
            preexec_fn=bound(),
        )
    try:
        assert process.stdin is not None  # for the type checker: it was asked for above
        with suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.close()
        yield process
    except BaseException:
        if process.poll() not in (None, 0):
            say(f"{name} ended with {process.returncode}; its last lines:\n{tail(log)}")
        raise
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: SIGTERM, and SIGKILL to what is left."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the group may outlive its leader
    process.wait()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def wait_until(
    condition: Callable[[], bool], what: str, limit: float, *alive: subprocess.Popen[bytes]
) -> None:
    """Wait for a condition; raises BenchError after `limit` seconds or if a process ended."""
    end = time.monotonic() + limit
    while not condition():
        for process in alive:
            if process.poll() is not None:
                raise BenchError(f"a process ended ({process.returncode}) before {what}")
        if time.monotonic() > end:
            raise BenchError(f"waited {limit:.0f} s in vain for {what}")
        time.sleep(0.05)


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raise BenchError in the block after `seconds`, wherever it is. In the main thread only."""

    def late(*_: object) -> None:
        raise BenchError(f"{what} took longer than {seconds:.0f} s (--limit)")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
