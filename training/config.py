"""The configuration of a training run: one TOML file, every key checked.

Relative paths in it begin at the working directory.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

Decay = Annotated[float, Field(gt=0.0, lt=1.0)]


def _several(value: Any) -> Any:
    return [value] if isinstance(value, int) else value


Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(_several)]
"""One width or several."""


class ConfigError(ValueError):
    """A configuration that cannot be used; names each key that is wrong."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true for 1."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError(f"{str(value).lower()} is no value of it")
        return value


class DataSection(_Section):
    """Which images, how they are read, and which part of them is never trained on.

    path: a folder, a zip of one, a `.npy` or `.npz`, or "digits". size: height and width, or one
    number for both; pictures of another size are scaled ("resize"), or scaled and cut ("crop").
    size, channels and bits are the pictures' own where they are left out. levels: of arrays, where
    they are fewer than their type holds. flip: mirror half of the images, left to right.
    """

    path: str = "digits"
    size: Annotated[int, Field(ge=1)] | tuple[PositiveInt, PositiveInt] | None = None
    fit: Literal["crop", "resize"] = "crop"
    channels: Literal[1, 3, 4] | None = None
    bits: Literal[8, 16] | None = None
    levels: Annotated[int, Field(ge=2, le=65_536)] | None = None
    flip: bool = False
    corrupt: Literal["skip", "stop"] = "skip"
    cache: Path | None = None
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width, where they are given."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class ModelSection(_Section):
    """The U-Net; see `model.unet.UNetConfig`."""

    channels: Widths = (48, 64)
    blocks: Annotated[int, Field(ge=1)] = 2
    attention: tuple[int, ...] = ()
    groups: Annotated[int, Field(ge=1)] = 8
    head_channels: Annotated[int, Field(ge=1)] = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    class_conditional: bool = True
    prediction: Literal["eps", "x0", "v"] = "eps"


class ProcessSection(BaseModel):
    """A process of `model.process.PROCESSES` by name; the other keys are its fields."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

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
    """The loop.

    batch_size: images a step, over all processes and all of the ``accumulate`` parts that a step
    is computed in. precision: of the forward pass; weights stay float32. channels_last: how
    activations lie; by default so on a GPU and not on a CPU, where it trains slower. threads: of a
    CPU, which have rows of their own where there are four or more for each, and up to 16 of them.
    checkpoint_every: steps between states that can be resumed, of which the last ``keep`` stay.
    sample_every, held_out_every: steps between grids of samples, and between bounds on held-out
    images (0: none).
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: PositiveInt = 4000
    batch_size: PositiveInt = 64
    accumulate: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 200
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0.0)] = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool | None = None
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    sample_every: NonNegativeInt = 1000
    held_out_every: NonNegativeInt = 500

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} is no multiple of accumulate = {self.accumulate}"
            )
        return self


class EmaSection(_Section):
    """Moving averages of the weights; the first decay's is the model, the others lie beside it."""

    decay: Decay | Annotated[tuple[Decay, ...], Field(min_length=1)] = 0.999

    @property
    def decays(self) -> tuple[float, ...]:
        """All of them, without doubles."""
        given = (self.decay,) if isinstance(self.decay, float) else self.decay
        return tuple(dict.fromkeys(given))


class EvaluateSection(_Section):
    """What is measured once the weights are there; see `training.evaluation.evaluate.Settings`.

    images: held-out images for likelihood and bound, at most. samples: drawn for the card, the
    report and what compares them with images. Tolerance and probes are those of /loglik, whose
    percentiles the checkpoint's quantiles are for.
    """

    images: Annotated[int, Field(ge=2)] = 500
    tolerance: Annotated[float, Field(gt=0.0)] = 1e-2
    probes: Annotated[int, Field(ge=1)] = 8
    max_calls: Annotated[int, Field(ge=9)] = 2000
    sample_steps: Annotated[int, Field(ge=2)] = 250
    samples: Annotated[int, Field(ge=8)] = 200
    features: str = "pixels"


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
    def read(cls, path: Path, changes: Sequence[str] = ()) -> Config:
        """Read a TOML file, with changes like "model.channels=[64, 64]" made to it.

        A value is written as in TOML; what is none is taken as text, and one number does where
        many may stand. Raises `ConfigError` that names the source and each wrong key.
        """
        try:
            document: dict[str, Any] = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"cannot read {path}: {reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
        for change in changes:
            _apply(document, change)
        return cls.of(document, " and ".join([str(path), *(f"--set {c}" for c in changes)]))

    @classmethod
    def of(cls, document: Mapping[str, Any], source: str) -> Config:
        """A document's, checked; raises `ConfigError` that names each wrong key."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            lines = "".join(f"\n  {_words(e['loc'], e['type'], e['msg'])}" for e in error.errors())
            raise ConfigError(f"{source} cannot be used:{lines}") from error


def known_keys() -> list[str]:
    """Every key of a configuration, with its section: "train.steps", ..."""
    sections = {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    return [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]


def nearest(key: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)", with the known key that is nearest to an unknown one."""
    keys = {name: name for name in known}
    # A key without its section, or in the wrong one, is found by what follows the dot.
    short = {name.rpartition(".")[2]: name for name in reversed(list(keys))}
    for given, names in ((key, keys), (key.rpartition(".")[2], short)):
        if found := get_close_matches(given, names, n=1, cutoff=0.6):
            return f" (did you mean {names[found[0]]}?)"
    return ""


def _words(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(map(str, loc))
    if kind == "extra_forbidden":
        sections = [f"[{name}]" for name in Config.model_fields]
        hint = nearest(key, known_keys()) or f"; the sections are {', '.join(sections)}"
        return f"{key}: unknown key{hint}"
    return f"{key}: {message}"


def _apply(document: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name or not sections or not all(sections):
        hint = nearest(key.strip(), known_keys())
        raise ConfigError(f"--set {change}: write section.key=value, as train.steps=1000{hint}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text.strip()
    place = document
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change}: {section} is no section")
        place = inner
    place[name] = value
