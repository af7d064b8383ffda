"""Pictures of another size than the model's: `resize` and `crop`."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.images import ImageError, read_image
from service.jobs.parameters import Fit
from tests.service.uploads import npy, picture, raw_png

GREY, COLOUR, SPRITE = (1, 8, 8), (3, 8, 8), (4, 8, 8)
SCALING: tuple[Fit, ...] = ("resize", "crop")


def read(
    pixels: NDArray[Any], fit: Fit, shape: tuple[int, int, int] = GREY, levels: int = 65_536
) -> NDArray[np.float64]:
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    image = read_image(raw_png(pixels), shape, levels, max_pixels=100_000, fit=fit)
    assert image.shape == shape
    return image


@pytest.mark.parametrize("fit", SCALING)
@pytest.mark.parametrize("size", [(3, 5), (8, 9), (40, 16), (100, 301)])
def test_a_flat_picture_stays_what_it_is_at_any_size(fit: Fit, size: tuple[int, int]):
    for value in (0, 12_345, 65_535):
        flat = np.full((*size, 3), value, np.uint16)
        assert (read(flat, fit, COLOUR) == value).all()


@pytest.mark.parametrize("fit", ["exact", *SCALING])
def test_a_picture_of_the_model_s_size_is_not_touched(fit: Fit):
    pixels = np.random.default_rng(0).integers(0, 65_536, (8, 8), dtype=np.uint16)
    np.testing.assert_array_equal(read(pixels, fit)[0], pixels)


def test_resizing_keeps_a_ramp_a_ramp_to_sixteen_bits():
    """Away from the edges a symmetric filter gives a linear function back at every centre."""
    ramp = np.broadcast_to(np.linspace(0, 60_000, 80).round().astype(np.uint16), (80, 80))
    got = read(ramp, "resize")[0]
    centres = (np.arange(8) + 0.5) * 10 - 0.5
    np.testing.assert_allclose(got[:, 2:6], np.tile(centres[2:6] / 79 * 60_000, (8, 1)), atol=1.5)


def test_resizing_averages_what_lies_between_the_pixels():
    """Stripes, five to a pixel of the result: a filter that skips pixels gives no grey."""
    stripes = np.zeros((80, 80), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(read(stripes, "resize", levels=256) - 127.5).max() <= 4


@pytest.mark.parametrize("turned", [False, True])
def test_a_crop_is_the_centre_and_a_resize_the_whole(turned: bool):
    pixels = np.zeros((32, 96), np.uint8)
    pixels[:, 32:64] = 255  # the middle third
    pixels = pixels.T if turned else pixels
    inner = read(np.ascontiguousarray(pixels), "crop", levels=256)[0]
    assert (inner[2:-2, 2:-2] == 255).all()
    whole = read(np.ascontiguousarray(pixels), "resize", levels=256)[0]
    whole = whole.T if turned else whole
    assert (whole[:, :2] == 0).all()
    assert (whole[:, 6:] == 0).all()


def test_a_crop_is_a_resize_of_the_cut_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 40), dtype=np.uint8)
    cut = np.ascontiguousarray(pixels[:, 12:28])
    crop, resized = (read(p, f, levels=256)[0] for p, f in ((pixels, "crop"), (cut, "resize")))
    np.testing.assert_array_equal(crop[:, 2:-2], resized[:, 2:-2])  # the filter sees over the cut


def test_the_colour_of_transparent_pixels_does_not_bleed():
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:16] = (0, 200, 0, 255)
    pixels[16:] = (255, 0, 0, 0)  # transparent red
    got = read(pixels, "resize", SPRITE, 256)
    seen = got[:3, got[3] > 0]
    np.testing.assert_array_equal(seen, np.broadcast_to([[0], [200], [0]], seen.shape))
    assert got[3, 0, 0] == 255
    assert got[3, 7, 7] == 0


@pytest.mark.parametrize("fit", SCALING)
@pytest.mark.parametrize(("form", "how"), [("JPEG", {}), ("WEBP", {"lossless": True})])
def test_every_format_is_scaled(fit: Fit, form: str, how: dict[str, Any]):
    data = picture(np.full((30, 20, 3), 128, np.uint8), form, **how)
    assert (read_image(data, GREY, 256, 1000, fit) == 128).all()


def test_a_picture_is_turned_before_it_is_scaled():
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 80), np.uint8)
    pixels[:, :40] = 255  # left half: on top, once turned clockwise
    data = picture(pixels, "PNG", exif=exif)
    got = read_image(data, GREY, 256, 10_000, "resize")[0]
    assert (got[:2] == 255).all()
    assert (got[6:] == 0).all()


@pytest.mark.parametrize("fit", SCALING)
def test_an_array_is_never_scaled(fit: Fit):
    with pytest.raises(ImageError, match=f'"fit": "{fit}" scales pictures, not arrays'):
        read_image(npy(np.zeros((16, 16))), GREY, 17, 1000, fit)
    assert read_image(npy(np.zeros((8, 8))), GREY, 17, 1000, fit).shape == GREY


@pytest.mark.parametrize("fit", SCALING)
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_scaled(fit: Fit):
    with pytest.raises(ImageError, match="at most 1000 are read"):
        read_image(raw_png(np.zeros((32, 32, 1), np.uint8)), GREY, 17, 1000, fit)
    with pytest.raises(ImageError, match="65535 a side"):
        read_image(raw_png(np.zeros((1, 70_000, 1), np.uint8)), GREY, 17, 10**6, fit)
