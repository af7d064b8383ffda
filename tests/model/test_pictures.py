import io

import numpy as np
import pytest
import torch
from PIL import Image

from model import pictures
from model.data import DataSpec
from service.images import read_image


@pytest.mark.parametrize(("channels", "levels"), [(1, 17), (1, 256), (3, 256), (4, 256)])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_picture_sent_back_has_the_levels_it_was_made_of(
    channels: int, levels: int, kind: str
) -> None:
    """The map to pixels is the inverse of the API's map from uploads."""
    spec = DataSpec(shape=(channels, 6, 5), levels=levels)
    given = torch.from_numpy(
        np.random.default_rng(0).integers(0, levels, size=(1, *spec.shape)).astype(np.float64)
    )
    given[:, -1] = levels - 1  # an opaque alpha: WebP drops the colour of transparent pixels
    file = pictures.encode(pictures.to_bytes(spec, spec.to_model(given))[0], kind)
    back = read_image(file, spec.shape, levels, 10_000)
    assert np.array_equal(back, given[0].numpy())


def test_values_outside_the_range_are_clipped() -> None:
    spec = DataSpec(shape=(1, 1, 2), levels=256)
    pixels = pictures.to_bytes(spec, torch.tensor([[[[-7.0, 7.0]]]], dtype=torch.float64))
    assert pixels.flatten().tolist() == [0, 255]


def test_a_grid_is_square_and_keeps_the_order() -> None:
    tiles = np.stack([np.full((2, 3, 1), value, dtype=np.uint8) for value in range(1, 6)])
    sheet = pictures.grid(tiles)
    assert sheet.shape == (2 * 3 - 1, 3 * 4 - 1, 1)
    assert sheet[::3, ::4, 0].tolist()[0] == [1, 2, 3]
    assert sheet[::3, ::4, 0].tolist()[1][:2] == [4, 5]
    assert pictures.grid(tiles, columns=5).shape == (2, 5 * 4 - 1, 1)


def test_two_channels_have_no_picture_format() -> None:
    with pytest.raises(ValueError, match="ask for npy"):
        pictures.encode(np.zeros((2, 2, 2), dtype=np.uint8))


def test_webp_is_lossless() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    image = Image.open(io.BytesIO(pictures.encode(pixels, "webp")))
    assert np.array_equal(np.asarray(image), pixels)
