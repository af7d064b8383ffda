"""Pictures of any size to a model's: scaled with an antialiasing filter, in float32.

The filter is a bicubic whose width grows with the scale, so that every pixel counts (Parmar,
Zhang & Zhu 2022 show what happens otherwise); it works on a channel at a time, which also keeps
the 16 bits of deep pictures. What it overshoots is clipped.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from service.jobs.parameters import Fit

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


def fitted(pixels: Pixels, peak: float, size: tuple[int, int], fit: Fit) -> NDArray[np.float64]:
    """Pixels ``(h, w, C)`` of 0 … peak at another size: ``(H, W, C)``, not rounded.

    size: (H, W). C: 1 or 3, or 4 with alpha as the last channel. `resize` changes the proportions
    where they differ; `crop` keeps them and leaves out what is over at the longer sides.
    """
    if pixels.shape[:2] == size:
        return pixels.astype(np.float64)
    if pixels.shape[2] < 4:
        planes = [_scaled(plane.astype(np.float32), size, fit) for plane in _planes(pixels)]
        return np.stack(planes, axis=-1).clip(0.0, peak)
    # Colours weigh as much as they are opaque, or those of transparent pixels would bleed.
    *colours, last = _planes(pixels)
    weight = last.astype(np.float32) / np.float32(peak)
    alpha = _scaled(weight, size, fit)
    planes = [
        np.divide(
            _scaled(colour * weight, size, fit), alpha, out=np.zeros(size), where=alpha > 1e-6
        )
        for colour in colours
    ]
    return np.stack([*planes, alpha * peak], axis=-1).clip(0.0, peak)


def _planes(pixels: Pixels) -> list[Pixels]:
    return [pixels[..., channel] for channel in range(pixels.shape[2])]


def _scaled(plane: NDArray[np.float32], size: tuple[int, int], fit: Fit) -> NDArray[np.float64]:
    """One channel ``(h, w)`` as ``(H, W)``."""
    image, (height, width) = Image.fromarray(plane), size
    if fit == "crop":
        scaled = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    else:
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.float64)
