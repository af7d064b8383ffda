"""Training data: levels and labels in memory, with a held-out split that never moves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data import DataSpec

_SPLIT_SEED = 20_240_101


@dataclass(frozen=True, kw_only=True)
class Split:
    """levels: float64 ``(N, C, H, W)`` in 0 … L−1; labels: int64 ``(N,)``."""

    levels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.levels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """spec: what one image is. fingerprint: sha256 of levels and labels, before the split."""

    name: str
    spec: DataSpec
    train: Split
    held_out: Split
    fingerprint: str


def digits(held_out: float) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 17 levels, ten classes.

    They come from the test half of the UCI "Optical Recognition of Handwritten Digits" set.
    The split depends on ``held_out`` alone, not on the training seed.
    """
    from sklearn.datasets import load_digits  # a second to import: only where digits are read

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).to(torch.float64)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    count = round(held_out * len(levels))
    if not 0 < count < len(levels):
        raise ValueError(f"held_out={held_out} leaves one side of {len(levels)} images empty")
    fingerprint = hashlib.sha256(levels.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    spec = DataSpec(shape=(1, 8, 8), levels=17, class_names=tuple("0123456789"))
    return Dataset(
        name="digits",
        spec=spec,
        train=Split(levels=levels[order[count:]], labels=labels[order[count:]]),
        held_out=Split(levels=levels[order[:count]], labels=labels[order[:count]]),
        fingerprint=f"sha256:{fingerprint}",
    )
