"""An exact model of two classes, and data that were drawn from it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.analytic import GaussianMixture
from model.checkpoint import Checkpoint, Description
from model.data import DataSpec
from model.process import VPLinear
from tests.laws.mixture import draw, mixture
from training.data import Dataset, Split

SPEC = DataSpec(shape=(1, 4, 4), levels=256, low=-4.0, high=4.0, class_names=("near", "far"))
TRAIN, HELD_OUT = 600, 200


@pytest.fixture(scope="session")
def network() -> GaussianMixture:
    return mixture(components=2, shape=SPEC.shape, variance=0.25)


@pytest.fixture(scope="session")
def checkpoint(network: GaussianMixture) -> Checkpoint:
    description = Description(
        architecture=network.config,
        process=VPLinear(t_min=1e-3),
        data=SPEC,
        training={"data_fingerprint": "sha256:of the mixture", "steps": 3},
    )
    return Checkpoint(description=description, network=network, digest="sha256:of the checkpoint")


@pytest.fixture(scope="session")
def dataset(network: GaussianMixture) -> Dataset:
    """The mixture's own draws, rounded to levels."""
    count = TRAIN + HELD_OUT
    levels = SPEC.to_levels(draw(network, count)).round().to(torch.uint8).numpy()
    labels = torch.arange(count) % 2

    def split(rows: np.ndarray) -> Split:
        files = [f"{row}.png" for row in rows]
        return Split(images=levels, rows=rows, labels=labels[torch.from_numpy(rows)], files=files)

    return Dataset(
        name="mixture",
        spec=SPEC,
        train=split(np.arange(TRAIN)),
        held_out=split(np.arange(TRAIN, count)),
        fingerprint="sha256:of the mixture",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
        ).returncode
    ):
        pytest.skip("only root may mount a small tmpfs here")
    yield disk
    subprocess.run(["umount", disk], check=True)
