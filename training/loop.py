"""The training loop: steps, what is kept and shown of them, and how a run is stopped."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from training import preview, state
from training.config import Config
from training.parallel import World
from training.preview import Preview
from training.state import StateError
from training.trainer import Step, Trainer
from training.watch import Watch

_READ_AHEAD = {"cpu": 1, "cuda": 10}
"""Steps whose losses are read together: each reading waits for all that a GPU has queued."""

_SHOWN = 8


class TrainingDivergedError(RuntimeError):
    """The loss, or its gradient, is no longer a number."""


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop, and did, with its state saved."""

    def __init__(self, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}; continue with --resume")
        self.signal_number = signal_number


@dataclass(frozen=True, kw_only=True)
class Trained:
    """loss: the mean of the last steps. seconds: that all of the run's processes took in turn."""

    loss: float
    seconds: float


def train(
    config: Config,
    trainer: Trainer,
    world: World,
    out: Path,
    fingerprint: str,
    show: Preview,
) -> Trained:
    """Take all steps that are left, from the last state in ``out``.

    Raises `Stopped` after SIGTERM or SIGINT, `TrainingDivergedError` for a loss that is not finite,
    `StateError` for a state that cannot be written or does not fit. Only the first process writes.
    """
    loop = _Loop(config, trainer, world, out, fingerprint)
    loop.restore()
    settings, total = config.train, config.train.steps
    published = trainer.ema.weights[config.ema.decays[0]]
    with _asked_to_stop() as asked, loop.watching() as watch:
        pending: list[Step] = []
        while trainer.done < total:
            pending.append(trainer.advance(stop=bool(asked)))
            done = trainer.done
            save = _due(settings.checkpoint_every, done) or done == total
            draw, measure = _due(settings.sample_every, done), _due(settings.held_out_every, done)
            if not (save or draw or measure or len(pending) == _READ_AHEAD[world.device.type]):
                continue
            stop = loop.read(pending)
            pending = []
            if save or stop:
                loop.save()
            if measure and watch:
                watch.held_out(done, show.bits_per_dim(published))
            if draw and watch:
                sheet = show.grid(published)
                preview.save(out / "samples" / f"step-{done:08d}.png", sheet)
                watch.samples(done, sheet)
            if stop and done < total:
                raise Stopped(done, asked[0] if asked else signal.SIGTERM)
            if watch and (save or draw or measure):
                watch.rest()
    return Trained(loss=watch.loss if watch else math.nan, seconds=loop.seconds)


def _due(every: int, done: int) -> bool:
    return bool(every) and done % every == 0


class _Loop:
    """What `train` does between its steps."""

    def __init__(
        self, config: Config, trainer: Trainer, world: World, out: Path, fingerprint: str
    ) -> None:
        self._config, self._trainer, self._world, self._out = config, trainer, world, out
        self._fingerprint = fingerprint
        self._states = out / "checkpoints"
        self._watch: Watch | None = None
        self._before, self._started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent on the run, in this process and those before it."""
        return self._before + time.monotonic() - self._started

    def restore(self) -> None:
        """Go on from the last state, if there is one."""
        path = state.latest(self._states)
        if path is None:
            return
        found = state.load(path)
        if found.document["data_fingerprint"] != self._fingerprint:
            raise StateError(
                f"{path} was trained on other data ({found.document['data_fingerprint']}) than "
                f"data.path now holds ({self._fingerprint}); give it the same, or begin a new run"
            )
        if found.step > self._config.train.steps:
            raise StateError(
                f"{path} is at step {found.step} already, beyond train.steps = "
                f"{self._config.train.steps}: give it at least as many, or begin a new run"
            )
        state.require_fit(path, found, self._trainer.tensors())
        self._trainer.restore(found)
        self._before = found.document["seconds"]

    @contextmanager
    def watching(self) -> Iterator[Watch | None]:
        """A bar and the files of metrics, in the first process."""
        if not self._world.first:
            yield None
            return
        settings = self._config.train
        with Watch(
            self._out,
            done=self._trainer.done,
            total=settings.steps,
            batch_size=settings.batch_size,
        ) as self._watch:
            yield self._watch

    def read(self, steps: Sequence[Step]) -> bool:
        """Wait for some steps, keep and show them; whether any process was asked to stop."""
        reports = torch.stack([step.report for step in steps]).tolist()
        lines = []
        for step, (loss, norm, _) in zip(steps, reports, strict=True):
            # With fp16 a gradient may overflow: the scaler leaves out the step, and scales less.
            fp16 = self._config.train.precision == "fp16"
            if not math.isfinite(loss) or not (fp16 or math.isfinite(norm)):
                raise self._diverged(step.number, loss, norm)
            lines.append(
                {
                    "step": step.number,
                    "loss": loss,
                    "learning_rate": step.learning_rate,
                    "gradient_norm": norm if math.isfinite(norm) else None,
                }
            )
        if self._watch:
            self._watch.steps(lines)
        return any(asked > 0.0 for _, _, asked in reports)

    def save(self) -> None:
        """Write the state, from the first process; the others wait."""
        if self._world.first:
            now = self._trainer.state()
            document = {
                **now.document,
                "config": self._config.model_dump(mode="json"),
                "data_fingerprint": self._fingerprint,
                "seconds": self.seconds,
            }
            state.save(self._states, replace(now, document=document), self._config.train.keep)
        self._world.wait()

    def _diverged(self, step: int, loss: float, norm: float) -> TrainingDivergedError:
        files = self._trainer.files(step)
        good = state.latest(self._states)
        settings = self._config.train
        if self._world.first:
            record = {"step": step, "loss": repr(loss), "gradient_norm": repr(norm), "files": files}
            (self._out / "diverged.json").write_text(json.dumps(record, indent=2) + "\n")
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        return TrainingDivergedError(
            f"the loss is {loss} and its gradient's norm {norm} at step {step}, for "
            f"{', '.join(files[:_SHOWN])}{more} (all in {self._out / 'diverged.json'}); "
            f"the last good state is {good or 'the beginning'}; look at these images, or begin "
            f"again with a lower train.learning_rate (now {settings.learning_rate}) or "
            f"train.clip_norm (now {settings.clip_norm})"
        )


@contextmanager
def _asked_to_stop() -> Iterator[list[signal.Signals]]:
    """Signals that asked to stop, as they come; the second SIGINT interrupts at once."""
    asked: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(signal.Signals(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
