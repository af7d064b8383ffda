"""Uploaded images into a model's own levels.

`decoding` reads PNG, WebP and JPEG (`png` what Pillow leaves out of PNG), `fitting` scales, and
`reading` makes levels of pixels or of a `.npy` array. Whatever the bytes are, an upload is read or
refused by an `ImageError`, and its size is checked in its header, before anything is decoded.
"""

from service.images.decoding import PICTURE_CHANNELS, Declared, declared, declared_pixels
from service.images.errors import ImageError
from service.images.reading import read_image

__all__ = [
    "PICTURE_CHANNELS",
    "Declared",
    "ImageError",
    "declared",
    "declared_pixels",
    "read_image",
]
