"""Images in one array: a `.npy`, or a `.npz` with ``images`` and, if it has classes, ``labels``.

images: unsigned integers, ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with 1, 3 or 4
channels, in the data's own levels: they are taken as they are. labels: integers 0 … K−1, ``(N,)``;
a third array ``class_names`` may name them. An image's name is its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.config import DataSection
from training.data_cache import Item, Layout
from training.data_errors import DataError

SUFFIXES = (".npy", ".npz")

_CHANNELS = (1, 3, 4)


class ArrayFile:
    """A `training.data_cache.Source`; raises `DataError` for what cannot be used."""

    def __init__(self, path: Path, section: DataSection) -> None:
        self._path, self._section = path, section
        arrays = _load(path)
        self._images = _channels_first(path, arrays["images"])
        self._labels, self._names = _classes(path, arrays, len(self._images))
        self._require_as_configured()

    def contents(self) -> str:
        """A hash of images, labels and class names."""
        whole = hashlib.sha256(repr((self._images.shape, self._images.dtype, self._names)).encode())
        for image in self._images:
            whole.update(np.ascontiguousarray(image).tobytes())
        whole.update(self._labels.tobytes())
        return whole.hexdigest()

    def layout(self) -> Layout:
        """As many levels as the array's type holds, unless `data.levels` says fewer."""
        levels = self._section.levels or 2 ** (8 * self._images.dtype.itemsize)
        if (largest := int(self._images.max())) >= levels:
            raise DataError(
                f"{self._path} has values up to {largest}, and data.levels = {levels} allows "
                f"0..{levels - 1}"
            )
        channels, height, width = self._images.shape[1:]
        return Layout(
            shape=(channels, height, width),
            levels=levels,
            count=len(self._images),
            class_names=self._names,
        )

    def items(self, layout: Layout) -> Iterator[Item]:
        """All images; none is ever skipped."""
        for index, (image, label) in enumerate(zip(self._images, self._labels, strict=True)):
            yield Item(file=f"{index:08d}", label=int(label), levels=image)

    def _require_as_configured(self) -> None:
        channels, height, width = self._images.shape[1:]
        wanted = self._section
        if (wanted.shape or (height, width)) != (height, width):
            given = "×".join(map(str, wanted.shape or ()))
            raise DataError(
                f"{self._path} has images of {height}×{width} and data.size asks for {given}; "
                "arrays are not scaled: scale them first, or leave data.size out"
            )
        if (wanted.channels or channels) != channels:
            raise DataError(
                f"{self._path} has {channels} channel(s) and data.channels asks for "
                f"{wanted.channels}; arrays are not converted: leave data.channels out"
            )


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError as error:
        raise DataError(f"data.path = {str(path)!r} is not there") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is no file of numpy's, or holds Python objects: {error}"
        ) from error
    if "images" not in arrays:
        raise DataError(f"{path} has no array named 'images'; it has {sorted(arrays) or 'none'}")
    return arrays


def _channels_first(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    if images.dtype not in (np.uint8, np.uint16):
        raise DataError(f"the images in {path} are {images.dtype}; save them as uint8 or uint16")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in _CHANNELS or not images.size:
        raise DataError(
            f"the images in {path} have shape {images.shape}; they must be (N, H, W), (N, H, W, C) "
            "or (N, C, H, W) with 1, 3 or 4 channels, and at least one"
        )
    return images


def _classes(
    path: Path, arrays: dict[str, NDArray[Any]], count: int
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """Labels ``(N,)`` and the names of the classes; −1 and None without labels."""
    if "labels" not in arrays:
        return np.full(count, -1, dtype=np.int64), None
    labels = arrays["labels"]
    if labels.shape != (count,) or labels.dtype.kind not in "ui" or labels.min() < 0:
        raise DataError(
            f"the labels in {path} must be {count} integers from 0, one an image; they are "
            f"{labels.dtype} of shape {labels.shape}"
        )
    classes = int(labels.max()) + 1
    names = tuple(map(str, arrays.get("class_names", np.arange(classes)).tolist()))
    if len(names) < classes:
        raise DataError(f"{path} has {len(names)} class_names, and labels up to {classes - 1}")
    return labels.astype(np.int64), names
