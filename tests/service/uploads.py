"""Pictures, arrays and latents as a client would upload them, and what becomes of them."""

import json
import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images.png import ADAM7
from service.jobs.arrays import pack, unpack
from service.jobs.lease import WorkerStore

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


def raw_png(
    pixels: NDArray[Any],
    rows: int | None = None,
    key: tuple[int, ...] | None = None,
    exif: bytes = b"",
    pieces: int = 1,
    interlaced: bool = False,
) -> bytes:
    """A PNG of (H, W, C) pixels in uint8 or uint16, written by hand.

    rows: how many rows its image data have; all if None. key: the colour that is transparent.
    pieces: IDAT chunks that the image data are cut into.
    """
    height, width, channels = pixels.shape
    stored = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = [stored[top::down, left::across] for left, top, across, down in ADAM7]
    scanlines = [
        b"\0" + line.tobytes()
        for part in (passes if interlaced else [stored])
        if part.size
        for line in part
    ]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(
        ">IIBBBBB", width, height, 8 * pixels.itemsize, colour_type, 0, 0, interlaced
    )
    body = zlib.compress(b"".join(scanlines[:rows]))
    size = -(-len(body) // pieces)
    chunks = [(b"IHDR", header)]
    chunks += [(b"eXIf", exif)] if exif else []
    chunks += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    chunks += [(b"IDAT", body[i : i + size]) for i in range(0, len(body), size)]
    return png_of([*chunks, (b"IEND", b"")])


def png_of(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, with their checksums right."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def form(request: Any, *images: bytes, **files: bytes) -> dict[str, Any]:
    """The arguments of httpx for a multipart upload."""
    parts: list[Any] = [("request", (None, json.dumps(request), "application/json"))]
    parts += [("image", (f"{i}.png", data, "image/png")) for i, data in enumerate(images)]
    parts += [(name, (name, data, "application/octet-stream")) for name, data in files.items()]
    return {"files": parts}


def levels(worker: WorkerStore, job: dict[str, Any]) -> Any:
    packed = worker.inputs(job["id"])
    assert packed is not None
    return unpack(packed)[0]["levels"]


async def refused(sending: Any, field: str, queued: Callable[[], list[str]]) -> dict[str, Any]:
    """The problem of a 422 that names `field`, after which nothing is queued."""
    answer = await sending
    problem = answer.json()
    assert answer.status_code == 422, problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (problem["status"], problem["title"]) == (422, "Unprocessable Entity")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]
    assert queued() == []
    return dict(problem)
