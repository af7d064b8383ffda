"""The training loop: from a configuration to the averaged weights. Same seed, same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint import build_network
from model.process import PROCESSES, Process
from model.unet import UNetConfig
from training.config import Config, ConfigError, ModelSection
from training.data import Dataset, Split
from training.ema import Ema
from training.objective import (
    TIME_SAMPLING,
    WEIGHTINGS,
    LossHistory,
    drop_labels,
    eps_loss,
    stratified,
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step done: its number (from 1), its mean loss, the learning rate it used."""

    step: int
    loss: float
    learning_rate: float


class TrainingDivergedError(RuntimeError):
    """The loss is no longer a number."""


def make_process(config: Config) -> Process:
    """The configured process; raises `ConfigError` for an unknown name or field."""
    section = config.process
    if section.name not in PROCESSES:
        raise ConfigError(f"process.name: {section.name!r} is none of {sorted(PROCESSES)}")
    try:
        return PROCESSES[section.name](**section.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"process: {error}") from error


def make_architecture(section: ModelSection, dataset: Dataset) -> UNetConfig:
    """The U-Net for this data; raises `ConfigError` where the two do not fit."""
    channels, height, width = dataset.spec.shape
    try:
        architecture = UNetConfig(
            in_channels=channels,
            channels=section.channels,
            blocks=section.blocks,
            attention=section.attention,
            classes=dataset.spec.classes if section.class_conditional else 0,
            groups=section.groups,
            head_channels=section.head_channels,
            dropout=section.dropout,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if height % architecture.divisor or width % architecture.divisor:
        raise ConfigError(
            f"model.channels: {len(section.channels)} levels need a height and width that are "
            f"multiples of {architecture.divisor}; the images are {height}×{width}"
        )
    return architecture


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a half cosine to zero; step counts from 0."""
    warmup, total = config.train.warmup_steps, config.train.steps
    if step < warmup:
        return config.train.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.train.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def batches(split: Split, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (levels, labels): every image once before any comes again."""
    queue = torch.empty(0, dtype=torch.int64)
    while True:
        while len(queue) < size:
            queue = torch.cat((queue, torch.randperm(len(split), generator=generator)))
        chosen, queue = queue[:size], queue[size:]
        yield split.take(chosen).to(torch.float64), split.labels[chosen]


def train(
    config: Config,
    dataset: Dataset,
    process: Process,
    architecture: UNetConfig,
    watch: Callable[[Progress], None],
) -> dict[str, Tensor]:
    """Train and return the averaged weights; ``watch`` sees every step.

    Raises `TrainingDivergedError` with the step at the first loss that is not finite.
    """
    settings = config.train
    torch.manual_seed(settings.seed)  # initial weights and dropout
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(settings.seed)
    network = build_network(architecture).train()
    ema = Ema(network, config.ema.decays[0])
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    sample_times = TIME_SAMPLING[config.objective.time_sampling]
    weighting = WEIGHTINGS[config.objective.weighting]
    history = LossHistory() if config.objective.by_loss_history else None
    stream = batches(dataset.train, settings.batch_size, generator)
    for step in range(settings.steps):
        levels, labels = next(stream)
        u = torch.rand(levels.shape, generator=generator, dtype=torch.float64)
        x0 = dataset.spec.to_model(levels, u).float()
        labels = drop_labels(labels, config.objective.label_dropout, generator)
        quantile, share = stratified(len(x0), generator), torch.ones(len(x0), dtype=torch.float64)
        if history is not None:
            quantile, share = history.draw(quantile)
        t = sample_times(process, quantile)
        errors = eps_loss(
            network, x0, labels, process.log_snr(t), generator, config.model.prediction
        ) * weighting(process, t)
        if history is not None:
            history.record(quantile, errors.detach())
        loss = (errors * share).mean()
        rate = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        ema.update(network)
        if not math.isfinite(value := loss.item()):
            raise TrainingDivergedError(
                f"the loss is {value} at step {step + 1}; lower train.learning_rate "
                f"(now {settings.learning_rate}) or train.clip_norm (now {settings.clip_norm})"
            )
        watch(Progress(step=step + 1, loss=value, learning_rate=rate))
    return ema.weights
