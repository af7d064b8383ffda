"""The API under uvicorn, in one process or in several that share a port and their metrics."""

import os
import resource
import signal
import socket
import sys
import tempfile
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import HANDLED_SIGNALS
from uvicorn.supervisors import Multiprocess

from service.api.app import create_app
from service.api.auth import check_exposure, read_keys
from service.api.figures import SHARED_FOLDER
from service.logs import configure
from service.settings import Settings

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than clients and proxies keep theirs (httpx 5,
many balancers 60), who would otherwise send a request as it is being closed."""

GRACE = 3
"""Seconds that open requests get when the server stops; event streams resume elsewhere."""


class Server(uvicorn.Server):
    """uvicorn's server, that tells the application before it cuts streams off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self.config.app.state.services.state.stopping = True  # type: ignore[union-attr]
        await super().shutdown(sockets)


class Processes(Multiprocess):
    """uvicorn's supervisor; what a process that ended had open no longer counts as open."""

    def keep_subprocess_alive(self) -> None:
        """Replace the processes that died."""
        before = {process.pid for process in self.processes}
        super().keep_subprocess_alive()
        self._forget(before)

    def handle_signals(self) -> None:
        """Do what a signal asks for: SIGHUP replaces all processes, one after another."""
        before = {process.pid for process in self.processes}
        super().handle_signals()
        self._forget(before)

    def _forget(self, before: set[int | None]) -> None:
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises `SettingsError` before it listens."""
    check_exposure(settings, settings.host, read_keys(settings))
    settings.require_redis()
    configure(settings)
    _allow_many_files()
    if settings.api_processes > 1:
        _run_several(settings)
    else:
        Server(_config(settings, create_app(settings))).run()


def _allow_many_files() -> None:
    """Raise this process's limit of open files as far as it may: a stream takes two of them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run_several(settings: Settings) -> None:
    config = _config(
        settings, partial(_app_of_process, settings), factory=True, workers=settings.api_processes
    )
    with tempfile.TemporaryDirectory(prefix="fokker-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder
        supervisor = Processes(config, [config.bind_socket()])
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def _config(settings: Settings, app: Any, **several: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
        **several,
    )


def _app_of_process(settings: Settings) -> FastAPI:
    """What uvicorn calls in each process of several, whose server is uvicorn's own."""
    configure(settings)
    app = create_app(settings)
    for number in HANDLED_SIGNALS:
        _tell_before(number, app)
    return app


def _tell_before(number: int, app: FastAPI) -> None:
    """Let the application know of a signal to stop before the server does, as `Server` would."""
    handle = signal.getsignal(number)

    def stop(number: int, frame: FrameType | None) -> None:
        if services := getattr(app.state, "services", None):  # none yet before it started
            services.state.stopping = True
        if callable(handle):
            handle(number, frame)

    signal.signal(number, stop)
