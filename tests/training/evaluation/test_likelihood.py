"""Bits/dim of held-out images, against an exact model; and what a checkpoint keeps of them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import checkpoint as checkpoints
from model.analytic import GaussianMixture
from model.checkpoint import Checkpoint
from model.likelihood import dequantize
from model.noise import image_seeds
from model.quantiles import held_out_quantiles
from service.jobs.parameters import LoglikParameters
from training.data import Dataset
from training.evaluation.likelihood import (
    Likelihoods,
    LikelihoodSettings,
    likelihoods,
    quantiles_entry,
    store_quantiles,
)

IMAGES = 48
SETTINGS = LikelihoodSettings(
    tolerance=1e-3, probes=16
)  # errors of which the spread is known to a tenth


@pytest.fixture(scope="module")
def found(checkpoint: Checkpoint, dataset: Dataset) -> Likelihoods:
    split = dataset.held_out
    return likelihoods(checkpoint, split.levels[:IMAGES], split.labels[:IMAGES], SETTINGS)


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint, network: GaussianMixture, dataset: Dataset) -> torch.Tensor:
    """Bits/dim of the very points that were integrated from."""
    spec, process = checkpoint.description.data, checkpoint.description.process
    levels = dataset.held_out.levels[:IMAGES]
    x = spec.to_model(levels, dequantize(levels, torch.tensor(image_seeds(0, IMAGES))))
    return spec.bits_per_dim(network.log_prob(process, x, process.t_min))


def test_each_image_s_bits_are_off_by_as_much_as_its_errors_say(
    found: Likelihoods, exact: torch.Tensor
) -> None:
    off, said = found.bits_per_dim - exact, found.probe_error
    assert float(off.square().mean()) == pytest.approx(float(said.square().mean()), rel=0.5)
    assert float(found.discretization_error.max()) < 0.02


def test_the_mean_comes_with_the_errors_of_images_and_of_probes(
    found: Likelihoods, exact: torch.Tensor
) -> None:
    summary = found.summary()
    assert (summary.images, summary.unfinished, summary.converged) == (IMAGES, 0, True)
    off = abs(summary.mean - float(exact.mean()))
    assert off < 4 * summary.probe_error + summary.discretization_error
    spread = math.sqrt(float(exact.var()) / IMAGES + summary.probe_error**2)
    assert summary.standard_error == pytest.approx(spread, rel=0.15)
    assert 0 < summary.probe_error < summary.standard_error


def test_given_the_class_the_images_cost_less(
    checkpoint: Checkpoint, dataset: Dataset, found: Likelihoods
) -> None:
    split, settings = dataset.held_out, dataclasses.replace(SETTINGS, conditional=True)
    given = likelihoods(checkpoint, split.levels[:IMAGES], split.labels[:IMAGES], settings)
    saved = float((found.bits_per_dim - given.bits_per_dim).mean())
    assert saved == pytest.approx(1 / 16, abs=0.02)  # one bit of two classes, over 16 dimensions


def unfinished(checkpoint: Checkpoint, dataset: Dataset) -> tuple[Likelihoods, LikelihoodSettings]:
    settings = LikelihoodSettings(tolerance=1e-6, max_calls=9)
    split = dataset.held_out
    return likelihoods(checkpoint, split.levels[:4], split.labels[:4], settings), settings


def test_integrals_that_were_not_finished_count_as_such_and_give_no_quantiles(
    checkpoint: Checkpoint, dataset: Dataset
) -> None:
    few, settings = unfinished(checkpoint, dataset)
    assert few.summary().unfinished == 4
    assert math.isnan(few.summary().mean)
    with pytest.raises(ValueError, match="4 of 4 integrals were not finished in 9 network calls"):
        quantiles_entry(checkpoint, few, settings)


def test_the_entry_is_the_distribution_of_the_images(
    checkpoint: Checkpoint, found: Likelihoods
) -> None:
    entry = quantiles_entry(checkpoint, found, LikelihoodSettings())
    read = held_out_quantiles({"quantiles": json.loads(json.dumps(entry))}, "bits_per_dim")
    assert read is not None
    values = np.sort(found.finished)
    for rank in (0, 20, 40, IMAGES - 1):
        share = 100 * rank / (len(values) - 1)  # as numpy places them
        assert read.percentile(float(values[rank])) == pytest.approx(share, abs=0.5)


def test_the_settings_are_those_that_a_request_has_by_default(
    checkpoint: Checkpoint, found: Likelihoods
) -> None:
    """A percentile compares what is alike."""
    entry = quantiles_entry(checkpoint, found, LikelihoodSettings())["bits_per_dim"]
    request: dict[str, Any] = {
        key: entry[key] for key in ("method", "solver", "divergence", "dequantization")
    }
    assert LoglikParameters(model="digits", **request) == LoglikParameters(model="digits")
    assert entry["given_class"] is False


def test_storing_changes_metadata_alone_and_the_card_names_the_new_digest(
    tmp_path: Path, checkpoint: Checkpoint, found: Likelihoods
) -> None:
    path = tmp_path / "mixture.safetensors"
    checkpoints.save(path, checkpoint.description, checkpoint.network.state_dict())
    before, size = checkpoints.load(path), path.read_bytes()
    (tmp_path / "mixture.md").write_text(f"checkpoint {before.digest}")
    entry = quantiles_entry(before, found, LikelihoodSettings())
    after = store_quantiles(path, entry)
    assert after.digest == checkpoints.digest(path) != before.digest
    assert (tmp_path / "mixture.md").read_text() == f"checkpoint {after.digest}"
    first, second = before.network.state_dict(), after.network.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    document = after.description.to_json()
    assert document["training"].pop("quantiles") == entry
    assert document == before.description.to_json()
    tensors = checkpoint.network.means.numel() * 8  # type: ignore[union-attr,operator]
    assert path.read_bytes()[-tensors:] == size[-tensors:]
