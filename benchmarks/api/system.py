"""One API process over a Redis of its own, on free ports, and what either takes of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from benchmarks.serve.errors import BenchError
from benchmarks.serve.processes import (
    ROOT,
    bound,
    environment,
    python,
    running,
    wait_until,
)
from service.redis_server import free_port, private_redis


@dataclass(frozen=True, kw_only=True)
class System:
    """url: of the API. variables: the environment of what else is started."""

    url: str
    api: int  # process ids
    redis: int
    variables: Mapping[str, str]


@contextmanager
def api(**settings: str) -> Iterator[System]:
    """Run Redis and one API process while the block runs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fokker-bench-")))
        server, port = private_redis(), free_port()
        variables = environment(FOKKER_REDIS_URL=server.url, FOKKER_LOG_LEVEL="WARNING", **settings)
        command = [server.executable, "-"]
        redis = stack.enter_context(running("redis", command, folder, variables, server.config))
        command = python("service", "serve", "--port", str(port))
        process = stack.enter_context(running("api", command, folder, variables))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: alive(url), "the API to answer", 30, redis, process)
        yield System(url=url, api=process.pid, redis=redis.pid, variables=variables)


def alive(url: str) -> bool:
    """Whether the API answers, and Redis to it."""
    try:
        answer = httpx.get(f"{url}/models", timeout=5, trust_env=False)
        return answer.status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


class Helper:
    """A module of this folder as a process that is told, and tells, documents line by line."""

    def __init__(self, module: str, system: System, given: Mapping[str, Any]) -> None:
        self.process = subprocess.Popen(
            python(f"benchmarks.api.{module}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=dict(system.variables),
            text=True,
            preexec_fn=bound(),
        )
        self.tell(json.dumps(given))

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def tell(self, line: str) -> None:
        """Write a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line; raises BenchError if there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"{self.process.args} ended with {self.process.wait()}")
        return line.strip()


@dataclass
class Usage:
    """Cores that processes took by name, and the most memory that the API occupied (10⁶ bytes)."""

    cores: dict[str, float] = field(default_factory=dict)
    peak: float = 0.0

    def __str__(self) -> str:
        return ", ".join(f"{name} {cores:.2f}" for name, cores in self.cores.items())


@contextmanager
def measured(system: System, **others: Helper) -> Iterator[Usage]:
    """What the processes take while the block runs."""
    processes = {"API": psutil.Process(system.api), "Redis": psutil.Process(system.redis)}
    processes |= {name: psutil.Process(helper.process.pid) for name, helper in others.items()}
    usage, done = Usage(), threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            usage.peak = max(usage.peak, processes["API"].memory_info().rss / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    start = time.monotonic()
    try:
        yield usage
    finally:
        took = time.monotonic() - start
        done.set()
        watcher.join()
        for name, process in processes.items():
            try:
                usage.cores[name] = (sum(process.cpu_times()[:2]) - before[name]) / took
            except psutil.NoSuchProcess:
                print(f"{name} ended early", file=sys.stderr)
