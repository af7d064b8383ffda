"""What images are compared by, and the classifier that is trained for it."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.data import DataSpec
from training.data import Dataset, Split
from training.evaluation import classifier
from training.evaluation.features import FeaturesError, extractor

SPEC = DataSpec(shape=(1, 8, 8), levels=17, class_names=("left", "right"))


def bright(count: int, seed: int) -> Split:
    """Noise with a bright half: left or right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(0, 9, size=(count, 1, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 4 * label : 4 * label + 4] += 8
    return Split(
        images=images, rows=np.arange(count), labels=torch.from_numpy(labels), files=[""] * count
    )


@pytest.fixture(scope="module")
def trained() -> classifier.Classifier:
    settings = classifier.TrainingSettings(epochs=4)
    return classifier.train(SPEC, bright(128, 0), settings)


def test_pixels_run_from_minus_one_to_one_whatever_the_model_s_range() -> None:
    spec = dataclasses.replace(SPEC, low=-4.0, high=9.0)
    levels = torch.tensor([0, 8, 16], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    found = extractor("pixels", spec)(levels)
    assert found.shape == (3, 64)
    assert found.dtype == np.float64
    assert np.allclose(found[:, 0], [-16 / 17, 0.0, 16 / 17])


def test_a_classifier_learns_classes_and_its_features_are_small(
    trained: classifier.Classifier, tmp_path: Path
) -> None:
    unseen = bright(64, 1)
    assert classifier.accuracy(trained, unseen) == 1.0
    path = tmp_path / "halves.safetensors"
    classifier.save(path, trained, {"data": "halves"})
    extract = extractor(str(path), SPEC)
    assert extract.name == "halves"
    found = extract(unseen.take(slice(None)))
    assert found.shape == (64, 64)
    with torch.no_grad():
        direct = trained.features(unseen.take(slice(None)).float())
    assert np.array_equal(found, direct.double().numpy())


def test_the_same_seed_gives_the_same_classifier_and_leaves_torch_s_own_alone() -> None:
    settings = classifier.TrainingSettings(epochs=1)
    state = torch.random.get_rng_state()
    first, second = (classifier.train(SPEC, bright(32, 0), settings) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_data_without_classes_have_no_classifier() -> None:
    spec = dataclasses.replace(SPEC, class_names=None)
    with pytest.raises(ValueError, match="at least 2 classes, the data have 0"):
        classifier.train(spec, bright(8, 0), classifier.TrainingSettings())


def test_features_of_other_images_are_refused(
    trained: classifier.Classifier, tmp_path: Path, dataset: Dataset
) -> None:
    path = tmp_path / "halves.safetensors"
    classifier.save(path, trained, {})
    with pytest.raises(FeaturesError, match="with 17 levels; these have"):
        extractor(str(path), dataset.spec)


def test_what_is_no_features_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="there are 'pixels'"):
        extractor("pixel", SPEC)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(FeaturesError, match="no classifier that `fokker features` wrote"):
        extractor(str(tmp_path / "other.safetensors"), SPEC)
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(FeaturesError, match="broken"):
        extractor(str(tmp_path / "broken"), SPEC)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed"
)
def test_inception_needs_an_extra_and_says_which() -> None:
    with pytest.raises(FeaturesError, match=r"pip install 'fokker\[fid\]'"):
        extractor("inception:weights.pth", SPEC)
