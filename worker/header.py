"""What a checkpoint's file says of itself, read without its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from model import checkpoint as checkpoints
from model.checkpoint import CheckpointError, Description, build_network


@dataclass(frozen=True, kw_only=True)
class Header:
    """A checkpoint that is not loaded. name: that requests use. digest: sha256 of the file.

    parameters: number of weights; size: their bytes in memory.
    """

    path: Path
    digest: str
    description: Description
    parameters: int
    size: int

    @cached_property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def card(self) -> dict[str, Any]:
        """All that the API knows of a model; JSON values only."""
        description = self.description.to_json()
        return {
            "name": self.name,
            "digest": self.digest,
            **dataclasses.asdict(self.description.data),
            "process": description["process"],
            "prediction": description["prediction"],
            "architecture": description["architecture"],
            "parameters": self.parameters,
            "training": description["training"],
            "library_version": description["library_version"],
        }


class _NoInitialValues(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: on the meta device it loads torch's compiler."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The function's value, or the tensor that it would have filled."""
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))


def read_header(path: Path) -> Header:
    """The header of a checkpoint; raises `CheckpointError` naming the file and what is wrong.

    The weights' names and shapes are checked, their values only when they are loaded.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if "fokker" not in metadata:
            raise CheckpointError(
                "its header has no 'fokker' entry; only files that "
                "`fokker train` wrote can be served"
            )
        description = Description.from_json(json.loads(metadata["fokker"]))
        with torch.device("meta"), _NoInitialValues():
            weights = build_network(description.architecture).state_dict()
        wrong = found.items() ^ {name: tuple(w.shape) for name, w in weights.items()}.items()
        if wrong:
            names = sorted({name for name, _ in wrong})
            raise CheckpointError(f"its weights do not fit its architecture: {names}")
        digest = checkpoints.digest(path)
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Header(
        path=path,
        digest=digest,
        description=description,
        parameters=sum(w.numel() for w in weights.values()),
        size=sum(w.numel() * w.element_size() for w in weights.values()),
    )
