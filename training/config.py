"""The configuration of a training run: one TOML file, every key checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; names each key that is wrong."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """Which images, and which part of them is never trained on."""

    source: Literal["digits"] = "digits"
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15


class ModelSection(_Section):
    """The U-Net; see `model.unet.UNetConfig`."""

    channels: tuple[int, ...] = (48, 64)
    blocks: Annotated[int, Field(ge=1)] = 2
    attention: tuple[int, ...] = ()
    groups: Annotated[int, Field(ge=1)] = 8
    head_channels: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    class_conditional: bool = True
    prediction: Literal["eps", "x0", "v"] = "eps"


class ProcessSection(BaseModel):
    """A process of `model.process.PROCESSES` by name; the other keys are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "vp_linear"

    @property
    def options(self) -> dict[str, float]:
        """The keys beside the name."""
        return {key: float(value) for key, value in (self.model_extra or {}).items()}


class ObjectiveSection(_Section):
    """How the loss looks at noise levels; see `training.objective`."""

    weighting: Literal["simple", "vlb", "likelihood", "snr", "min_snr"] = "simple"
    time_sampling: Literal["uniform", "log_snr"] = "uniform"
    by_loss_history: bool = False
    label_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


class TrainSection(_Section):
    """The loop."""

    seed: int = 0
    steps: Annotated[int, Field(ge=1)] = 4000
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    threads: Annotated[int, Field(ge=1)] | None = None


class EmaSection(_Section):
    """The moving average of the weights that is published."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999


class EvaluateSection(_Section):
    """What is measured once the weights are there; see `training.evaluation`."""

    tolerance: Annotated[float, Field(gt=0.0)] = 1e-3
    probes: Annotated[int, Field(ge=1)] = 8
    max_calls: Annotated[int, Field(ge=9)] = 2000
    sample_steps: Annotated[int, Field(ge=2)] = 250
    samples_per_class: Annotated[int, Field(ge=8)] = 20


class Config(_Section):
    """A whole run."""

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    process: ProcessSection = ProcessSection()
    objective: ObjectiveSection = ObjectiveSection()
    train: TrainSection = TrainSection()
    ema: EmaSection = EmaSection()
    evaluate: EvaluateSection = EvaluateSection()

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read a TOML file; raises `ConfigError` that names the file and each wrong key."""
        try:
            document: dict[str, Any] = tomllib.loads(path.read_text())
            return cls.model_validate(document)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        except ValidationError as error:
            lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ConfigError(
                f"{path} has keys that cannot be used:\n" + "\n".join(lines)
            ) from error
