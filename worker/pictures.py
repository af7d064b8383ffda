"""Arrays in the model's space to picture files: one map, the inverse of the API's for uploads."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.data import DataSpec

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

MEDIA_TYPES = {"png": "image/png", "webp": "image/webp", "npy": "application/x-npy"}


def to_bytes(spec: DataSpec, x: Tensor) -> NDArray[np.uint8]:
    """x ``(N, C, H, W)`` to 8-bit pixels ``(N, H, W, C)``: level v of L becomes 255 v/(L − 1)."""
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


def grid(pixels: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures ``(N, H, W, C)`` side by side in rows, as square as it gets: ``(H', W', C)``."""
    pictures = np.asarray(pixels)
    count, height, width, channels = pictures.shape
    columns = math.ceil(math.sqrt(count))
    lines = -(-count // columns)
    sheet = np.zeros((lines * columns, height, width, channels), dtype=np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(lines, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return sheet.reshape(lines * height, columns * width, channels)


def npy(array: NDArray[np.float64]) -> bytes:
    """An array as a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
