"""The worker's command."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Annotated, Any

import typer

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def register(app: typer.Typer) -> None:
    """Add `fokker worker`."""
    app.command()(worker)


def worker(
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of *.safetensors checkpoints; the shipped models if left out."),
    ] = None,
) -> None:
    """Run one worker until Ctrl-C: it serves jobs from the Redis at FOKKER_REDIS_URL."""
    # OpenMP threads that spin for long while Redis and the API want the same cores slow everything
    # down; ones that never spin make a forward three times slower. Microseconds of it are best
    # (docs/decisions.md). Read when torch is loaded, so it stands before the import.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if "MALLOC_ARENA_MAX" not in os.environ:
        _share_heaps()
    from model.checkpoint import CheckpointError
    from service.settings import Settings, SettingsError
    from worker.main import run_worker

    given: dict[str, Any] = {} if models is None else {"models": models}
    try:
        code = run_worker(Settings.load(**given))
    except (SettingsError, CheckpointError) as error:
        typer.echo(f"fokker worker: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from error
    raise typer.Exit(code)


def heaps() -> int:
    """How many heaps the threads of a worker's process share: two a core.

    glibc would give each thread its own, eight a core at most. What one thread frees another then
    uses, so that a worker takes less memory; and those that compute need not wait for each other
    (docs/decisions.md, `model.cores.start_threads`).
    """
    return 2 * len(os.sched_getaffinity(0))


def _share_heaps() -> None:
    with contextlib.suppress(AttributeError):  # another system, or another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, heaps())
