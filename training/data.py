"""Training data: images as levels, with a held-out split that never moves.

`read` takes what `data.path` names: a folder or a zip of pictures (`training.data_files`), a `.npy`
or `.npz` (`training.data_arrays`), or "digits", which scikit-learn brings. All but the last are
decoded once, into a memory-mapped cache (`training.data_cache`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data import DataSpec
from model.query import UNCONDITIONAL
from training.config import DataSection
from training.data_arrays import SUFFIXES, ArrayFile
from training.data_cache import Cached, cached
from training.data_errors import DataError
from training.data_files import open_pictures

DIGITS = "digits"

_DIGITS_SPLIT_SEED = 20_240_101

Images = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One side of a dataset, in the order of its file names.

    images: levels 0 … L−1 of the *whole* dataset, ``(all, C, H, W)``, mostly memory-mapped.
    rows: int64 ``(n,)``, which of them are this side's. labels: int64 ``(n,)``, −1 without classes.
    files: a name an image, ``n`` of them.
    """

    images: Images
    rows: NDArray[np.int64]
    labels: Tensor
    files: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor | NDArray[np.int64] | slice) -> Tensor:
        """Some of this side's images as they are stored: uint8 or uint16 ``(k, C, H, W)``.

        Only what is asked for is read from the disk.
        """
        rows = self.rows[index.numpy() if isinstance(index, Tensor) else index]
        return torch.from_numpy(self.images[rows])

    @property
    def levels(self) -> Tensor:
        """All of this side's levels in memory: float64 ``(n, C, H, W)``, 8 bytes a value."""
        return self.take(slice(None)).to(torch.float64)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """spec: what one image is. fingerprint: "sha256:…" of what was read and how.

    skipped: file → why it is not in the data.
    """

    name: str
    spec: DataSpec
    train: Split
    held_out: Split
    fingerprint: str
    skipped: dict[str, str] = field(default_factory=dict)


def read(section: DataSection) -> Dataset:
    """The dataset that a configuration names; raises `DataError` for one that cannot be used."""
    if section.path == DIGITS:
        return digits(section.held_out)
    path = Path(section.path)
    if path.suffix in SUFFIXES:
        found = cached(ArrayFile(path, section), section)
    else:
        with open_pictures(path, section) as pictures:
            found = cached(pictures, section)
    return _dataset(path.stem, found, section.held_out)


def digits(held_out: float) -> Dataset:
    """scikit-learn's handwritten digits: 1,797 images of 8×8 pixels, 17 levels, ten classes.

    They come from the test half of the UCI "Optical Recognition of Handwritten Digits" set.
    The split depends on ``held_out`` alone, not on the training seed.
    """
    from sklearn.datasets import load_digits  # a second to import: only where digits are read

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    generator = torch.Generator().manual_seed(_DIGITS_SPLIT_SEED)
    order = torch.randperm(len(labels), generator=generator).numpy()
    count = round(held_out * len(labels))
    _require_both(count, len(labels), held_out)
    content = bunch.images.astype(np.float64).tobytes() + labels.numpy().tobytes()
    whole = _Whole(
        images=bunch.images.astype(np.uint8)[:, None],
        labels=labels,
        files=[f"{index:04d}" for index in range(len(labels))],
    )
    return Dataset(
        name=DIGITS,
        spec=DataSpec(shape=(1, 8, 8), levels=17, class_names=tuple("0123456789")),
        train=whole.split(order[count:]),
        held_out=whole.split(order[:count]),
        fingerprint=f"sha256:{hashlib.sha256(content).hexdigest()}",
    )


def is_held_out(file: str, share: float) -> bool:
    """Whether an image belongs to the held-out part, by its name alone.

    Other files may come and go: it stays on its side.
    """
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2.0**64


@dataclass(frozen=True)
class _Whole:
    images: Images
    labels: Tensor
    files: Sequence[str]

    def split(self, rows: NDArray[np.int64]) -> Split:
        return Split(
            images=self.images,
            rows=rows,
            labels=self.labels[torch.from_numpy(rows)],
            files=[self.files[row] for row in rows],
        )


def _dataset(name: str, found: Cached, held_out: float) -> Dataset:
    out = np.array([is_held_out(file, held_out) for file in found.files], dtype=bool)
    _require_both(int(out.sum()), len(out), held_out)
    labels = found.labels if found.class_names else np.full(len(out), UNCONDITIONAL)
    whole = _Whole(
        images=found.images, labels=torch.from_numpy(labels.astype(np.int64)), files=found.files
    )
    spec: dict[str, Any] = {"class_names": found.class_names} if found.class_names else {}
    channels, height, width = found.images.shape[1:]
    return Dataset(
        name=name,
        spec=DataSpec(shape=(channels, height, width), levels=found.levels, **spec),
        train=whole.split(np.flatnonzero(~out)),
        held_out=whole.split(np.flatnonzero(out)),
        fingerprint=found.fingerprint,
        skipped=found.skipped,
    )


def _require_both(count: int, images: int, share: float) -> None:
    if not 0 < count < images:
        raise DataError(
            f"data.held_out = {share} leaves one side of {images} images empty; "
            "give more images, or a share nearer to a half, as data.held_out = 0.2"
        )
