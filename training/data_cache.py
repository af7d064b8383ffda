"""Images decoded once: a memory-mapped file and its index, keyed by a fingerprint.

    <cache>/<fingerprint>/images.bin    levels, (N, C, H, W), uint8 or uint16
    <cache>/<fingerprint>/index.json    shape, levels, files, labels, classes, what was skipped

The fingerprint is a hash of every file's name and content, and of the options that change what is
decoded. A folder appears whole or not at all: it is filled under another name, by one process at a
time, and renamed. Whoever comes second waits for the lock and finds it there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from training.config import DataSection
from training.data_errors import DataError

FORMAT = 1
_MIB = 2.0**20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the images of a source have in common. count: of images, unreadable ones included."""

    shape: tuple[int, int, int]
    levels: int
    count: int
    class_names: tuple[str, ...] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 up to 256 levels, uint16 beyond."""
        return np.dtype(np.uint8 if self.levels <= 256 else np.uint16)

    @property
    def bytes(self) -> int:
        """Of all images."""
        return self.count * int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image: its name, its class (−1: none) and its levels (C, H, W), or why it has none."""

    file: str
    label: int
    levels: NDArray[Any] | None
    reason: str = ""


class Source(Protocol):
    """Where images come from."""

    def contents(self) -> str:
        """A hash of all names and bytes."""

    def layout(self) -> Layout:
        """What they have in common; raises `DataError` where they have too little."""

    def items(self, layout: Layout) -> Iterator[Item]:
        """All images, in the order of their names."""


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A source, decoded. labels: int64 ``(N,)``; skipped: file → reason."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    files: list[str]
    levels: int
    class_names: tuple[str, ...] | None
    skipped: dict[str, str]
    fingerprint: str


def default_cache() -> Path:
    """``fokker/data`` in the user's cache folder (XDG base directories)."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The specification says to ignore relative ones.
    return (given if given.is_absolute() else Path.home() / ".cache") / "fokker" / "data"


def cached(source: Source, section: DataSection) -> Cached:
    """The images of a source by these options, decoded now unless they were before.

    Raises `DataError`: what the source raises, a full disk, or a file that cannot be read where
    `data.corrupt` is "stop".
    """
    options = section.model_dump(mode="json", include={"size", "fit", "channels", "bits", "levels"})
    key = json.dumps([FORMAT, source.contents(), options], sort_keys=True)
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    cache = section.cache or default_cache()
    folder = cache / fingerprint[:32]
    try:
        with _locked(cache, folder.name):
            if not folder.exists():
                _fill(folder, source, section)
            return _opened(folder, f"sha256:{fingerprint}", section)
    except OSError as error:
        raise DataError(
            f"the cache of decoded images, {cache}: {error.strerror}; "
            "set data.cache to a folder that can be written"
        ) from error


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    """Alone in the machine with this name; the kernel unlocks for a process that dies."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, source: Source, section: DataSection) -> None:
    layout = source.layout()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: the lock is ours
    partial.mkdir()
    try:
        free = shutil.disk_usage(partial).free
        if free < layout.bytes:
            raise OSError(errno.ENOSPC, "")
        with (partial / "images.bin").open("wb") as file:
            index = _decode(source, layout, file, section)
            _sync(file)
        with (partial / "index.json").open("wb") as file:
            file.write(json.dumps(index).encode())
            _sync(file)
        partial.rename(folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"{layout.count} decoded images take {layout.bytes / _MIB:.1f} MiB, and the disk of "
            f"{folder.parent} is full ({free / _MIB:.1f} MiB were free); make room, or set "
            "data.cache to a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(source: Source, layout: Layout, file: BinaryIO, section: DataSection) -> dict[str, Any]:
    """Write the images' bytes; the index of what was written."""
    files: list[str] = []
    labels: list[int] = []
    skipped: dict[str, str] = {}
    items = source.items(layout)
    console = Console(stderr=True)
    for item in track(items, "decoding", layout.count, console=console, transient=True):
        if item.levels is None:
            skipped[item.file] = item.reason
            _require_no_stop(skipped, section)
            continue
        file.write(np.ascontiguousarray(item.levels, dtype=layout.dtype).tobytes())
        files.append(item.file)
        labels.append(item.label)
    if not files:
        first, reason = next(iter(skipped.items()))
        raise DataError(f"none of {layout.count} images can be read; the first, {first}: {reason}")
    return {
        "shape": layout.shape,
        "levels": layout.levels,
        "class_names": layout.class_names,
        "files": files,
        "labels": labels,
        "skipped": skipped,
    }


def _sync(file: BinaryIO) -> None:
    """On the disk, or an error now: not when it is read."""
    file.flush()
    os.fsync(file.fileno())


def _opened(folder: Path, fingerprint: str, section: DataSection) -> Cached:
    index = json.loads((folder / "index.json").read_bytes())
    _require_no_stop(index["skipped"], section)
    names = index["class_names"]
    dtype = Layout(shape=(1, 1, 1), levels=index["levels"], count=0, class_names=None).dtype
    shape = (len(index["files"]), *index["shape"])
    return Cached(
        images=np.memmap(folder / "images.bin", dtype=dtype, mode="r", shape=shape),
        labels=np.array(index["labels"], dtype=np.int64),
        files=index["files"],
        levels=index["levels"],
        class_names=tuple(names) if names else None,
        skipped=index["skipped"],
        fingerprint=fingerprint,
    )


def _require_no_stop(skipped: dict[str, str], section: DataSection) -> None:
    if skipped and section.corrupt == "stop":
        file, reason = next(iter(skipped.items()))
        raise DataError(
            f"{file} cannot be read: {reason}; mend or remove it, or leave out such files with "
            'data.corrupt = "skip"'
        )
