"""The models that a worker offers: every checkpoint of a folder, loaded once a process."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import model
from model.checkpoint import Checkpoint, CheckpointError, load
from model.denoiser import Denoiser

SHIPPED = Path(model.__file__).parent / "zoo"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A checkpoint under the name that requests use, ready to answer queries."""

    name: str
    checkpoint: Checkpoint
    denoiser: Denoiser

    @property
    def card(self) -> dict[str, Any]:
        """All that the API knows of a model; JSON values only."""
        description = self.checkpoint.description.to_json()
        data = dataclasses.asdict(self.checkpoint.description.data)
        return {
            "name": self.name,
            "digest": self.checkpoint.digest,
            **data,
            "process": description["process"],
            "prediction": description["prediction"],
            "architecture": description["architecture"],
            "parameters": self.checkpoint.parameters,
            "training": description["training"],
            "library_version": description["library_version"],
        }


class Shelf:
    """Served models by digest. A file that cannot be loaded is logged and left out."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Raises `CheckpointError` when the folder has nothing that can be served."""
        self.device = device
        self.models: dict[str, ServedModel] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                checkpoint = load(path)
            except CheckpointError as error:
                log.error("left out: %s", error)
                continue
            served = ServedModel(
                name=path.stem, checkpoint=checkpoint, denoiser=checkpoint.denoiser(device)
            )
            if checkpoint.digest in self.models:
                other = self.models[checkpoint.digest].name
                log.error("left out: %s is the same checkpoint as %s", path, other)
                continue
            self.models[checkpoint.digest] = served
        if not self.models:
            raise CheckpointError(
                f"{folder} has no checkpoint that can be served; put *.safetensors files there "
                "(from `fokker train`), or leave --models out to serve the shipped model"
            )

    @property
    def cards(self) -> list[dict[str, Any]]:
        """The cards of all models."""
        return [served.card for served in self.models.values()]
