"""What a checkpoint says of itself, read from the head of its file: no weights, no torch.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a
JSON object: an entry a tensor (`dtype`, `shape`, `data_offsets` from the header's end) and
`__metadata__`, whose entry `fokker` is the checkpoint's own document.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library itself reads at most."""

_LENGTH = 8
"""Bytes that say how long the header is."""

_METADATA = "__metadata__"


class InspectionError(ValueError):
    """A file that is no checkpoint; names it and says what is wrong."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A checkpoint from outside. document: what it says of itself, as it stands in the file.

    digest: sha256 of the file, "sha256:…". tensors, parameters, bytes: how many weights and their
    size; dtypes: of the tensors, sorted.
    """

    path: Path
    digest: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    document: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "file": str(self.path),
            "digest": self.digest,
            "tensors": self.tensors,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": list(self.dtypes),
            **self.document,
        }

    def lines(self) -> Iterator[tuple[str, str]]:
        """The same for readers: names and values, one a line, without the lists of quantiles."""
        yield "file", str(self.path)
        yield "digest", self.digest
        yield (
            "weights",
            f"{self.parameters:,} in {self.tensors} tensors of {', '.join(self.dtypes)}: "
            f"{self.bytes / 1e6:.1f} MB",
        )
        training = dict(_object(self.document.get("training")))
        quantiles, config = training.pop("quantiles", None), training.pop("config", None)
        for name in ("architecture", "process", "prediction", "data"):
            yield name, _words(self.document.get(name))
        yield "training", _words(training)
        yield from ((f"config.{name}", _words(value)) for name, value in _object(config).items())
        yield "held-out bits/dim", _spread(quantiles)
        yield (
            "written by",
            f"fokker {self.document.get('library_version')}, format {self.document.get('format')}",
        )


def inspect(path: Path) -> Inspection:
    """Read a checkpoint's header; raises `InspectionError`.

    The file is read once for its digest, and its weights are only counted: whether they fit the
    architecture is checked by those who load them.
    """
    try:
        with path.open("rb") as file:
            header, end = _header(file, path.stat().st_size)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        document = json.loads(header.pop(_METADATA, {})["fokker"])
        if not isinstance(document, dict):
            raise TypeError("its 'fokker' entry is no object")
        shapes = [entry["shape"] for entry in header.values()]
        return Inspection(
            path=path,
            digest=f"sha256:{digest}",
            tensors=len(shapes),
            parameters=sum(math.prod(shape) for shape in shapes),
            bytes=end,
            dtypes=tuple(sorted({entry["dtype"] for entry in header.values()})),
            document=document,
        )
    except OSError as error:
        raise InspectionError(f"cannot read {path}: {error.strerror}") from error
    except KeyError as error:
        missing = error.args[0]
        reason = (
            "its header has no 'fokker' entry; only files that `fokker train` wrote have one"
            if missing == "fokker"
            else f"a tensor of its header has no {missing!r}"
        )
        raise InspectionError(f"{path}: {reason}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InspectionError(f"{path}: {error}") from error


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header and the number of bytes that its tensors take; `ValueError` for what is none."""
    first = file.read(_LENGTH)
    length = int.from_bytes(first, "little")
    if len(first) < _LENGTH or length > min(size, _LONGEST_HEADER):
        raise ValueError("it is no safetensors file, or it was cut off")
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise ValueError("it is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file: its header is no object")
    tensors = max((e["data_offsets"][1] for n, e in header.items() if n != _METADATA), default=0)
    if _LENGTH + length + tensors != size:
        raise ValueError(
            f"it has {size} bytes where its header says {_LENGTH + length + tensors}: "
            "it was cut off, or something was added"
        )
    return header, tensors


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> str:
    """A JSON value in one line: an object as its name, then key=value."""
    if not isinstance(value, dict):
        return "none" if value is None else str(value)
    rest = [f"{key}={_plain(one)}" for key, one in value.items() if key != "name"]
    return " ".join([*([str(value["name"])] if "name" in value else []), *rest]) or "none"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _spread(quantiles: Any) -> str:
    """Of held-out bits/dim what a line can say."""
    try:
        entry = quantiles["bits_per_dim"]
        at = dict(zip(entry["levels"], entry["values"], strict=True))
        return (
            f"median {at[0.5]:.3f}, 5 % to 95 % {at[0.05]:.3f} to {at[0.95]:.3f}, "
            f"of {entry['images']} images"
        )
    except (TypeError, KeyError, ValueError):
        return "none stored (`fokker evaluate --store` does): percentiles of /loglik are null"
