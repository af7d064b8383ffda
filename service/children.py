"""Child processes that cannot outlive their parent.

A child is the leader of its own process group, so a Ctrl-C in the terminal reaches the parent
alone, which then stops its children in its own order. On Linux the kernel kills a child whose
parent is gone (PR_SET_PDEATHSIG), so that not even SIGKILL leaves one behind; elsewhere a
killed parent cannot take its children with it.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
LINE_LIMIT = 1 << 20
KEPT_LINES = 20


def bound_to_parent() -> Callable[[], None] | None:
    """Return what a new child runs before its program so that it dies with this process.

    None where the system offers no such thing.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Looked up here: between fork and exec a child had better not load a library.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call above
            os._exit(1)

    return bind


@dataclass(frozen=True)
class Child:
    """A running child process.

    name: what its lines and messages call it. last: its last lines, kept if it is a quiet one.
    """

    name: str
    process: asyncio.subprocess.Process
    output: asyncio.Task[None]
    last: deque[str]

    @property
    def ending(self) -> str:
        """How the process ended, in words."""
        code = self.process.returncode
        if code is None:
            return "is still running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    async def stop(self, grace: float) -> None:
        """End the process and its whole group: SIGTERM, and SIGKILL after `grace` seconds."""
        if self.process.returncode is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace)
        # Also when the leader is gone: it may have left others in its group.
        self._signal(signal.SIGKILL)
        await self.process.wait()
        await self.output

    def kill(self) -> None:
        """End the process and its whole group now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def behind_name(name: str, line: str) -> str:
    """A line for people: behind the name of the process that wrote it."""
    return f"{name:>6} | {line}"


def as_json(name: str, line: str) -> str:
    """A line for machines: the JSON object that it is, or one that holds it, with its `process`."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return json.dumps({"process": name} | (entry if isinstance(entry, dict) else {"event": line}))


async def start(
    name: str,
    command: list[str],
    environment: Mapping[str, str],
    *,
    form: Callable[[str, str], str] = behind_name,
    given: bytes = b"",
    quiet: bool = False,
) -> Child:
    """Start `command` as a child that dies with this process.

    Its output goes to our standard error, each line as `form` makes it of the child's name and the
    line; a quiet child's last lines are kept instead. `given` is its standard input. Raises OSError
    if it cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        preexec_fn=bound_to_parent(),
        limit=LINE_LIMIT,
    )
    assert process.stdin is not None  # for the type checker: it was asked for above
    with contextlib.suppress(ConnectionError):
        process.stdin.write(given)
        await process.stdin.drain()
    process.stdin.close()
    last: deque[str] = deque(maxlen=KEPT_LINES)
    keep = last.append if quiet else say
    output = asyncio.create_task(_read_lines(process.stdout, lambda line: keep(form(name, line))))
    return Child(name, process, output, last)


def say(line: str) -> None:
    """Print a line on our standard error, if anybody still reads it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


async def _read_lines(stream: asyncio.StreamReader | None, keep: Callable[[str], None]) -> None:
    while stream is not None:
        try:
            line = await stream.readline()
        except ValueError:  # longer than LINE_LIMIT: dropped, so that the pipe never fills up
            continue
        if not line:
            return
        keep(line.decode(errors="replace").rstrip())
