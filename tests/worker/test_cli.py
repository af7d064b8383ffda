import platform
import subprocess
import sys

import pytest

ALLOCATE = """
import ctypes, sys, threading
from worker.cli import _share_heaps

if sys.argv[1] == "share":
    _share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
meet = threading.Barrier(8)

def allocate():
    libc.malloc(1000)
    meet.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heaps")
@pytest.mark.parametrize(("how", "most"), [("share", 2), ("leave", 64)])
def test_threads_of_a_worker_share_two_heaps(how: str, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, how], stderr=subprocess.PIPE, text=True, check=True
    )
    heaps = done.stderr.count("Arena ")
    assert 2 <= heaps <= most
    assert (heaps > 2) == (how == "leave")
