"""One training run, whole: data, loop, checkpoint, evaluation, card."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from model import checkpoint as checkpoints
from model.checkpoint import Checkpoint, Description
from model.pf_ode import Adaptive
from model.process import Process
from model.query import UNCONDITIONAL
from model.unet import UNetConfig
from training import data, evaluation, loop, report
from training.config import Config
from training.data import Dataset

_LOSS_WINDOW = 200


def run(config: Config, *, name: str, out: Path, command: str) -> Checkpoint:
    """Train by the configuration and fill ``out`` with name.safetensors, name.png and name.md.

    Raises `ConfigError` before any work for a configuration that cannot be used, and
    `TrainingDivergedError` when the loss is no longer finite.
    """
    console = Console()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    dataset = data.read(config.data)
    process = loop.make_process(config)
    architecture = loop.make_architecture(config.model, dataset)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")

    started = time.monotonic()
    weights, loss = _train_with_bar(config, dataset, process, architecture, out, console)
    seconds = time.monotonic() - started
    description = Description(
        architecture=architecture,
        process=process,
        data=dataset.spec,
        prediction=config.model.prediction,
        training=_summary(config, dataset, loss),
    )
    path = out / f"{name}.safetensors"
    checkpoints.save(path, description, weights)
    console.print(f"wrote {path} after {seconds:.0f} s; evaluating")

    checkpoint = checkpoints.load(path)
    conditional = None
    if architecture.classes:
        conditional = _held_out_bits(checkpoint, dataset, config, conditional=True)
    unconditional = _held_out_bits(checkpoint, dataset, config, conditional=False)
    accuracy = _sample_grid(checkpoint, dataset, config, out / f"{name}.png")
    text = report.card(
        name=name,
        command=command,
        checkpoint=checkpoint,
        config=config,
        seconds=seconds,
        machine=_machine(),
        unconditional=unconditional,
        conditional=conditional,
        accuracy=accuracy,
    )
    (out / f"{name}.md").write_text(text)
    metrics = {
        "seconds": seconds,
        "bits_per_dim": dataclasses.asdict(unconditional),
        "bits_per_dim_given_class": conditional and dataclasses.asdict(conditional),
        "class_accuracy": accuracy,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    console.print(text, markup=False)
    return checkpoint


def _train_with_bar(
    config: Config,
    dataset: Dataset,
    process: Process,
    architecture: UNetConfig,
    out: Path,
    console: Console,
) -> tuple[dict[str, torch.Tensor], float]:
    """The weights and the mean loss of the last steps."""
    columns = (
        SpinnerColumn(),
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    losses: list[float] = []
    started = time.monotonic()
    with Progress(*columns, console=console) as bar, (out / "metrics.jsonl").open("w") as log:
        task = bar.add_task("train", total=config.train.steps, loss=float("nan"), speed=0.0)

        def watch(progress: loop.Progress) -> None:
            losses.append(progress.loss)
            recent = losses[-_LOSS_WINDOW:]
            speed = progress.step * config.train.batch_size / (time.monotonic() - started)
            bar.update(task, completed=progress.step, loss=sum(recent) / len(recent), speed=speed)
            log.write(json.dumps(dataclasses.asdict(progress)) + "\n")

        weights = loop.train(config, dataset, process, architecture, watch)
    recent = losses[-_LOSS_WINDOW:]
    return weights, sum(recent) / len(recent)


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


def _held_out_bits(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, *, conditional: bool
) -> evaluation.BitsPerDim:
    section = config.evaluate
    return evaluation.held_out_bits_per_dim(
        checkpoint,
        dataset.held_out,
        conditional=conditional,
        solver=Adaptive(tolerance=section.tolerance, max_calls=section.max_calls),
        probes=section.probes,
    )


def _sample_grid(
    checkpoint: Checkpoint, dataset: Dataset, config: Config, path: Path
) -> float | None:
    """Save a grid, one class a column; the share of samples with the class that was asked for."""
    section = config.evaluate
    classes = dataset.spec.classes if config.model.class_conditional else 0
    labels = torch.arange(classes).repeat(section.samples_per_class)
    if not classes:
        labels = torch.full((64,), UNCONDITIONAL)
    x = evaluation.samples(checkpoint, labels, steps=section.sample_steps)
    columns = classes or 8
    report.save_grid(path, dataset.spec, x[: 8 * columns], columns)
    if not classes:
        return None
    return evaluation.class_accuracy(dataset.spec.to_levels(x), labels, dataset.train)


def _machine() -> str:
    kind = platform.processor() or platform.machine()
    return f"{torch.get_num_threads()} CPU threads ({kind}, torch {torch.__version__})"
