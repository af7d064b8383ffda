"""Pictures, arrays and latents as a client would upload them."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.jobs.arrays import pack

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def png(pixels: NDArray[Any] = GREY) -> bytes:
    return picture(pixels, "PNG")


def picture(pixels: NDArray[Any], form: str, **how: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, form, **how)
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def latents(count: int = 3, digest: str | None = "sha256:digits", **changes: Any) -> bytes:
    """`count` latents of the digits model: row i is all i."""
    rows = np.arange(count, dtype=np.float64)[:, None, None, None] * np.ones((1, 1, 8, 8))
    arrays = {"latents": rows} | changes
    return pack(arrays, {"digest": digest} if digest else {})
