"""PNG beyond what Pillow reads: 16 bits of every channel, and no row that is not there."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.images import ImageError, read_image
from tests.service.uploads import png_of, raw_png

SHAPES = {1: (1, 6, 5), 3: (3, 6, 5), 4: (4, 6, 5)}


def deep(channels: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 65_536, (6, 5, channels), dtype=np.uint16)


def read(data: bytes, channels: int, levels: int = 65_536) -> NDArray[np.float64]:
    return read_image(data, SHAPES[channels], levels, max_pixels=1000)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_of_every_channel_arrive(channels: int, interlaced: bool):
    pixels = deep(channels)
    got = read(raw_png(pixels, interlaced=interlaced), channels)
    np.testing.assert_array_equal(got, np.moveaxis(pixels, -1, 0))


def test_sixteen_bits_of_grey_with_alpha_are_read_as_colours():
    pixels = deep(2)
    expected = np.moveaxis(pixels[..., [0, 0, 0, 1]], -1, 0)
    np.testing.assert_array_equal(read(raw_png(pixels), 4), expected)


def test_sixteen_bit_colours_are_turned_as_the_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    upright = deep(3)
    stored = np.ascontiguousarray(np.rot90(upright))
    got = read(raw_png(stored, exif=exif.tobytes()[6:]), 3)
    np.testing.assert_array_equal(got, np.moveaxis(upright, -1, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_one_transparent_colour_of_sixteen_bits_becomes_alpha(channels: int):
    pixels = deep(channels)
    key = tuple(int(value) for value in pixels[2, 3])
    alpha = np.full((6, 5), 65_535)
    alpha[2, 3] = 0
    got = read(raw_png(pixels, key=key), 4)
    np.testing.assert_array_equal(got[3], alpha)
    np.testing.assert_array_equal(got[:3], np.moveaxis(np.broadcast_to(pixels, (6, 5, 3)), -1, 0))
    with pytest.raises(ImageError, match="alpha"):
        read(raw_png(pixels, key=key), channels)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("pixels", [deep(3), deep(3).astype(np.uint8)], ids=["16", "8"])
def test_a_png_that_lacks_rows_is_refused_not_filled_with_black(
    pixels: NDArray[Any], interlaced: bool
):
    lines = 12 if interlaced else 6
    whole = raw_png(pixels, interlaced=interlaced, rows=lines, pieces=3)
    assert whole == raw_png(pixels, interlaced=interlaced, pieces=3)
    read(whole, 3)
    for rows in range(lines):
        with pytest.raises(ImageError, match="before its last row"):
            read(raw_png(pixels, interlaced=interlaced, rows=rows, pieces=3), 3)


def test_the_smallest_pictures_have_their_rows_in_every_interlacing():
    for height in range(1, 10):
        for width in range(1, 10):
            pixels = np.full((height, width, 1), 255, np.uint8)
            for interlaced in (False, True):
                data = raw_png(pixels, interlaced=interlaced)
                assert (read_image(data, (1, height, width), 2, 1000) == 1).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rows_of_less_than_a_byte_a_pixel_are_counted(bits: int):
    image = Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5) % 2**bits)
    image.putpalette([value for grey in range(2**bits) for value in (grey, grey, grey)])
    stream = BytesIO()
    image.save(stream, "PNG", bits=bits)
    assert stream.getvalue()[24] == bits
    expected = np.arange(30).reshape(6, 5) % 2**bits
    np.testing.assert_array_equal(read(stream.getvalue(), 1, 256)[0], expected)


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, start = [], 8
    while start < len(data):
        size = int.from_bytes(data[start : start + 4])
        found.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += size + 12
    return found


def test_a_second_header_is_refused():
    header, *others = chunks_of(raw_png(deep(3)))
    for chunks in ([header, header, *others], [others[0], header, *others]):
        with pytest.raises(ImageError, match="not an image"):
            read(png_of(chunks), 3)


def test_a_flood_of_chunks_is_refused_before_it_is_parsed():
    header, *others = chunks_of(raw_png(deep(3)))
    with pytest.raises(ImageError, match="not an image"):
        read(png_of([header, *[(b"prVt", b"")] * 70_000, *others]), 3)
