"""PNG, WebP and JPEG to pixels, through Pillow: uint8, or uint16 where a PNG has 16 bits.

The bytes may be anyone's. What a file declares (its size, its frames, the parts it is made of) is
checked before it is decoded; a file that is damaged or lacks rows is refused, not filled up.
Colour profiles are not applied.
"""

import re
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from service.images import png
from service.images.errors import ImageError
from service.images.fitting import Pixels
from service.jobs.parameters import Fit

PICTURE_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
FORMATS = ("PNG", "WEBP", "JPEG")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange width and height
MAX_SIDE = 65_535  # pixels; JPEG's own limit. The table of a filter grows with the side
MAX_SEGMENTS = 2**16  # of a JPEG; Pillow keeps them all
MAX_SCANS = 256  # of a progressive JPEG, which goes over the whole picture in each
SEGMENT = re.compile(rb"\xff[\xe0-\xef\xfe]")
SCAN = b"\xff\xda"


def declared_pixels(data: bytes) -> int:
    """Pixels that a picture's header declares; 0 for arrays and for what cannot be read."""
    try:
        width, height = _webp_size(data) or _open(data).size
    except ImageError:
        return 0
    return width * height


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a picture's header says of it, once it is turned upright. bits: 8 or 16 a channel."""

    height: int
    width: int
    channels: int
    bits: int


def declared(data: bytes) -> Declared:
    """What a header says; nothing is decoded but a WebP. Raises `ImageError`."""
    image = _open(data)
    width, height = image.size
    if image.getexif().get(EXIF_ORIENTATION, 1) in QUARTER_TURNS:
        width, height = height, width
    grey = image.mode in ("1", "L") or image.mode.startswith("I")
    return Declared(
        height=height,
        width=width,
        channels=4 if _has_alpha(image) else 1 if grey else 3,
        bits=16 if png.is_deep(image) or image.mode.startswith("I;16") else 8,
    )


def decode(
    data: bytes, shape: tuple[int, int, int], max_pixels: int, fit: Fit
) -> tuple[Pixels, float]:
    """The pixels (h, w, 1 | 3 | 4) of a picture for a model of `shape`, and their full value.

    They have the model's size unless `fit` allows others, and alpha only for four channels.
    Raises `ImageError`.
    """
    # Pillow's WebP reader makes room for the whole picture when it opens it.
    _require_pixels(_webp_size(data) or (0, 0), shape, max_pixels)
    image = _open(data)
    _require_pixels(image.size, shape, max_pixels)
    _require_header(image, data, shape, fit)
    try:
        if image.format == "PNG":
            Image.open(BytesIO(data), formats=("PNG",)).verify()  # the checksums
            png.require_all_rows(data)
        pixels, peak = _pixels(image, data)
    # A decoder that is fed hostile bytes raises whatever it stumbles over.
    except Exception as error:
        raise ImageError(f"a damaged {image.format} file: {error}; send it again") from error
    height, width = pixels.shape[:2]
    if fit == "exact" and (height, width) != shape[1:]:
        raise ImageError(_wrong_size((width, height), shape))
    return pixels, peak


def _open(data: bytes) -> ImageFile.ImageFile:
    """The picture with its header read."""
    try:
        if data.startswith(png.SIGNATURE):
            png.require_structure(data)
        elif sum(1 for _ in islice(SEGMENT.finditer(data), MAX_SEGMENTS)) == MAX_SEGMENTS:
            raise ValueError(f"it has {MAX_SEGMENTS} segments or more")
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"it declares too many pixels: {error}") from error
    # A decoder that is fed hostile bytes raises whatever it stumbles over.
    except Exception as error:
        raise ImageError(
            f"not an image ({len(data)} bytes); send PNG, WebP, JPEG or a .npy array"
        ) from error


def _require_pixels(size: tuple[int, int], shape: tuple[int, int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels or max(size) > MAX_SIDE:
        raise ImageError(
            f"it declares {width}x{height} pixels; at most {max_pixels} are read, and {MAX_SIDE} "
            f"a side; send {shape[2]}x{shape[1]}"
        )


def _require_header(
    image: ImageFile.ImageFile, data: bytes, shape: tuple[int, int, int], fit: Fit
) -> None:
    """Raise `ImageError` for what can be seen of a picture without decoding it."""
    channels, height, width = shape
    # Its orientation may still turn a picture by a quarter.
    if fit == "exact" and image.size not in ((width, height), (height, width)):
        raise ImageError(_wrong_size(image.size, shape))
    # The other frames of an MPO, which cameras write as JPEG, are views of the first.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise ImageError("it is animated; send one still frame")
    if image.info.get("progressive") and data.count(SCAN) > MAX_SCANS:
        raise ImageError(f"it has more than {MAX_SCANS} scans; save it again as a plain JPEG")
    if channels not in PICTURE_CHANNELS:
        raise ImageError(
            f"the model has {channels} channels, which no picture has; send a .npy array (H, W, C)"
        )
    if channels != 4 and _has_alpha(image):
        raise ImageError(
            f"it has an alpha channel but the model has {channels} channel(s); "
            "flatten it onto a background first"
        )


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _wrong_size(size: tuple[int, int], shape: tuple[int, int, int]) -> str:
    return (
        f"it is {size[0]}x{size[1]} pixels; the model takes {shape[2]}x{shape[1]} "
        '(width x height); resize it first, or set "fit" to "resize" or "crop"'
    )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file declares (RFC 9649, section 2), None for others."""
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        return 1 + _little(data[24:27]), 1 + _little(data[27:30])
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return None


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _pixels(image: ImageFile.ImageFile, data: bytes) -> tuple[Pixels, float]:
    """Decoded and turned upright: (h, w, 1 | 3), or 4 where it has alpha; and the full value."""
    # As the header has it: what a PNG says of transparency after its pixels does not count.
    alpha, key = _has_alpha(image), image.info.get("transparency")
    if png.is_deep(image):
        parts = [_upright(part) for part in png.deep_images(image, data)]
        return _with_key(png.join(parts), key), 65_535.0
    image.load()
    upright = _upright(image)
    if image.mode == "I;16":
        grey = np.asarray(upright, dtype=np.uint16)[..., None]
        return _with_key(grey, key), 65_535.0
    if alpha:
        upright = upright.convert("RGBA")
    else:
        upright = upright.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = np.asarray(upright, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1), 255.0


def _upright(image: Image.Image) -> Image.Image:
    turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _with_key(pixels: NDArray[np.uint16], key: Any) -> NDArray[np.uint16]:
    """16-bit pixels with an alpha channel, where one grey or colour stands for transparent."""
    if key is None:
        return pixels
    opaque = (pixels != np.asarray(key)).any(-1, keepdims=True)
    colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return np.concatenate([colours, opaque * np.uint16(65_535)], axis=-1)
