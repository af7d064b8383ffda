"""Uploaded images into a model's own levels: 0..L−1 as float64 of shape (C, H, W).

PNG, WebP and JPEG map their full range onto the levels, snapped to the nearest:
level = round(p / p_max · (L − 1)). A 16-bit greyscale PNG keeps its 16 bits; of a 16-bit colour
PNG the decoder reads the upper 8. `.npy` arrays are in the levels already and are not snapped.
Sizes are checked in the header, before anything is decoded.
"""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("PNG", "WEBP", "JPEG")
NPY_MAGIC = b"\x93NUMPY"
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
EXIF_ORIENTATION = 0x0112

Levels = NDArray[np.float64]


class ImageError(ValueError):
    """An upload that cannot be read as one of the model's images; the message says why."""


def read_image(data: bytes, shape: tuple[int, int, int], levels: int, max_pixels: int) -> Levels:
    """One upload as float64 levels of `shape` (C, H, W); raises `ImageError`."""
    if data.startswith(NPY_MAGIC):
        return _read_npy(data, shape, levels)
    pixels, peak = _read_picture(data, shape, max_pixels)  # (H, W, channels of the file)
    channels = _match_channels(pixels, peak, shape[0])  # (C, H, W)
    return np.floor(channels / peak * (levels - 1) + 0.5)


def _read_picture(
    data: bytes, shape: tuple[int, int, int], max_pixels: int
) -> tuple[Levels, float]:
    """The pixels (H, W, channels) of a picture, and the value that stands for full."""
    # Pillow's WebP reader makes room for the whole picture when it opens it.
    _check_pixels(*_webp_size(data), shape, max_pixels)
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"it declares too many pixels: {error}") from error
    # A decoder that is fed hostile bytes raises whatever it stumbles over.
    except Exception as error:
        raise ImageError(
            f"not an image ({len(data)} bytes); send PNG, WebP, JPEG or a .npy array"
        ) from error
    _check_header(image, shape, max_pixels)
    try:
        if image.format == "PNG":  # the decoder takes a file that breaks off, and fills it up
            Image.open(BytesIO(data), formats=("PNG",)).verify()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        image.load()
    except Exception as error:
        raise ImageError(f"a damaged {image.format} file: {error}; send it again") from error
    _, height, width = shape
    if image.size != (width, height):
        raise ImageError(_wrong_size(image.size, shape))
    return _pixels(image, shape[0])


def _check_header(image: Image.Image, shape: tuple[int, int, int], max_pixels: int) -> None:
    _check_pixels(*image.size, shape, max_pixels)
    # Its orientation may still turn a picture by a quarter.
    if image.size not in ((shape[2], shape[1]), (shape[1], shape[2])):
        raise ImageError(_wrong_size(image.size, shape))
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError("it is animated; send one still frame")
    if shape[0] not in (1, 3, 4):
        raise ImageError(
            f"the model has {shape[0]} channels, which no picture has; send a .npy array (H, W, C)"
        )


def _check_pixels(width: int, height: int, shape: tuple[int, int, int], max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"it declares {width}x{height} pixels; at most {max_pixels} are read; "
            f"send {shape[2]}x{shape[1]}"
        )


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP file declares (RFC 9649, section 2), (0, 0) for others."""
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else b""
    if kind == b"VP8X":
        return 1 + _little(data[24:27]), 1 + _little(data[27:30])
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return 0, 0


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _wrong_size(size: tuple[int, int], shape: tuple[int, int, int]) -> str:
    return (
        f"it is {size[0]}x{size[1]} pixels; the model takes {shape[2]}x{shape[1]} "
        "(width x height); resize it first"
    )


def _pixels(image: Image.Image, channels: int) -> tuple[Levels, float]:
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        return np.asarray(image, dtype=np.float64)[..., None], 65_535.0
    alpha = image.mode in ALPHA_MODES or "transparency" in image.info
    if alpha and channels != 4:
        raise ImageError(
            f"it has an alpha channel but the model has {channels} channel(s); "
            "flatten it onto a background first"
        )
    if alpha:
        image = image.convert("RGBA")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    pixels = np.asarray(image, dtype=np.float64)
    return pixels.reshape(*pixels.shape[:2], -1), 255.0


def _match_channels(pixels: Levels, peak: float, channels: int) -> Levels:
    """(H, W, 1 | 3 | 4) as the model's (C, H, W): luminance, grey as RGB, or an opaque alpha."""
    planes = np.moveaxis(pixels, -1, 0)
    if channels == 1 and len(planes) == 3:
        return np.asarray(np.tensordot(LUMINANCE, planes, axes=1)[None])
    if channels >= 3 and len(planes) == 1:
        planes = np.repeat(planes, 3, axis=0)
    if channels == 4 and len(planes) == 3:
        planes = np.concatenate([planes, np.full_like(planes[:1], peak)])
    return planes


def _read_npy(data: bytes, shape: tuple[int, int, int], levels: int) -> Levels:
    """A .npy array (H, W), (H, W, C) or, as /generate gives it, (C, H, W): as (C, H, W)."""
    stream = BytesIO(data)
    found, dtype = _npy_header(stream)
    channels, height, width = shape
    allowed = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])
    if found not in [*allowed, shape]:
        wanted = " or ".join(str(candidate) for candidate in allowed)
        raise ImageError(f"the array has shape {found}; the model takes {wanted}")
    if dtype.kind not in "uif":
        raise ImageError(f"the array holds {dtype}; send integers or floats")
    if len(data) - stream.tell() != dtype.itemsize * height * width * channels:
        raise ImageError("the array's data does not fill its shape; save it again with numpy.save")
    stream.seek(0)
    array = np.asarray(np.load(stream, allow_pickle=False), dtype=np.float64)
    # A NaN fails both comparisons.
    if not ((array >= 0) & (array <= levels - 1)).all():
        raise ImageError(
            f"the array has values outside 0..{levels - 1} or not finite; "
            f"scale it to the data's own levels"
        )
    if found == shape and found not in allowed:
        return array
    return np.ascontiguousarray(np.moveaxis(array.reshape(height, width, channels), -1, 0))


def _npy_header(stream: BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    # The header is a Python literal: whatever its parser raises, it is no array.
    except Exception as error:
        raise ImageError("not a readable .npy file; save it with numpy.save") from error
    return shape, dtype
