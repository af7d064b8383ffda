"""From pixels, or a `.npy` array, to a model's own levels: 0..L−1 as float64 of shape (C, H, W).

Pictures map their full range, of 8 or 16 bits, onto the levels, snapped to the nearest:
level = round(p / p_max · (L − 1)). Arrays are in the levels already and are not snapped.
"""

import numpy as np
from numpy.typing import NDArray

from service.images.decoding import decode
from service.images.errors import ImageError
from service.images.fitting import fitted
from service.jobs.parameters import Fit
from service.npy import NpyError, as_float64, is_npy, read_npy

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601

Levels = NDArray[np.float64]


def read_image(
    data: bytes, shape: tuple[int, int, int], levels: int, max_pixels: int, fit: Fit = "exact"
) -> Levels:
    """One upload as float64 levels of `shape` (C, H, W); raises `ImageError`.

    fit: what becomes of a picture of another size; arrays always need the model's own.
    """
    if is_npy(data):
        return _read_array(data, shape, levels, fit)
    pixels, peak = decode(data, shape, max_pixels, fit)
    scaled = fitted(pixels, peak, shape[1:], fit)
    return np.floor(_match_channels(scaled, peak, shape[0]) / peak * (levels - 1) + 0.5)


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


def _read_array(data: bytes, shape: tuple[int, int, int], levels: int, fit: Fit) -> Levels:
    """A .npy array (H, W), (H, W, C) or, as /generate gives it, (C, H, W): as (C, H, W)."""
    try:
        given = read_npy(data)
    except NpyError as error:
        raise ImageError(str(error)) from error
    channels, height, width = shape
    allowed = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])
    if given.shape not in [*allowed, shape]:
        wanted = "one image, " + " or ".join(str(candidate) for candidate in [shape, *allowed])
        scaled = "" if fit == "exact" else f'; "fit": "{fit}" scales pictures, not arrays'
        raise ImageError(f"the array has shape {given.shape}; the model takes {wanted}{scaled}")
    array = as_float64(given)
    # A NaN fails both comparisons.
    if not ((array >= 0) & (array <= levels - 1)).all():
        raise ImageError(
            f"the array has values outside 0..{levels - 1} or not finite; "
            f"scale it to the data's own levels"
        )
    if array.shape == shape and array.shape not in allowed:
        return array
    return np.ascontiguousarray(np.moveaxis(array.reshape(height, width, channels), -1, 0))
