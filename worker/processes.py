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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue

from prometheus_client.multiprocess import MultiProcessCollector

from service.children import bound_to_parent
from worker.metrics import Metrics, count_in, exported
from worker.threads import SharedCores

Serve = Callable[[Metrics, SharedCores], int]
"""What a process does until SIGTERM; returns its exit code."""

log = logging.getLogger(__name__)


def run(serve: Serve, count: int, host: str, port: int | None) -> int:
    """Run so many processes until SIGTERM or SIGINT, or until one ends: then all are stopped.

    host, port: where the metrics of all are served, see `exported`. Returns the exit code: not 0
    when a process failed. Raises what a process raised, and as `exported`. On Linux only.
    """
    # Forked, so that they share what is imported; this process runs no tensor operation.
    context = multiprocessing.get_context("fork")
    busy = context.RawArray(ctypes.c_ubyte, count)
    raised: SimpleQueue[Exception] = context.SimpleQueue()
    bind = bound_to_parent()
    with tempfile.TemporaryDirectory(prefix="fokker-metrics-") as folder:

        def begin(place: int) -> None:
            if bind is not None:
                bind()
            os.setsid()  # Ctrl-C reaches the first process, which stops the others
            count_in(folder)
            try:
                code = serve(Metrics(), SharedCores(busy, place))
            except Exception as error:
                raised.put(error)
                code = 1
            sys.exit(code)

        children = [context.Process(target=begin, args=(place,)) for place in range(count)]
        with _running(children):
            figures = MultiProcessCollector(None, path=folder)  # type: ignore[no-untyped-call]
            pids = [os.getpid(), *(child.pid for child in children if child.pid is not None)]
            with exported(figures, pids, host, port):
                wait([child.sentinel for child in children])
    if not raised.empty():
        raise raised.get()
    return int(any(child.exitcode not in (0, -signal.SIGTERM) for child in children))


@contextmanager
def _running(children: Sequence[BaseProcess]) -> Iterator[None]:
    """Start processes, and stop them after the block or on a signal; a second one kills them."""
    stopping = False

    def on_signal(*_: object) -> None:
        nonlocal stopping
        for child in children:
            if stopping:
                child.kill()
            else:
                child.terminate()
        stopping = True

    for child in children:
        child.start()
    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        if not stopping:
            for child in children:
                if child.exitcode not in (None, 0):
                    log.critical("a process ended with %s; the worker stops", child.exitcode)
            on_signal()
        for child in children:
            child.join()
        for number, handler in before.items():
            signal.signal(number, handler)
