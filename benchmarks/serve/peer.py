"""What a user would pick instead: diffusers behind LitServe, installed on demand and run here.

LitServe's few packages go into a folder of their own inside .venv; torch, diffusers and FastAPI
are those of .venv, at the same versions for both.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.serve.errors import BenchError
from benchmarks.serve.load import Request
from benchmarks.serve.processes import ROOT, environment, python, running, say, wait_until
from service.redis_server import free_port

REQUIREMENTS = Path(__file__).with_name("peer-requirements.txt")
INSTALL_LIMIT = 600.0  # seconds
READY_LIMIT = 120.0


def installed() -> Path:
    """The folder with LitServe in it; fills it the first time. Raises BenchError."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / f"bench-litserve-{digest}"
    if folder.is_dir():
        return folder
    say(f"Installing LitServe into {folder} (once) ...")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="bench-litserve-") as partial:
        target = Path(partial) / "packages"
        command = python("pip", "install", "--quiet", "--no-deps", "--target", str(target))
        done = subprocess.run(
            [*command, "-r", str(REQUIREMENTS)],
            stdout=sys.stderr,
            timeout=INSTALL_LIMIT,
            check=False,
        )
        if done.returncode != 0:
            raise BenchError(f"pip could not install {REQUIREMENTS}; its errors are above")
        target.rename(folder)
    return folder


@contextmanager
def litserve() -> Iterator[str]:
    """Run the peer while the block runs; gives its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    path = os.pathsep.join((str(installed()), str(ROOT)))
    command = python("benchmarks.serve.peer_server", str(port))
    with (
        tempfile.TemporaryDirectory(prefix="fokker-bench-") as folder,
        running("peer", command, Path(folder), environment() | {"PYTHONPATH": path}) as process,
    ):
        wait_until(lambda: healthy(url), "the peer to be ready", READY_LIMIT, process)
        yield url


def healthy(url: str) -> bool:
    """Whether the peer takes requests."""
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def predict(seed: int, steps: int = 250, count: int = 1) -> Request:
    """The peer's request for `count` images."""
    return Request(
        path="/predict", body={"steps": steps, "count": count, "seed": seed}, images=count
    )
