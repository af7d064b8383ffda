"""One training run, whole: data, loop, checkpoint, evaluation, card."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint, Description
from training import build, data, folder, loop, parallel
from training.config import Config
from training.data import Dataset
from training.finish import finish
from training.folder import RunError
from training.parallel import World
from training.preview import Preview
from training.trainer import Trainer

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained network, not yet saved as a model."""

    description: Description
    ema: Mapping[float, Mapping[str, Tensor]]
    dataset: Dataset
    seconds: float
    machine: str


def run(
    config: Config, *, name: str, out: Path, command: str, resume: bool = False
) -> Checkpoint | None:
    """Train by the configuration and fill ``out`` with name.safetensors and what `finish` writes.

    resume: go on from the last state in ``out``, or begin where there is none. Under torchrun every
    process calls this; only the first writes, and returns the checkpoint.

    Raises what `fit` does.
    """
    fitted = fit(config, out, resume=resume)
    if fitted is None:
        return None
    with folder.opened(out, config, resume=True):  # nobody continues it meanwhile
        return _finish(config, fitted, out, name, command)


def _finish(config: Config, fitted: Fitted, out: Path, name: str, command: str) -> Checkpoint:
    path = out / f"{name}.safetensors"
    published, *others = fitted.ema.items()
    try:
        checkpoints.save(path, fitted.description, published[1])
        for decay, weights in others:
            (out / "ema").mkdir(exist_ok=True)
            other = out / "ema" / f"{name}-{decay}.safetensors"
            checkpoints.save(other, fitted.description, weights)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the model cannot be written into {out}: {error}; mend that (if the disk is full, "
            "make room) and continue with --resume"
        ) from error
    console = Console()
    console.print(f"wrote {path} after {fitted.seconds:.0f} s; evaluating", highlight=False)
    checkpoint = finish(
        config,
        fitted.dataset,
        path,
        command=command,
        seconds=fitted.seconds,
        machine=fitted.machine,
        say=lambda words: console.print(f"… {words}", highlight=False),
    )
    console.print(f"{path} is {checkpoint.digest}", highlight=False)
    return checkpoint


def fit(config: Config, out: Path, *, resume: bool = False) -> Fitted | None:
    """Train by the configuration; None in all processes but the first.

    Raises `ConfigError`, `DataError` and `RunError` before any work for what cannot be used, and
    what `training.loop.train` raises.
    """
    dataset = data.read(config.data)
    process = build.make_process(config)
    architecture = build.make_architecture(config.model, dataset.spec)
    with ExitStack() as stack:
        world = stack.enter_context(parallel.world(config.train.device))
        stack.enter_context(_settled(world, config.train.threads))
        if world.first:
            stack.enter_context(folder.opened(out, config, resume=resume))
            _introduce(dataset, world)
        world.wait()
        trainer = Trainer(config, dataset, process, architecture, world)
        prediction = config.model.prediction
        show = Preview(architecture, process, dataset, prediction, world.device)
        trained = loop.train(config, trainer, world, out, dataset.fingerprint, show)
        machine = _machine(world)
    if not world.first:
        return None
    return Fitted(
        description=Description(
            architecture=architecture,
            process=process,
            data=dataset.spec,
            prediction=prediction,
            training=_summary(config, dataset, trained.loss),
        ),
        ema=trainer.ema.weights,
        dataset=dataset,
        seconds=trained.seconds,
        machine=machine,
    )


@contextmanager
def _settled(world: World, threads: int | None) -> Iterator[None]:
    """torch's switches of this process: the same sums every time on a CPU, fast ones on a GPU."""
    deterministic: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(threads or before[0])
    if world.device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        deterministic.fill_uninitialized_memory = False  # for finding bugs, not free
    else:
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]


def _introduce(dataset: Dataset, world: World) -> None:
    """Say what is about to be trained, and which images are not."""
    console = Console(stderr=True)
    channels, height, width = dataset.spec.shape
    console.print(
        f"{dataset.name}: {len(dataset.train)} images of {height}×{width}×{channels} to train on, "
        f"{len(dataset.held_out)} held out, {dataset.spec.classes or 'no'} classes; "
        f"{world.size} process{'es' if world.size > 1 else ''} on {world.device.type}",
        highlight=False,
    )
    if dataset.skipped:
        total = len(dataset.skipped) + len(dataset.train) + len(dataset.held_out)
        console.print(f"skipped {len(dataset.skipped)} of {total} files:", highlight=False)
        for file, reason in islice(dataset.skipped.items(), _SHOWN):
            console.print(f"  {file}: {reason}", highlight=False, markup=False)
        if len(dataset.skipped) > _SHOWN:
            console.print(f"  and {len(dataset.skipped) - _SHOWN} more", highlight=False)


def _summary(config: Config, dataset: Dataset, loss: float) -> dict[str, Any]:
    """What a checkpoint says of its training; nothing that differs between equal runs."""
    return {
        "dataset": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "train_images": len(dataset.train),
        "held_out_images": len(dataset.held_out),
        "steps": config.train.steps,
        "images_seen": config.train.steps * config.train.batch_size,
        "loss": loss,
        "config": config.model_dump(mode="json"),
    }


def _machine(world: World) -> str:
    if world.device.type == "cuda":
        kind = f"{world.size} × {torch.cuda.get_device_name(world.device)}"
    else:
        threads = torch.get_num_threads()
        each = f"{world.size} processes of " if world.size > 1 else ""
        name = platform.processor() or platform.machine()
        kind = f"{each}{threads} CPU thread{'s' if threads > 1 else ''} ({name})"
    return f"{kind}, torch {torch.__version__}"
