import pytest
import torch

from model.checkpoint import Checkpoint
from model.noise import image_seeds
from training.evaluation.frechet import Features
from training.evaluation.sampling import (
    denoising,
    draw,
    labels_like,
    linear_classifier,
    samples,
)


def test_labels_are_drawn_independently_from_the_given_ones() -> None:
    labels = torch.tensor([0] * 30 + [2] * 60 + [1] * 10)
    share, n = torch.tensor([0.3, 0.1, 0.6]), 200
    counts = torch.stack([torch.bincount(labels_like(labels, n, seed)) for seed in range(200)])
    spread = (n * share * (1 - share)).sqrt()
    assert bool(((counts.double().mean(0) - n * share).abs() < 4 * spread / 200**0.5).all())
    assert torch.allclose(counts.double().std(0), spread.double(), rtol=0.2)
    assert torch.equal(labels_like(labels, 50, 3), labels_like(labels, 50, 3))


def test_samples_of_a_seed_are_those_of_its_images_seeds(checkpoint: Checkpoint) -> None:
    labels = torch.tensor([0, 1, 0, 1])
    whole = samples(checkpoint, labels, seed=3, steps=5)
    some = draw(checkpoint, labels[1:3], torch.tensor(image_seeds(3, 4))[1:3], steps=5)
    assert torch.allclose(whole[1:3], some, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("pictures", "steps", "shown"), [(5, 20, 5), (10, 4, 5), (1, 4, 1)])
def test_a_strip_ends_with_the_sample_that_it_leads_to(
    checkpoint: Checkpoint, pictures: int, steps: int, shown: int
) -> None:
    labels, seeds = torch.tensor([0, 1]), torch.tensor([11, 12])
    strip = denoising(checkpoint, labels, seeds, pictures=pictures, steps=steps)
    assert strip.shape == (2, shown, 1, 4, 4)
    assert torch.equal(strip[:, -1], draw(checkpoint, labels, seeds, steps=steps))


def test_a_strip_comes_nearer_to_its_sample(checkpoint: Checkpoint) -> None:
    strip = denoising(checkpoint, torch.tensor([0, 1] * 8), torch.arange(16), steps=100)
    away = (strip - strip[:, -1:]).flatten(2).norm(dim=2).mean(0).tolist()
    assert away[0] > 2 * away[-2]


def test_a_linear_classifier_tells_apart_what_can_be_told() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    of: Features = (torch.randn(100, 3, generator=generator) + 20.0 * labels[:, None]).numpy()
    score = linear_classifier(of, labels)
    assert score(of, labels) == 1.0
    assert score(of, 1 - labels) == 0.0
