"""A service of one's own to check, where no other is named: `fokker up` as a child process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

from service.children import bound_to_parent
from service.client import ServiceUnavailable

READY = re.compile(rb"Fokker is ready on (http://\S+) ")
GRACE = 60.0
LAST_WORDS = 2000  # bytes


@contextmanager
def started() -> Iterator[str]:
    """Start a service of the shipped models on a free port, and give its URL; it ends with us.

    The environment's settings are left out: they are those of another service. Raises
    ServiceUnavailable if it does not start.
    """
    settings = {name for name in os.environ if name.startswith("FOKKER_")}
    with TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service", "up", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            env={name: value for name, value in os.environ.items() if name not in settings},
            preexec_fn=bound_to_parent(),
        )
        try:
            yield _address(process, words)
        finally:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()


def _address(process: subprocess.Popen[bytes], words: IO[bytes]) -> str:
    assert process.stdout is not None  # for the type checker: it was asked for
    # It says where it is, or ends: it has a limit of its own.
    ready = READY.match(process.stdout.readline())
    if ready:
        return ready[1].decode()
    process.wait(GRACE)
    words.seek(0)
    last = words.read()[-LAST_WORDS:].decode(errors="replace").strip()
    raise ServiceUnavailable(f"no service could be started to be checked:\n{last}")
