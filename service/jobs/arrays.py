"""Arrays between API and worker, as the bytes of a safetensors file.

The format is a header's length (8 bytes, little-endian), a JSON header with dtype, shape and
offsets by name, then the data; https://github.com/huggingface/safetensors.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

MAX_HEADER = 2**20
"""Bytes of a header that is parsed: far more than a few arrays need, far less than a bomb does."""

Arrays = dict[str, NDArray[Any]]


class ArraysError(ValueError):
    """The bytes are no safetensors file that can be read here; the message says why."""


def pack(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The arrays, with string metadata, as one safetensors file."""
    dense = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(dense, dict(metadata or {}))


def unpack(data: bytes) -> tuple[Arrays, dict[str, str]]:
    """Arrays and metadata of `pack`ed bytes; `ArraysError` if they are damaged or foreign."""
    size = int.from_bytes(data[:8], "little")
    try:
        if size > MAX_HEADER:
            raise ValueError(f"a header of {size} bytes, at most {MAX_HEADER} are read")
        arrays: Arrays = load(data)
        metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArraysError(
            f"not a readable safetensors file ({len(data)} bytes: {error}); "
            "send one that holds float32 or float64 arrays"
        ) from error
    return arrays, metadata
