"""`fokker up`: Redis, a worker and the API on one machine, until Ctrl-C.

The three are child processes; this one starts them, says in one line on standard output when
they are ready, watches them, and stops them in the order API, worker, Redis. If one of them
ends by itself, all are stopped: a service with a part missing should not look alive.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import redis.asyncio
import typer
from redis.exceptions import RedisError

from service.children import Child, as_json, behind_name, say, start
from service.redis_server import NoRedisError, PrivateRedis, private_redis
from service.settings import Settings, SettingsError

READY_LIMIT = 180.0  # seconds; a cold disk reads torch slowly
POLL = 0.1
GRACE = {"api": 5.0, "worker": 15.0, "redis": 5.0}  # seconds from SIGTERM to SIGKILL
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class UpError(RuntimeError):
    """`fokker up` cannot go on; the message says why and what to do."""


def register_up(app: typer.Typer) -> None:
    """Add the command `up` to the application."""

    @app.command()
    def up(
        port: Annotated[
            int | None,
            typer.Option(
                min=0, max=65535, help="The API's port, 8000 by default; 0 takes a free one."
            ),
        ] = None,
        host: Annotated[str | None, typer.Option(help="The API's address, loopback.")] = None,
        models: Annotated[
            Path | None,
            typer.Option(
                help="Folder of *.safetensors checkpoints; otherwise the shipped ones.",
                exists=True,
                file_okay=False,
                resolve_path=True,
            ),
        ] = None,
    ) -> None:
        """Run Redis, a worker and the API on this machine until Ctrl-C."""
        try:
            settings = Settings.load()
            address = host or settings.host
            supervisor = Supervisor(
                host=address,
                port=claim_port(address, settings.port if port is None else port),
                models=models or settings.models,
                redis=settings.redis_url or private_redis(),
                form=as_json if settings.log_format == "json" else behind_name,
            )
            code = asyncio.run(supervisor.run())
        except (UpError, NoRedisError, SettingsError) as error:
            typer.echo(f"fokker up: {error}", err=True)
            code = 2 if isinstance(error, SettingsError) else 1
        raise typer.Exit(code)


def claim_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0, after making sure that it can be listened on.

    Raises UpError if it is taken, not ours to take, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            claimed: int = probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UpError(
                f"port {port} on {host} is in use. Stop what listens there, or choose another "
                f"one, for example: fokker up --port {port + 1}"
            ) from error
        raise UpError(f"cannot listen on {host} port {port}: {error}") from error
    return claimed


@dataclass
class Supervisor:
    """Starts the parts of one service, watches them and stops them.

    redis: the URL of a running server, or a private one to start. form: of the lines that the parts
    write, of a part's name and its line.
    """

    host: str
    port: int
    models: Path | None
    redis: str | PrivateRedis
    form: Callable[[str, str], str] = behind_name
    children: list[Child] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        """The API's base URL as this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def run(self) -> int:
        """Run until a signal (0) or until a child ends by itself (1); return the exit code."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._unless_stopped(self._start_all())
            while not self.stopping.is_set():
                await self._unless_stopped(self._first_ending())
            return 0
        except UpError as error:
            if self.stopping.is_set():
                return 0
            say(self.form("up", str(error)))
            return 1
        finally:
            self.stopping.set()
            for child in reversed(self.children):
                await child.stop(GRACE[child.name])

    def _on_signal(self) -> None:
        if self.stopping.is_set():  # the second one: no patience left
            for child in self.children:
                child.kill()
        self.stopping.set()

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, or drop it when a signal comes. Raises what it raises."""
        doing = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
        finally:
            for task in (doing, stop):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, UpError):
                    await task

    async def _start_all(self) -> None:
        deadline = time.monotonic() + READY_LIMIT
        url = await self._start_redis(deadline)
        environment = os.environ | {"FOKKER_REDIS_URL": url}
        folder = ["--models", str(self.models)] if self.models else []
        await self._start("worker", _fokker("worker", *folder), environment)
        serve = _fokker("serve", "--host", self.host, "--port", str(self.port))
        await self._start("api", serve, environment)
        names = await self._wait_until_ready(deadline)
        print(
            f"Fokker is ready on {self.address} (models: {', '.join(names)}; Ctrl-C stops it)",
            flush=True,
        )

    async def _start_redis(self, deadline: float) -> str:
        """Return the URL of a Redis that answers, having started it if it is ours."""
        if isinstance(self.redis, str):
            url = self.redis
        else:
            url = self.redis.url
            command = [self.redis.executable, "-"]
            # Quiet: of what it says, a private server's user can use only why it ended.
            await self._start("redis", command, os.environ, given=self.redis.config, quiet=True)
            deadline = min(deadline, time.monotonic() + 10)
        try:
            client = redis.asyncio.Redis.from_url(url, socket_connect_timeout=5)
        except ValueError as error:
            raise UpError(f"FOKKER_REDIS_URL is not the URL of a Redis: {error}") from error
        async with client:
            while True:
                self._check_children()
                try:
                    await client.ping()
                    return url
                except (RedisError, OSError) as error:
                    # Ours needs a moment to start; another's should be there already.
                    if isinstance(self.redis, str) or time.monotonic() > deadline:
                        whose = "FOKKER_REDIS_URL" if isinstance(self.redis, str) else "started"
                        raise UpError(f"Redis ({whose}) does not answer: {error}") from error
                await asyncio.sleep(POLL)

    async def _start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        *,
        given: bytes = b"",
        quiet: bool = False,
    ) -> None:
        self._check_children()
        try:
            child = await start(
                name, command, environment, form=self.form, given=given, quiet=quiet
            )
        except OSError as error:
            raise UpError(f"cannot start {name} ({command[0]}): {error}") from error
        self.children.append(child)

    async def _wait_until_ready(self, deadline: float) -> list[str]:
        """Return the names of the models once /readyz answers 200."""
        said = "it does not answer"
        async with httpx.AsyncClient(base_url=self.address, timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline:
                self._check_children()
                try:
                    response = await client.get("/readyz")
                    if response.status_code == httpx.codes.OK:
                        return list(response.json()["models"])
                    said = f"{response.status_code} {response.text}"
                except httpx.TransportError:
                    pass
                await asyncio.sleep(POLL)
        raise UpError(f"not ready after {READY_LIMIT:.0f} s; {self.address}/readyz: {said}")

    async def _first_ending(self) -> None:
        """Wait until a child ends by itself, then raise UpError, which names it."""
        waiting = [asyncio.ensure_future(child.process.wait()) for child in self.children]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        self._check_children()

    def _check_children(self) -> None:
        for child in self.children:
            if child.process.returncode is not None:
                for line in child.last:
                    say(line)
                raise UpError(f"{child.name} {child.ending}; its lines are above. Stopping all.")


def _fokker(*arguments: str) -> list[str]:
    # -P: a folder named `model` where the command is run must not shadow ours.
    return [sys.executable, "-P", "-m", "service", *arguments]
