import os
import platform
import subprocess
import sys

import pytest

WORKER = """
import ctypes, os, threading
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import typer
import worker.main
from worker.cli import worker as command

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
meet = threading.Barrier(8)

def allocate():
    libc.malloc(1000)
    meet.wait()

def run_worker(settings):
    threads = [threading.Thread(target=allocate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc.malloc_stats()
    return 0

worker.main.run_worker = run_worker
try:
    command(None)
except typer.Exit as end:
    raise SystemExit(end.exit_code)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="heaps of glibc")
def test_threads_of_a_worker_share_two_heaps_a_core_unless_told_otherwise() -> None:
    assert used() == 2  # on one core
    assert used(MALLOC_ARENA_MAX="3") == 3


def used(**given: str) -> int:
    """How many heaps a worker's threads have used, with these variables."""
    ours = {name: value for name, value in os.environ.items() if name not in UNSET} | given
    command = [sys.executable, "-c", WORKER]
    done = subprocess.run(command, env=ours, stderr=subprocess.PIPE, text=True, check=True)
    return done.stderr.count("Arena ")


UNSET = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
