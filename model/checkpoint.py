"""Checkpoints: one ``.safetensors`` file whose header carries one JSON document.

The document says everything needed to run the weights: architecture, process, prediction, data,
and how they were trained. It can be read without torch (the header is JSON), there is no pickle,
and loading checks every key and shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.cores import EAGER, PIECE, SharedAmongCores
from model.data import DataSpec
from model.denoiser import Denoiser
from model.inference import prepare
from model.prediction import TO_EPS
from model.process import PROCESSES, Process
from model.unet import UNet, UNetConfig

FORMAT = 1
_METADATA_KEY = "fokker"
_SHOWN = 4  # names in an error

REPLACED = "replaced"
"""In a folder of published checkpoints, where versions wait that others have taken the place of."""

NetworkConfig = UNetConfig | GaussianMixtureConfig

NETWORKS: dict[str, tuple[type[Any], type[nn.Module], torch.dtype]] = {
    "unet": (UNetConfig, UNet, torch.float32),
    "gaussian_mixture": (GaussianMixtureConfig, GaussianMixture, torch.float64),
}
"""Name → (configuration, network, dtype that it runs in)."""

Config = TypeVar("Config")


class CheckpointError(ValueError):
    """A file that is not a usable checkpoint; says which part is wrong."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The JSON document of a checkpoint."""

    architecture: NetworkConfig
    process: Process
    data: DataSpec
    prediction: str = "eps"
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prediction not in TO_EPS:
            raise CheckpointError(
                f"unknown prediction {self.prediction!r}; this version knows {sorted(TO_EPS)}"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "format": FORMAT,
            "library_version": library_version(),
            "architecture": _named(self.architecture, {k: v[0] for k, v in NETWORKS.items()}),
            "process": _named(self.process, PROCESSES),
            "prediction": self.prediction,
            "data": dataclasses.asdict(self.data),
            "training": dict(self.training),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Description:
        """The inverse of `to_json`; raises `CheckpointError` naming the part that is wrong."""
        if document.get("format") != FORMAT:
            raise CheckpointError(
                f"checkpoint format {document.get('format')!r} is not the one that this version "
                f"reads ({FORMAT}); save it again with the version of Fokker that wrote it"
            )
        configs = {name: entry[0] for name, entry in NETWORKS.items()}
        return cls(
            architecture=_from_named("architecture", document, configs),
            process=_from_named("process", document, PROCESSES),
            data=_construct("data", DataSpec, _part("data", document)),
            prediction=str(document.get("prediction")),
            training=_part("training", document),
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint. digest: sha256 of the file, "sha256:…"."""

    description: Description
    network: nn.Module
    digest: str

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(tensor.numel() for tensor in self.network.state_dict().values())

    def denoiser(
        self,
        device: torch.device | str = "cpu",
        *,
        precision: torch.dtype = torch.float32,
        compile: bool = False,  # noqa: A002
    ) -> Denoiser:
        """The network ready to answer queries on a device; its weights get no gradients.

        precision, compile: of a second copy for rows that need neither gradients nor to be
        reproducible; see `model.inference.prepare`, which also says what it raises. On a CPU
        such rows are shared among the cores.
        """
        device = torch.device(device)
        dtype = dtype_of(self.description.architecture)
        network = prepare(self.network.to(device).eval().requires_grad_(False), device=device)
        fast: nn.Module | None = None
        if isinstance(self.network, UNet) and (precision != torch.float32 or compile):
            copy = build_network(self.description.architecture)
            copy.load_state_dict(self.network.state_dict())
            shape = self.description.data.shape if compile else None
            fast = prepare(copy.eval(), device=device, dtype=precision, compile_for=shape)
        if isinstance(self.network, UNet) and device.type == "cpu":
            fast = SharedAmongCores(fast or network, PIECE if compile else EAGER)
        return Denoiser(
            network=network,
            prediction=self.description.prediction,
            dtype=dtype,
            device=device,
            fast=fast,
        )


def replaced_path(path: Path, digest: str) -> Path:
    """Where the version with this digest is kept once the file at ``path`` is another."""
    return path.parent / REPLACED / digest.removeprefix("sha256:")[:16] / path.name


def library_version() -> str:
    """The installed version of Fokker, "0+unknown" where it is not installed."""
    try:
        return version("fokker")
    except PackageNotFoundError:
        return "0+unknown"


def build_network(config: NetworkConfig) -> nn.Module:
    """A network of this configuration, with fresh weights."""
    for config_type, network_type, _ in NETWORKS.values():
        if isinstance(config, config_type):
            return network_type(config)
    raise CheckpointError(f"no network for a configuration of type {type(config).__name__}")


def dtype_of(config: NetworkConfig) -> torch.dtype:
    """The dtype in which networks of this configuration run."""
    return next(dtype for kind, _, dtype in NETWORKS.values() if isinstance(config, kind))


def save(path: Path, description: Description, weights: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; the file appears whole or not at all."""
    document = json.dumps(description.to_json(), sort_keys=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={_METADATA_KEY: document})
    partial.chmod(0o644)  # a worker that runs as another user must be able to read it
    partial.replace(path)


def digest(path: Path) -> str:
    """By which a checkpoint is known: "sha256:…" of its file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; raises `CheckpointError` that names the file and what is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _METADATA_KEY not in metadata:
            raise CheckpointError(
                f"its header has no {_METADATA_KEY!r} entry; only files that "
                "`fokker train` wrote can be served"
            )
        description = Description.from_json(json.loads(metadata[_METADATA_KEY]))
        network = build_network(description.architecture)
        check_weights(network.state_dict(), weights)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(description=description, network=network, digest=digest(path))


def check_weights(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` unless keys and shapes are the same and what was found is finite."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"the weights do not fit the architecture: missing {_some(missing)}, "
            f"not expected {_some(extra)}"
        )
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise CheckpointError(
                f"weight {name!r} has shape {tuple(found[name].shape)}, "
                f"the architecture needs {tuple(tensor.shape)}"
            )
        if not torch.isfinite(found[name]).all():
            raise CheckpointError(f"weight {name!r} has values that are not finite")


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more if names else "none"


def _named(value: Any, kinds: Mapping[str, type[Any]]) -> dict[str, Any]:
    name = next(name for name, kind in kinds.items() if type(value) is kind)
    return {"name": name, **dataclasses.asdict(value)}


def _part(part: str, document: Mapping[str, Any]) -> dict[str, Any]:
    value = document.get(part)
    if not isinstance(value, dict):
        raise CheckpointError(f"{part} must be an object, got {value!r}")
    return value


def _from_named(
    part: str, document: Mapping[str, Any], kinds: Mapping[str, type[Config]]
) -> Config:
    fields = dict(_part(part, document))
    name = fields.pop("name", None)
    if name not in kinds:
        raise CheckpointError(f"unknown {part} {name!r}; this version knows {sorted(kinds)}")
    return _construct(part, kinds[name], fields)


def _construct(part: str, kind: type[Config], fields: Mapping[str, Any]) -> Config:
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(fields.keys() - known):
        raise CheckpointError(f"{part} has unknown fields {unknown}; known are {sorted(known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{part}: {error}") from error
