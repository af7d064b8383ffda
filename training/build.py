"""What a configuration names, made: process, architecture, learning rate."""

from __future__ import annotations

import dataclasses
import math

from model.data import DataSpec
from model.process import PROCESSES, Process
from model.unet import UNetConfig
from training.config import Config, ConfigError, ModelSection, nearest


def make_process(config: Config) -> Process:
    """The configured process; raises `ConfigError` for an unknown name or field."""
    section = config.process
    if section.name not in PROCESSES:
        hint = nearest(section.name, PROCESSES)
        raise ConfigError(f"process.name: {section.name!r} is none of {sorted(PROCESSES)}{hint}")
    kind = PROCESSES[section.name]
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    for key in section.options.keys() - set(fields):
        hint = nearest(key, fields)
        raise ConfigError(
            f"process.{key}: unknown key{hint}; {section.name} has {', '.join(fields)}"
        )
    try:
        return kind(**section.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"process: {error}") from error


def make_architecture(section: ModelSection, spec: DataSpec) -> UNetConfig:
    """The U-Net for this data; raises `ConfigError` where the two do not fit."""
    channels, height, width = spec.shape
    try:
        architecture = UNetConfig(
            in_channels=channels,
            channels=section.channels,
            blocks=section.blocks,
            attention=section.attention,
            classes=spec.classes if section.class_conditional else 0,
            groups=section.groups,
            head_channels=section.head_channels,
            dropout=section.dropout,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if height % architecture.divisor or width % architecture.divisor:
        raise ConfigError(
            f"model.channels: {len(section.channels)} levels need a height and width that are "
            f"multiples of {architecture.divisor}; the images are {height}×{width}; give fewer "
            "levels, or another data.size"
        )
    return architecture


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a half cosine to zero or the rate itself; step counts from 0."""
    warmup, total = config.train.warmup_steps, config.train.steps
    if step < warmup:
        return config.train.learning_rate * (step + 1) / warmup
    if config.train.schedule == "constant":
        return config.train.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    return config.train.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
