"""Uploads into a model's levels: every format, and everything that is refused."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.images import ImageError, read_image

GREY, COLOUR, SPRITE = (1, 8, 8), (3, 6, 5), (4, 6, 5)
RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encode(pixels: NDArray[Any], form: str = "PNG", mode: str | None = None, **how: Any) -> bytes:
    stream = BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, form, **how)
    return stream.getvalue()


def npy(array: NDArray[Any], **how: Any) -> bytes:
    stream = BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def read(data: bytes, shape: tuple[int, int, int] = GREY, levels: int = 17) -> NDArray[np.float64]:
    image = read_image(data, shape, levels, max_pixels=1000)
    assert image.shape == shape
    assert image.dtype == np.float64
    return image


def colours(channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, 5, channels), dtype=np.uint8)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_eight_bits_map_their_full_range_onto_the_nearest_level(levels: int):
    expected = [[round(int(p) / 255 * (levels - 1)) for p in row] for row in RAMP]
    for form, how in (("PNG", {}), ("WEBP", {"lossless": True})):
        np.testing.assert_array_equal(read(encode(RAMP, form, **how), levels=levels)[0], expected)


def test_every_level_survives_as_eight_bits_and_back():
    levels = np.arange(17)
    pixels = np.resize(np.round(levels / 16 * 255).astype(np.uint8), (8, 8))
    np.testing.assert_array_equal(read(encode(pixels))[0], np.resize(levels, (8, 8)))


def test_sixteen_bits_keep_levels_that_eight_would_merge():
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(read(encode(pixels), levels=65_536)[0], pixels)
    full = np.full((8, 8), 65_535, dtype=np.uint16)
    np.testing.assert_array_equal(read(encode(full))[0], 16)


def test_a_jpeg_of_a_flat_grey_is_that_grey():
    np.testing.assert_array_equal(read(encode(np.full((8, 8), 128, np.uint8), "JPEG"))[0], 8)


def test_a_grey_model_takes_the_luminance_of_colours():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(read(encode(red), levels=256)[0], round(0.299 * 255))


def test_a_colour_model_takes_colours_channel_by_channel_and_grey_as_three():
    pixels = colours()
    got = read(encode(pixels), COLOUR, 256)
    np.testing.assert_array_equal(got, np.moveaxis(pixels, -1, 0))
    got = read(encode(pixels[..., 0]), COLOUR, 256)
    np.testing.assert_array_equal(got, np.repeat(pixels[None, ..., 0], 3, axis=0))


def test_a_palette_is_read_as_its_colours():
    pixels = np.zeros((6, 5, 3), np.uint8)
    pixels[::2] = (255, 0, 51)
    got = read(encode(pixels, mode="P"), COLOUR, 256)
    np.testing.assert_array_equal(got, np.moveaxis(pixels, -1, 0))


def test_a_model_with_four_channels_takes_alpha_and_fills_in_an_opaque_one():
    pixels = colours(4)
    got = read(encode(pixels), SPRITE, 256)
    np.testing.assert_array_equal(got, np.moveaxis(pixels, -1, 0))
    np.testing.assert_array_equal(read(encode(pixels[..., :3]), SPRITE, 256)[3], 255)


def test_a_picture_is_turned_as_its_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    upright = colours()
    stored = np.rot90(upright)
    got = read(encode(np.ascontiguousarray(stored), exif=exif), COLOUR, 256)
    np.testing.assert_array_equal(got, np.moveaxis(upright, -1, 0))


@pytest.mark.parametrize(
    "how", [{"lossless": True}, {"quality": 100}, {"lossless": True, "exact": True}]
)
def test_every_kind_of_webp_is_read(how: dict[str, Any]):
    flat = np.full((6, 5, 4), 255, np.uint8)
    np.testing.assert_array_equal(read(encode(flat[..., :3], "WEBP", **how), COLOUR, 256), 255)
    np.testing.assert_array_equal(read(encode(flat // 2, "WEBP", **how), SPRITE, 256)[3], 127)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64, ">f4"])
def test_an_array_is_taken_in_the_data_s_own_levels(dtype: Any):
    array = (np.arange(64) % 17).reshape(8, 8).astype(dtype)
    np.testing.assert_array_equal(read(npy(array))[0], array)
    np.testing.assert_array_equal(read(npy(array[..., None]))[0], array)
    np.testing.assert_array_equal(read(npy(np.asfortranarray(array)))[0], array)


def test_an_array_between_levels_is_not_snapped():
    np.testing.assert_array_equal(read(npy(np.full((8, 8), 3.25)))[0], 3.25)


def _declaring(shape: str, descr: str = "<f8") -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _bomb() -> bytes:
    """A PNG of 8x8 pixels whose header declares 60000x60000."""
    import zlib

    data = bytearray(encode(RAMP))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _webp_bomb(kind: str) -> bytes:
    """The opening of a WebP file of this kind that declares 16000x16000."""
    size = 16_000
    chunk = {
        "VP8X": bytes(4) + (size - 1).to_bytes(3, "little") * 2,
        "VP8L": b"\x2f" + ((size - 1) | (size - 1) << 14).to_bytes(4, "little"),
        "VP8 ": b"\x10\0\0\x9d\x01\x2a" + size.to_bytes(2, "little") * 2,
    }[kind]
    chunk += bytes(64)
    body = b"WEBP" + kind.encode() + len(chunk).to_bytes(4, "little") + chunk
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _animated() -> bytes:
    stream = BytesIO()
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "shape", "reason"),
    [
        (b"", GREY, "not an image"),
        (b"hello", GREY, "not an image"),
        (encode(RAMP, "GIF"), GREY, "not an image"),
        (encode(RAMP)[:50], GREY, "damaged"),
        (encode(RAMP, "WEBP")[:-20], GREY, "not an image"),
        (encode(RAMP[:7]), GREY, "8x7"),
        (encode(RAMP[:7]), GREY, '"fit" to "resize" or "crop"'),
        (encode(np.zeros((40, 40), np.uint8)), GREY, "at most 1000"),
        (_bomb(), GREY, "pixels"),
        (_webp_bomb("VP8X"), GREY, "16000x16000 pixels"),
        (_webp_bomb("VP8L"), GREY, "16000x16000 pixels"),
        (_webp_bomb("VP8 "), GREY, "16000x16000 pixels"),
        (_animated(), GREY, "animated"),
        (encode(np.zeros((8, 8, 4), np.uint8)), GREY, "alpha"),
        (encode(np.zeros((6, 5, 4), np.uint8)), COLOUR, "alpha"),
        (encode(RAMP, transparency=0), GREY, "alpha"),
        (encode(RAMP), (2, 8, 8), "2 channels"),
        (npy(np.zeros((8, 7))), GREY, "shape"),
        (npy(np.zeros((6, 5))), COLOUR, "shape"),
        (npy(np.zeros((6, 3, 5))), COLOUR, "shape"),
        (npy(np.full((8, 8), np.nan)), GREY, "finite"),
        (npy(np.full((8, 8), np.inf)), GREY, "finite"),
        (npy(np.full((8, 8), 16.5)), GREY, "outside 0..16"),
        (npy(np.full((8, 8), -1)), GREY, "outside 0..16"),
        (npy(np.zeros((8, 8), complex)), GREY, "complex"),
        (npy(np.zeros((8, 8), object), allow_pickle=True), GREY, "object"),
        (npy(np.zeros((8, 8)))[:-1], GREY, "fill"),
        (_declaring("(100000, 100000, 100000)"), GREY, "shape"),
        (_declaring("(8, 8)"), GREY, "fill"),
        (_declaring("__import__('os')"), GREY, "not a readable"),
        (b"\x93NUMPY", GREY, "not a readable"),
        (b"\x93NUMPY\x09\x00", GREY, "not a readable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_upload_that_is_no_image_of_the_model_is_refused_with_a_reason(
    data: bytes, shape: tuple[int, int, int], reason: str
):
    with pytest.raises(ImageError, match=reason):
        read_image(data, shape, levels=17, max_pixels=1000)


def test_an_array_as_generate_gives_it_goes_back_in() -> None:
    levels = np.random.default_rng(0).integers(0, 256, size=(3, 6, 5)).astype(np.float64)
    buffer = BytesIO()
    np.save(buffer, levels)
    np.testing.assert_array_equal(read_image(buffer.getvalue(), (3, 6, 5), 256, 1000), levels)


def test_a_png_that_breaks_off_is_refused_wherever_it_is_cut() -> None:
    buffer = BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    whole = buffer.getvalue()
    read_image(whole, (1, 8, 8), 17, 1000)
    for length in range(len(whole) - 4):  # but for the checksum of its empty last chunk
        with pytest.raises(ImageError):
            read_image(whole[:length], (1, 8, 8), 17, 1000)
