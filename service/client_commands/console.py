"""What the client's commands share: options, exit codes, progress, and how things are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from service.client import Client
    from service.client.events import Event, OnEvent

FAILED, REFUSED, AWAY, INTERRUPTED = 1, 2, 3, 130

EPILOG = (
    "Exit codes: 0 done; 1 the job failed or was canceled; 2 bad usage or a refused request; "
    "3 the service cannot be reached; 130 interrupted, which cancels the job that was waited for."
)

Url = Annotated[
    str | None,
    typer.Option(
        envvar="FOKKER_URL", help="Where the service is; http://127.0.0.1:8000 by default."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="FOKKER_API_KEY",
        help="The key to show; better given by the variable, which no list of processes shows.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's own JSON, all of it.")]


@contextmanager
def session(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Give a client; turn what goes wrong with it into a line and an exit code."""
    from service.client import Client

    with reported(), Client(url, api_key=api_key) as client:
        yield client


@contextmanager
def reported() -> Iterator[None]:
    """Turn what goes wrong with a client into a line and an exit code."""
    from service.client import ClientError, JobError, ServiceUnavailable

    try:
        yield
    except JobError as error:
        stop(error, FAILED)
    except ServiceUnavailable as error:
        stop(error, AWAY)
    except BrokenPipeError:
        raise
    except (ClientError, OSError) as error:
        stop(error, REFUSED)
    except KeyboardInterrupt:
        stop("interrupted", INTERRUPTED)


def stop(why: object, code: int) -> NoReturn:
    """Say why on standard error, and exit."""
    say(f"fokker: {why}")
    raise typer.Exit(code)


def say(line: str) -> None:
    """Write a line that is not the command's answer."""
    typer.echo(line, err=True)


def print_json(document: object, *, indent: int | None = 2) -> None:
    """Print a JSON document."""
    typer.echo(json.dumps(document, indent=indent, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head; on a terminal they fit its width, elsewhere they are kept whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, highlight=False, width=width).print(table)


@contextmanager
def progress(title: str) -> Iterator[OnEvent]:
    """Show how far a job is while the block runs, if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    console = Console(stderr=True)
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(f"{title} queued", total=1.0)

        def show(event: Event) -> None:
            changes: dict[str, Any] = {}
            if event.type in PHASES:
                changes = {"description": f"{title} {PHASES[event.type]}", "completed": 0.0}
            elif event.progress is not None:
                changes = {"completed": event.progress}
            bar.update(task, **changes)

        yield show


PHASES = {"started": "running", "retrying": "queued again"}
"""What a job does after an event of a type that says so."""
