import pytest
import torch

from training.data import digits


def test_digits_have_seventeen_levels_and_ten_classes() -> None:
    dataset = digits(0.15)
    levels = torch.cat((dataset.train.levels, dataset.held_out.levels))
    assert levels.shape == (1797, 1, 8, 8)
    assert set(levels.unique().tolist()) == set(range(17))
    assert dataset.spec.classes == 10


def test_the_split_never_moves_and_never_overlaps() -> None:
    first, second = digits(0.15), digits(0.15)
    assert torch.equal(first.held_out.levels, second.held_out.levels)
    assert first.fingerprint == second.fingerprint
    assert len(first.train) + len(first.held_out) == 1797
    trained_on = {image.numpy().tobytes() for image in first.train.levels}
    assert not any(image.numpy().tobytes() in trained_on for image in first.held_out.levels)


def test_a_split_that_leaves_one_side_empty_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves one side"):
        digits(0.0001)
