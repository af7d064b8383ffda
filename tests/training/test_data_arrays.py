from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training import data
from training.config import DataSection
from training.data_errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)


def read(path: Path, **keys: object) -> data.Dataset:
    keys = {"path": str(path), "held_out": 0.3, "cache": path.parent / "cache"} | keys
    return data.read(DataSection.model_validate(keys))


def all_images(dataset: data.Dataset) -> NDArray[np.uint8]:
    splits = (dataset.train, dataset.held_out)
    files = [file for split in splits for file in split.files]
    images = np.concatenate([split.take(slice(None)).numpy() for split in splits])
    return images[np.argsort(files)]


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["NHWC", "NCHW"])
def test_an_array_is_taken_as_it_is(tmp_path: Path, axes: tuple[int, ...]) -> None:
    np.save(tmp_path / "images.npy", IMAGES.transpose(axes))
    dataset = read(tmp_path / "images.npy")
    assert dataset.spec.shape == (3, 6, 5)
    assert dataset.spec.class_names is None
    assert np.array_equal(all_images(dataset), IMAGES.transpose(0, 3, 1, 2))


def test_an_archive_has_labels_and_names(tmp_path: Path) -> None:
    labels = np.arange(40) % 3
    np.savez(
        tmp_path / "set.npz", images=IMAGES[..., 0], labels=labels, class_names=["a", "b", "c"]
    )
    dataset = read(tmp_path / "set.npz")
    assert dataset.spec.shape == (1, 6, 5)
    assert dataset.spec.class_names == ("a", "b", "c")
    for split in (dataset.train, dataset.held_out):
        assert split.labels.tolist() == [int(file) % 3 for file in split.files]


def test_levels_may_be_fewer_than_the_type_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES // 16)
    assert read(tmp_path / "images.npy", levels=16).spec.levels == 16
    with pytest.raises(DataError, match=r"values up to 15, and data\.levels = 10 allows 0\.\.9"):
        read(tmp_path / "images.npy", levels=10)


def test_sixteen_bit_arrays_have_all_their_levels(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES.astype(np.uint16) * 257)
    dataset = read(tmp_path / "images.npy")
    assert dataset.spec.levels == 65_536
    assert np.array_equal(all_images(dataset), IMAGES.transpose(0, 3, 1, 2).astype(int) * 257)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES / 255}, "are float64; save them as uint8"),
        ({"images": IMAGES[0, 0]}, "must be .N, H, W."),
        ({"images": IMAGES[:0]}, "at least one"),
        ({"pictures": IMAGES}, "no array named 'images'; it has .'pictures'."),
        ({"images": IMAGES, "labels": np.arange(39)}, "must be 40 integers from 0"),
        ({"images": IMAGES, "labels": np.arange(40) - 1}, "must be 40 integers from 0"),
        ({"images": IMAGES, "labels": np.arange(40), "class_names": ["a"]}, "1 class_names"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[np.uint8]], message: str
) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "set.npz")


def test_an_array_is_never_scaled_or_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(DataError, match=r"6×5 and data\.size asks for 8×8; arrays are not scaled"):
        read(tmp_path / "images.npy", size=8)
    with pytest.raises(DataError, match=r"data\.channels asks for 1; arrays are not converted"):
        read(tmp_path / "images.npy", channels=1)


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        read(tmp_path / "images.npy")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match="no file of numpy's"):
        read(tmp_path / "text.npz")
