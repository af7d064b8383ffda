"""Watching a run: a progress bar, ``metrics.jsonl``, and TensorBoard's scalars and sample grids.

    metrics.jsonl    one line a step: step, loss, learning_rate, gradient_norm, images_per_second
    held_out.jsonl   now and then: step, bits_per_dim (a bound on held-out images)
    tensorboard/     the same, and the grids; tensorboard --logdir RUN shows them

A run that goes on from a state first takes back the lines of the steps after it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from training.folder import RunError

METRICS = "metrics.jsonl"
HELD_OUT = "held_out.jsonl"
LOSS_WINDOW = 200  # steps

_COLUMNS = (
    SpinnerColumn(),
    TextColumn("step"),
    MofNCompleteColumn(),
    BarColumn(),
    TextColumn("loss {task.fields[loss]:.4f}"),
    TextColumn("{task.fields[speed]:.0f} images/s"),
    TimeRemainingColumn(),
)


class Watch:
    """What is shown and kept of the steps done; begins behind step ``done`` of ``total``."""

    def __init__(self, run: Path, *, done: int, total: int, batch_size: int) -> None:
        self._batch_size = batch_size
        kept = _take_back(run / METRICS, done)[-LOSS_WINDOW:]
        self._losses: list[float] = [line["loss"] for line in kept]
        self._log: TextIO = (run / METRICS).open("a")
        _take_back(run / HELD_OUT, done)
        self._held_out: TextIO = (run / HELD_OUT).open("a")
        self._board = SummaryWriter(
            str(run / "tensorboard"), purge_step=done + 1 if done else None, flush_secs=10
        )
        self.console = Console(stderr=True)
        self._bar = Progress(*_COLUMNS, console=self.console)
        self._task = self._bar.add_task(
            "train", total=total, completed=done, loss=self.loss, speed=0.0
        )
        self._last = time.monotonic()

    @property
    def loss(self) -> float:
        """The mean of the last `LOSS_WINDOW` steps; NaN before the first."""
        recent = self._losses[-LOSS_WINDOW:]
        return sum(recent) / len(recent) if recent else float("nan")

    def steps(self, steps: Iterable[dict[str, Any]]) -> None:
        """Keep and show some steps, done since the last call: a line of metrics each."""
        lines = list(steps)
        now = time.monotonic()
        speed = len(lines) * self._batch_size / max(1e-9, now - self._last)
        self._last = now
        for line in lines:
            self._losses = [*self._losses[-LOSS_WINDOW:], line["loss"]]
            self._log.write(json.dumps({**line, "images_per_second": round(speed, 1)}) + "\n")
            for name in ("loss", "learning_rate", "gradient_norm"):
                if line[name] is not None:
                    self._board.add_scalar(name, line[name], line["step"])
            self._board.add_scalar("images_per_second", speed, line["step"])
        _flush(self._log)
        if lines:
            self._bar.update(self._task, completed=lines[-1]["step"], loss=self.loss, speed=speed)

    def held_out(self, step: int, bits_per_dim: float) -> None:
        """Keep and show the bound on held-out images."""
        record = {"step": step, "bits_per_dim": round(bits_per_dim, 4)}
        self._held_out.write(json.dumps(record) + "\n")
        _flush(self._held_out)
        self._board.add_scalar("held_out_bits_per_dim", bits_per_dim, step)
        self.console.print(
            f"step {step}: bound on held-out images {bits_per_dim:.3f} bits/dim",
            highlight=False,
        )

    def samples(self, step: int, sheet: NDArray[np.uint8]) -> None:
        """Keep a grid of samples, (H, W, C)."""
        self._board.add_image("samples", sheet, step, dataformats="HWC")

    def rest(self) -> None:
        """What was done since the last steps does not count for their speed."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._board.close()
        self._log.close()
        self._held_out.close()


def _flush(log: TextIO) -> None:
    try:
        log.flush()
    except OSError as error:
        raise RunError(
            f"{log.name} cannot be written: {error.strerror}; mend that (if the disk is full, "
            "make room) and continue with --resume"
        ) from error


def _take_back(path: Path, done: int) -> list[dict[str, Any]]:
    """Drop the records of later steps, and one that was cut; those that stay."""
    if not path.exists():
        return []
    kept: list[str] = []
    records: list[dict[str, Any]] = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] > done:
            break
        kept.append(line)
        records.append(record)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, path)
    return records
