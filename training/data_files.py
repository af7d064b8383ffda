"""Pictures in a folder, or in a zip of one: PNG, WebP and JPEG, of 8 or 16 bits a channel.

A class is a subfolder; without subfolders there are no classes. Folders around everything (a zip
often has one) do not count. A picture is read exactly as the service will read it when it is
uploaded for a model of this shape.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image

from service.images import Declared, ImageError, declared, read_image
from training.config import DataSection
from training.data_cache import Item, Layout
from training.data_errors import DataError

READ = {".png", ".webp", ".jpg", ".jpeg"}
NOT_READ = {".avif", ".bmp", ".gif", ".heic", ".jp2", ".jxl", ".pgm", ".ppm", ".tif", ".tiff"}

_MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # Pillow's own bound
_CHUNK = 256  # pictures that are read ahead of the one that is written
_SHOWN = 4

Value = TypeVar("Value")


@contextmanager
def open_pictures(path: Path, section: DataSection) -> Iterator[Pictures]:
    """The pictures in a folder or a zip; raises `DataError` where there are none."""
    if path.is_dir():
        yield Pictures(path, _files_below(path), lambda name: (path / name).read_bytes(), section)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            yield Pictures(path, names, archive.read, section)
    else:
        kind = "is neither a folder, a zip, a .npy nor a .npz" if path.exists() else "is not there"
        raise DataError(f"data.path = {str(path)!r} {kind} (relative paths begin at {Path.cwd()})")


@dataclass(frozen=True)
class _Failed:
    """A picture that could not be read."""

    reason: str


class Pictures:
    """A `training.data_cache.Source`.

    names: of files; ``content`` gives the bytes of one, and may be called from any thread.
    """

    def __init__(
        self, path: Path, names: list[str], content: Callable[[str], bytes], section: DataSection
    ) -> None:
        self._path, self._section = path, section
        kept = sorted({name for name in names if _is_picture(name)})
        if not kept:
            raise DataError(
                f"{path} has no picture ({', '.join(sorted(READ))}); it has {_suffixes(names)}"
            )
        parts = {name: PurePosixPath(name).parts for name in kept}
        around = _around(list(parts.values()))
        self._content = {
            "/".join(path[around:]): (lambda name=name: content(name))
            for name, path in parts.items()
        }
        self._classes = _classes(path, list(self._content))

    def contents(self) -> str:
        """A hash of all names and bytes."""
        whole = hashlib.sha256()
        for file, digest in self._each(lambda data: hashlib.sha256(data).hexdigest()):
            whole.update(f"{file}\0{digest}\n".encode("utf-8", "surrogateescape"))
        return whole.hexdigest()

    def layout(self) -> Layout:
        """By the pictures' headers, where the configuration does not say it."""
        found = [header for _, header in self._each(declared)]
        headers = [header for header in found if isinstance(header, Declared)]
        if not headers:
            file, failed = next(self._each(declared))
            reason = failed.reason if isinstance(failed, _Failed) else ""
            raise DataError(
                f"none of {len(found)} pictures in {self._path} can be read; {file}: {reason}"
            )
        section, common = self._section, self._common
        channels: int = section.channels or common("channels", headers, lambda h: h.channels)
        size = section.shape or common("size", headers, lambda h: (h.height, h.width))
        bits: int = section.bits or common("bits", headers, lambda h: h.bits)
        return Layout(
            shape=(channels, *size),
            levels=2**bits,
            count=len(found),
            class_names=tuple(self._classes) or None,
        )

    def items(self, layout: Layout) -> Iterator[Item]:
        """All pictures, in the order of their names."""
        fit, places = self._section.fit, {name: i for i, name in enumerate(self._classes)}

        for file, levels in self._each(
            lambda data: read_image(data, layout.shape, layout.levels, _MAX_PIXELS, fit)
        ):
            label = places[file.partition("/")[0]] if places else -1
            if isinstance(levels, _Failed):
                yield Item(file=file, label=label, levels=None, reason=levels.reason)
            else:
                yield Item(file=file, label=label, levels=levels)

    def _each(self, use: Callable[[bytes], Value]) -> Iterator[tuple[str, Value | _Failed]]:
        """What ``use`` makes of each file's bytes, by several threads, in order."""

        def one(file: str) -> Value | _Failed:
            if PurePosixPath(file).suffix.lower() not in READ:
                return _Failed(f"not of a kind that is read ({', '.join(sorted(READ))})")
            try:
                return use(self._content[file]())
            except ImageError as error:
                return _Failed(str(error))
            except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
                # RuntimeError: an encrypted member, or one packed in a way unknown here.
                return _Failed(f"its bytes cannot be read: {error}")

        files = list(self._content)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for first in range(0, len(files), _CHUNK):
                some = files[first : first + _CHUNK]
                yield from zip(some, threads.map(one, some), strict=True)

    def _common(
        self, key: str, headers: list[Declared], value: Callable[[Declared], Value]
    ) -> Value:
        """What all pictures have, or a `DataError` with what they have."""
        counts = Counter(map(value, headers))
        if len(counts) == 1:
            return next(iter(counts))
        shown = ", ".join(
            f"{count} have {_words(found)}" for found, count in counts.most_common(_SHOWN)
        )
        more = f" and {len(counts) - _SHOWN} more kinds" if len(counts) > _SHOWN else ""
        raise DataError(
            f"the pictures in {self._path} differ in {key}: {shown}{more}; set data.{key}, and all "
            "are converted to it"
        )


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "×".join(map(str, value))
    return str(value)


def _files_below(path: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error

    return [
        Path(folder, file).relative_to(path).as_posix()
        for folder, _, files in os.walk(path, onerror=refuse)
        for file in files
    ]


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return not hidden and path.suffix.lower() in READ | NOT_READ


def _suffixes(names: list[str]) -> str:
    counts = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    return ", ".join(f"{n} of {suffix}" for suffix, n in counts.most_common(_SHOWN)) or "no files"


def _around(paths: list[tuple[str, ...]]) -> int:
    """How many folders all paths begin with."""
    depths = zip(*(path[:-1] for path in paths), strict=False)
    return sum(1 for _ in takewhile(lambda folders: len(set(folders)) == 1, depths))


def _classes(path: Path, names: list[str]) -> list[str]:
    """The subfolders, sorted; none where all files lie together."""
    loose = [name for name in names if "/" not in name]
    if loose and len(loose) < len(names):
        raise DataError(
            f"{len(loose)} pictures in {path} lie beside the folders of the classes ({loose[0]}); "
            "move them into one, or all into one folder for a model without classes"
        )
    return sorted({name.partition("/")[0] for name in names}) if not loose else []
