"""The state of a run that can be resumed: one ``.safetensors`` file, its header one JSON document.

    checkpoints/step-00000500.safetensors
        weights.*                       the network
        ema.<decay>.*                   its averages
        adamw.exp_avg.*, .exp_avg_sq.*  the optimiser's moments
        header                          step, configuration, what was trained on, and small counters

A file appears whole or not at all. There is no pickle, and no state of a random generator:
`training.chance` needs none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import CheckpointError, check_weights

FORMAT = 1
_METADATA_KEY = "fokker_state"


class StateError(ValueError):
    """A state that cannot be written, or not be continued from; says what to do."""


@dataclass(frozen=True, kw_only=True)
class State:
    """step: steps done. document: JSON values."""

    step: int
    tensors: Mapping[str, Tensor]
    document: Mapping[str, Any]


def save(folder: Path, state: State, keep: int) -> Path:
    """Write a state and remove all but the last ``keep``; raises `StateError` on a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:08d}.safetensors"
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    document = {"format": FORMAT, "step": state.step, **state.document}
    before = latest(folder)
    try:
        save_file(tensors, partial, metadata={_METADATA_KEY: json.dumps(document)})
        _to_disk(partial)
        partial.replace(path)
        _to_disk(folder)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        raise StateError(
            f"the state of step {state.step} ({size / 2**20:.1f} MiB) cannot be written to "
            f"{folder}: {error}; make room and continue with --resume from "
            f"{before.name if before else 'the beginning: there is no earlier one'}"
        ) from error
    for old in _states(folder)[:-keep]:
        old.unlink()
    return path


def latest(folder: Path) -> Path | None:
    """The last state in a folder, None where there is none."""
    return next(reversed(_states(folder)), None)


def load(path: Path) -> State:
    """Read a state; raises `StateError` for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, this version reads {FORMAT}")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise StateError(
            f"{path} is no state of a run: {error}; remove it to continue from the one before it"
        ) from error
    return State(step=document["step"], tensors=tensors, document=document)


def require_fit(path: Path, state: State, expected: Mapping[str, Tensor]) -> None:
    """Raise `StateError` unless a state has just these tensors, in shape, and they are finite."""
    try:
        check_weights(expected, state.tensors)
    except CheckpointError as error:
        raise StateError(f"{path} is of another network or optimiser: {error}") from error


def _states(folder: Path) -> list[Path]:
    """All of them, the oldest first."""
    return sorted(folder.glob("step-*.safetensors"))


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
