"""A run's folder: who may begin or continue it, and what is in it.

config.json          the resolved configuration
checkpoints/         states that can be resumed (`training.state`)
metrics.jsonl, held_out.jsonl, tensorboard/, samples/      what was watched (`training.watch`)
diverged.json        what a loss that was not finite was of
NAME.safetensors     the model, once it is trained; ema/NAME-<decay>.safetensors the others
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.config import Config, ConfigError

FREE = {
    "data.path",
    "data.cache",
    "data.corrupt",
    "train.accumulate",
    "train.checkpoint_every",
    "train.compile",
    "train.device",
    "train.held_out_every",
    "train.keep",
    "train.precision",
    "train.sample_every",
    "train.steps",
    "train.threads",
}
"""Keys that may change when a run is continued, beside [evaluate]: how it is computed, on which
machine and for how long. Not all of them leave the weights the same to the bit."""


class RunError(ValueError):
    """A folder that a run cannot be begun or continued in; says what to do."""


@contextmanager
def opened(out: Path, config: Config, *, resume: bool) -> Iterator[None]:
    """The folder, made and this process's alone, with the configuration in it.

    Raises `RunError` for a folder with a run in it that is not to be continued, or that another
    process is busy with, and `ConfigError` where the run was begun with another configuration.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        opened_lock = (out / ".lock").open("w")
    except OSError as error:
        raise RunError(
            f"--out {out}: {error.strerror}; name a folder that can be written to"
        ) from error
    with opened_lock as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"another process is training in {out}; wait, or stop it") from error
        known = out / "config.json"
        if known.exists():
            if not resume:
                raise RunError(
                    f"{out} has a run in it; continue it with --resume, or name another folder "
                    "with --out"
                )
            _require_same(out, config, json.loads(known.read_text()))
        partial = known.with_name("config.json.partial")
        try:
            partial.write_text(config.model_dump_json(indent=2) + "\n")
            partial.replace(known)
        except OSError as error:
            raise RunError(f"{known} cannot be written: {error.strerror}; make room") from error
        yield


def _require_same(out: Path, config: Config, begun: dict[str, Any]) -> None:
    now, then = _flat(config.model_dump(mode="json")), _flat(begun)
    changed = [
        f"\n  {key}: {then.get(key)} there, {now.get(key)} here"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and key not in FREE and not key.startswith("evaluate.")
    ]
    if changed:
        raise ConfigError(
            f"the run in {out} has another configuration; continue it with its own, or begin "
            "another in a new folder:" + "".join(changed)
        )


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, keys in document.items()
        for key, value in keys.items()
    }
