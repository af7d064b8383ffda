"""`.npy` files of real numbers, from anyone.

The header is a Python literal that declares a dtype, an order and a shape;
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Nothing is allocated by
what it declares: the data must be there.
"""

import math
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"


class NpyError(ValueError):
    """The bytes are no array of real numbers; the message says why."""


def is_npy(data: bytes) -> bool:
    """Whether the bytes begin as those of a `.npy` file do."""
    return data.startswith(MAGIC)


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a file that `numpy.save` wrote: integers or floats of any shape, as stored.

    Its values may still be infinite or NaN. Raises `NpyError`.
    """
    stream = BytesIO(data)
    try:
        shape, dtype = _read_header(stream)
    # The header is a Python literal: whatever its parser raises, it is no array.
    except Exception as error:
        raise NpyError("not a readable .npy file; save it with numpy.save") from error
    if dtype.kind not in "uif":
        raise NpyError(f"the array holds {dtype}; send integers or floats")
    if min(shape, default=0) < 0 or len(data) - stream.tell() != dtype.itemsize * math.prod(shape):
        raise NpyError("the array's data does not fill its shape; save it again with numpy.save")
    stream.seek(0)
    try:
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    # Axes that are booleans, too many, or longer than any where another is empty.
    except Exception as error:
        raise NpyError(f"not an array that numpy can hold: {error}") from error
    return array


def as_float64(array: NDArray[Any]) -> NDArray[np.float64]:
    """The array in float64; what is beyond all floats becomes infinite, without a warning."""
    with np.errstate(all="ignore"):
        return np.asarray(array, dtype=np.float64)


def _read_header(stream: BytesIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    return shape, dtype
