"""A worker of several processes, each with an engine of its own, that share a CPU's cores.

One process cannot keep a CPU busy: between two network calls, while its engine's thread updates the
rows, the other cores wait, and so they do for the interpreter (docs/decisions.md).
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

from prometheus_client.multiprocess import MultiProcessCollector

from model.checkpoint import CheckpointError
from service.children import bound_to_parent
from service.settings import SettingsError
from worker.metrics import Metrics, count_in, exported
from worker.threads import SharedCores

Serve = Callable[[Metrics, SharedCores], int]
"""What a process does until SIGTERM; returns its exit code."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)

GRACE = 30.0
"""Seconds that processes get to stop; Compose gives the worker 40."""

_STOPPED = (0, -signal.SIGTERM)
"""Exit codes of a process that ended when it was asked to, or before it could be asked."""

log = logging.getLogger(__name__)


def run(serve: Serve, count: int, host: str, port: int | None) -> int:
    """Run so many processes until SIGTERM or SIGINT, or until one ends: then all are stopped.

    host, port: where the metrics of all are served, see `exported`. Returns the exit code: not 0
    when a process failed. Raises `SettingsError`, also as `exported` does, and `CheckpointError`
    where a process did. On Linux only.
    """
    # Forked, so that they share what is imported; this process runs no tensor operation.
    context = multiprocessing.get_context("fork")
    busy = context.RawArray(ctypes.c_ubyte, count)
    refused: SimpleQueue[Exception] = context.SimpleQueue()
    bind = bound_to_parent()
    assert bind is not None
    with tempfile.TemporaryDirectory(prefix="fokker-metrics-") as folder:

        def begin(place: int) -> None:
            bind()
            os.setsid()  # Ctrl-C reaches the first process, which stops the others
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            count_in(folder)
            try:
                code = serve(Metrics(), SharedCores(busy, place))
            except (SettingsError, CheckpointError) as error:
                refused.put(error)
                code = 1
            sys.exit(code)

        children = [context.Process(target=begin, args=(place,)) for place in range(count)]
        with _running(children):
            figures = MultiProcessCollector(None, path=folder)  # type: ignore[no-untyped-call]
            pids = [os.getpid(), *(child.pid for child in children if child.pid is not None)]
            with exported(figures, pids, host, port):
                _first_ending(children)
    if not refused.empty():
        raise refused.get()
    return int(any(child.exitcode not in _STOPPED for child in children))


def _first_ending(children: Sequence[BaseProcess]) -> None:
    """Wait until one of the processes has ended, and say how."""
    ended = wait([child.sentinel for child in children])
    for number, child in enumerate(children, start=1):
        if child.sentinel in ended:
            child.join()  # its exit code is known a moment after it closed its files
            level = logging.INFO if child.exitcode in _STOPPED else logging.CRITICAL
            log.log(level, "process %d ended with %s; the worker stops", number, child.exitcode)


@contextmanager
def _running(children: Sequence[BaseProcess]) -> Iterator[None]:
    """Start processes, and stop them after the block or on a signal; a second one kills them."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        for child in children:
            if child.pid is not None:
                (child.kill if stopping else child.terminate)()
        stopping = True

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        # A process must not do what this one's signals are for, and none may be missed meanwhile.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for child in children:
                child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield
    finally:
        if not stopping:
            stop()
        until = time.monotonic() + GRACE
        for child in children:
            if child.pid is not None:
                child.join(max(0.0, until - time.monotonic()))
                if child.is_alive():
                    log.critical("process %d does not stop; it is killed", child.pid)
                    child.kill()
                    child.join()
        for number, handler in before.items():
            signal.signal(number, handler)
