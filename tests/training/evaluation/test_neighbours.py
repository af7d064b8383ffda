"""Precision, recall and memorisation on sets whose answers are known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from training.evaluation.neighbours import (
    memorisation,
    nearest,
    nearest_of_many,
    precision_recall,
)


def normal(seed: int, n: int, d: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_neighbours_are_those_of_all_distances() -> None:
    of, among = normal(0, 50), normal(1, 80)
    whole = cdist(of, among)
    found = nearest(of, among, 4)
    assert (found.indices == np.argsort(whole, axis=1)[:, :4]).all()
    assert np.allclose(found.distances, np.sort(whole, axis=1)[:, :4])


@pytest.mark.parametrize("chunk", [2, 30, 79, 80])
def test_neighbours_among_chunks_are_those_among_all(chunk: int) -> None:
    of, among = normal(0, 50), normal(1, 80)
    whole = nearest(of, among, 4)
    parts = nearest_of_many(of, (among[i : i + chunk] for i in range(0, 80, chunk)), 4)
    assert (parts.indices == whole.indices).all()
    assert np.array_equal(parts.distances, whole.distances)
    with pytest.raises(ValueError, match="4 neighbours are asked for among 3 images"):
        nearest_of_many(of, (among[:1], among[:2]), 4)


def test_a_copy_is_at_distance_zero_however_far_from_the_origin() -> None:
    among = normal(0, 30) + 1e6
    assert (nearest(among[:5], among, 1).distances == 0.0).all()


def test_copies_of_the_real_images_have_precision_and_recall_one() -> None:
    real = normal(0, 100)
    found = precision_recall(real, real.copy())
    assert (found.precision, found.recall) == (1.0, 1.0)


def test_one_mode_of_two_has_all_the_precision_and_half_of_the_recall() -> None:
    real = np.concatenate((normal(0, 200), normal(1, 200) + 100.0))
    samples = real[:200] + 1e-3 * normal(2, 200)
    found = precision_recall(real, samples)
    assert found.precision == 1.0
    assert found.recall == 0.5


def test_half_noise_has_half_the_precision_and_all_the_recall() -> None:
    real = normal(0, 200)
    samples = np.concatenate((real + 1e-3 * normal(1, 200), normal(2, 200) + 100.0))
    found = precision_recall(real, samples)
    assert found.precision == 0.5
    assert found.recall == 1.0


def test_both_are_those_of_the_definition() -> None:
    real, samples = normal(0, 60), 1.5 * normal(1, 40)
    for k in (1, 3):

        def share(of: np.ndarray, centres: np.ndarray, k: int = k) -> float:
            radii = np.sort(cdist(centres, centres), axis=1)[:, k]
            return float((cdist(of, centres) <= radii).any(1).mean())

        found = precision_recall(real, samples, k)
        assert found.precision == share(samples, real)
        assert found.recall == share(real, samples)
        assert 0.0 < found.precision < 1.0


def test_a_ball_needs_more_images_than_neighbours() -> None:
    with pytest.raises(ValueError, match="needs more images than 3"):
        precision_recall(normal(0, 3), normal(1, 20))


def test_how_often_a_sample_is_nearer_is_the_statistic_of_mann_and_whitney() -> None:
    samples, held_out = np.abs(normal(0, 70, 1))[:, 0], np.abs(normal(1, 90, 1))[:, 0]
    samples[:20] = held_out[:20]  # ties
    found = memorisation(samples, held_out)
    theirs = mannwhitneyu(held_out, samples)
    assert found.nearer == pytest.approx(theirs.statistic / (70 * 90), rel=1e-12)


def test_its_z_is_standard_normal_where_nothing_is_memorised() -> None:
    draws = [
        memorisation(normal(2 * i, 80, 1)[:, 0] ** 2, normal(2 * i + 1, 50, 1)[:, 0] ** 2).z
        for i in range(400)
    ]
    assert abs(np.mean(draws)) < 4 / np.sqrt(400)
    assert abs(np.std(draws) - 1.0) < 4 / np.sqrt(2 * 400)


def test_copies_of_training_images_are_counted_and_seen() -> None:
    train, held_out = normal(0, 300), normal(1, 100)
    samples = np.concatenate((normal(2, 60), train[:40] + 1e-6))
    near = [nearest(of, train, 1).distances[:, 0] for of in (samples, held_out)]
    found = memorisation(*near)
    assert found.copies >= 40
    assert found.nearer > 0.6
    assert found.z > 3
    fresh = memorisation(nearest(normal(3, 100), train, 1).distances[:, 0], near[1])
    assert abs(fresh.z) < 4
