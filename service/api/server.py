"""The API under uvicorn."""

import socket

import uvicorn

from service.api.app import create_app
from service.api.auth import check_exposure, read_keys
from service.logs import configure
from service.settings import Settings

GRACE = 3
"""Seconds that open requests get when the server stops; event streams resume elsewhere."""


class Server(uvicorn.Server):
    """uvicorn's server, that tells the application before it cuts streams off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self.config.app.state.services.state.stopping = True  # type: ignore[union-attr]
        await super().shutdown(sockets)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises `SettingsError` before it listens."""
    check_exposure(settings, settings.host, read_keys(settings))
    configure(settings)
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level.lower(),
        timeout_graceful_shutdown=GRACE,
    )
    Server(config).run()
