"""What Pillow leaves out of PNG: it does not miss missing rows, and it halves 16-bit colours.

Pillow's decoder stops where the compressed stream ends, wherever that is, and what it did not
reach stays black. Of 16-bit samples it unpacks one byte into its 8-bit modes; which one is the
raw mode of the file's tile, so two passes have both. PNG: https://www.w3.org/TR/png-3.
"""

import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples of a pixel, by colour type."""

WHOLE = ((0, 0, 1, 1),)
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
"""The passes over an image, plain or interlaced: first column and row, and the steps between."""

LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Raw modes that unpack the upper bytes of big-endian samples, and those for the lower ones."""

GREY_ALPHA = "LA;16B"
MAX_CHUNKS = 2**16  # Pillow keeps what it does not know
INFLATED = 2**18  # bytes inflated at a time


def require_structure(data: bytes) -> None:
    """Raise `ValueError` unless a PNG has one header, its first chunk, and chunks to a limit."""
    for number, (kind, _) in enumerate(_chunks(data)):
        if (kind == b"IHDR") != (number == 0):
            raise ValueError("its header is not its first chunk, or it has two")
        if number == MAX_CHUNKS:
            raise ValueError(f"it has more than {MAX_CHUNKS} chunks")


def require_all_rows(data: bytes) -> None:
    """Raise `ValueError` where the image data end before the last row.

    data: a file with the right structure and checksums. The rows are inflated once, in pieces.
    """
    inflate = zlib.decompressobj()
    missing = 0
    for kind, content in _chunks(data):
        if kind == b"IHDR":
            missing = _bytes_of_rows(content)
        piece: bytes | memoryview = content if kind == b"IDAT" else b""
        while piece and missing > 0:
            missing -= len(inflate.decompress(piece, INFLATED))
            piece = inflate.unconsumed_tail
    if missing > len(inflate.flush()):
        raise ValueError("its image data end before its last row")


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of each chunk."""
    view, start = memoryview(data), len(SIGNATURE)
    while start + 8 <= len(data):
        end = start + 8 + int.from_bytes(view[start : start + 4])
        yield bytes(view[start + 4 : start + 8]), view[start + 8 : end]
        start = end + 4


def _bytes_of_rows(header: memoryview) -> int:
    """Bytes that a header's rows have before compression, filter bytes included."""
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    bits, interlaced = header[8] * SAMPLES[header[9]], header[12]
    total = 0
    for left, top, across, down in ADAM7 if interlaced else WHOLE:
        columns, rows = max(0, -((left - width) // across)), max(0, -((top - height) // down))
        if columns:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a PNG that was opened, not loaded, has 16-bit samples that Pillow would halve."""
    return image.format == "PNG" and _raw_mode(image) in (*LOWER_BYTES, GREY_ALPHA)


def deep_images(image: ImageFile.ImageFile, data: bytes) -> list[Image.Image]:
    """The deep PNG `image` of `data` as 8-bit images, loaded, that together have all its bits."""
    if _raw_mode(image) == GREY_ALPHA:
        return [_reopened(data, "RGBA")]
    return [_reopened(data, _raw_mode(image)), _reopened(data, LOWER_BYTES[_raw_mode(image)])]


def join(images: list[Image.Image]) -> NDArray[np.uint16]:
    """The pixels ``(H, W, C)`` of the images of `deep_images`, turned or not; big-endian."""
    if len(images) == 1:  # two bytes of grey, two of alpha
        grey, alpha = np.moveaxis(np.asarray(images[0]).view(">u2"), -1, 0)
        return np.stack([grey, grey, grey, alpha], axis=-1)
    samples = np.stack([np.asarray(image) for image in images], axis=-1)
    return samples.view(">u2")[..., 0]


def _raw_mode(image: ImageFile.ImageFile) -> str:
    return str(image.tile[0].args) if image.tile else ""


def _reopened(data: bytes, raw_mode: str) -> Image.Image:
    """The file of `data`, loaded as if its samples were of this raw mode."""
    image = Image.open(BytesIO(data), formats=("PNG",))
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
    image.load()
    return image
