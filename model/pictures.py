"""From the model's space to picture files.

Level v of L becomes the 8-bit value 255 v/(L − 1): the inverse of how the API reads uploads.
"""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.data import DataSpec

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

CHANNELS = frozenset(_MODES)
"""Numbers of channels that a picture can have."""

_LINE = 96  # grey of the line between two pictures of a grid

WEBP_SIDE = 16_383
"""Pixels that a side of a WebP can have."""


def to_bytes(spec: DataSpec, x: Tensor) -> NDArray[np.uint8]:
    """x ``(N, C, H, W)`` to 8-bit pixels ``(N, H, W, C)``."""
    levels = spec.to_levels(x).cpu().numpy()
    pixels: NDArray[np.uint8] = np.rint(levels * (255.0 / (spec.levels - 1))).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


def encode(pixels: NDArray[np.uint8], kind: str = "png") -> bytes:
    """Pixels ``(H, W, C)`` to a lossless PNG or WebP file."""
    mode = _MODES.get(pixels.shape[2])
    if mode is None:
        raise ValueError(
            f"an image of {pixels.shape[2]} channels has no picture format; ask for npy"
        )
    image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)
    buffer = io.BytesIO()
    if kind == "webp":
        image.save(buffer, "WEBP", lossless=True)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def grid(pixels: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """Pictures ``(N, H, W, C)`` in rows of ``columns`` with a line between them: ``(H', W', C)``.

    Without ``columns`` as square as it gets.
    """
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    sheet = np.full((lines * columns, height + 1, width + 1, channels), _LINE, dtype=np.uint8)
    sheet[:count, :height, :width] = pixels
    sheet = sheet.reshape(lines, columns, height + 1, width + 1, channels)
    whole = sheet.transpose(0, 2, 1, 3, 4).reshape(lines * (height + 1), -1, channels)
    return whole[:-1, :-1]


def npy(array: NDArray[np.float64]) -> bytes:
    """An array as a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
