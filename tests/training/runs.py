"""Training runs in processes of their own, which may be killed, or share a batch."""

import json
import multiprocessing
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from training import run, state
from training.config import Config

TINY: dict[str, dict[str, Any]] = {
    "data": {"held_out": 0.02},
    "model": {"channels": [16, 16], "blocks": 1, "dropout": 0.1},
    "process": {"name": "vp_linear", "t_min": 1e-3},
    "objective": {"time_sampling": "log_snr"},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "warmup_steps": 2,
        "sample_every": 0,
        "checkpoint_every": 5,
        "threads": 1,
    },
    # Twelve steps leave a rough field: one that an accurate solver would take minutes for.
    "evaluate": {
        "tolerance": 0.1,
        "probes": 1,
        "max_calls": 40,
        "images": 8,
        "samples": 200,
        "sample_steps": 10,
    },
}

# A server that has imported torch, and used none of its threads: its children start at once.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["training.run", "sklearn.datasets"])

Process = multiprocessing.context.ForkServerProcess


def config(**sections: Mapping[str, Any]) -> Config:
    """The tiny run's configuration, with some keys changed."""
    names = TINY.keys() | sections.keys()
    return Config.model_validate(
        {name: TINY.get(name, {}) | dict(sections.get(name, {})) for name in names}
    )


def start(configuration: Config, out: Path, **environment: str) -> Process:
    """Begin or continue a run in another process."""
    process = _context.Process(
        target=_fit, args=(configuration.model_dump(mode="json"), str(out), environment)
    )
    process.start()
    return process


def start_together(configuration: Config, out: Path, size: int) -> list[Process]:
    """The same by several processes, as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        start(
            configuration,
            out,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(size)
    ]


def finish(*processes: Process) -> None:
    """Wait for processes that must end well."""
    for process in processes:
        process.join(timeout=100)
        assert process.exitcode == 0


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The last state's tensors."""
    path = state.latest(out / "checkpoints")
    assert path is not None
    return load_file(path)


def losses(out: Path) -> list[float]:
    """Of all steps, which must be there once each."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def steps_done(out: Path) -> int:
    """Lines of metrics that are there, maybe of a run that is going on."""
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def require_close(found: Path, wanted: Path) -> None:
    """Two runs that differ by rounding: losses by less than 1e-5, weights by less than 1e-4."""
    apart = max(abs(a - b) for a, b in zip(losses(found), losses(wanted), strict=True))
    ours, theirs = weights(found), weights(wanted)
    off = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    print(f"losses apart by {apart:.1e}, weights by {off:.1e}")
    assert apart < 1e-5
    assert off < 1e-4


def _fit(document: dict[str, Any], out: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    run.fit(Config.model_validate(document), Path(out), resume=True)
