"""The shipped checkpoint keeps what its card says."""

from pathlib import Path

import pytest
import torch

import model
from model import checkpoint as checkpoints
from model.pf_ode import Adaptive, FixedGrid, decode, encode
from model.quantiles import held_out_quantiles
from model.query import Condition, run
from service.jobs.parameters import LoglikParameters
from training.data import digits
from training.evaluation import class_accuracy, held_out_bits_per_dim, samples

ZOO = Path(model.__file__).parent / "zoo"


@pytest.fixture(scope="module")
def shipped() -> checkpoints.Checkpoint:
    return checkpoints.load(ZOO / "digits.safetensors")


def test_the_shipped_checkpoint_is_small_and_has_its_card(shipped: checkpoints.Checkpoint) -> None:
    assert (ZOO / "digits.safetensors").stat().st_size <= 5_000_000
    card = (ZOO / "digits.md").read_text()
    assert shipped.digest in card
    assert (ZOO / "digits.png").exists()


def test_the_shipped_checkpoint_was_trained_on_these_digits(
    shipped: checkpoints.Checkpoint,
) -> None:
    training = shipped.description.training
    dataset = digits(training["config"]["data"]["held_out"])
    assert training["data_fingerprint"] == dataset.fingerprint
    assert training["held_out_images"] == len(dataset.held_out)


def test_the_shipped_checkpoint_knows_its_held_out_quantiles_by_a_request_s_defaults(
    shipped: checkpoints.Checkpoint,
) -> None:
    training = shipped.description.training
    known = held_out_quantiles(training, "bits_per_dim")
    assert known is not None
    entry = training["quantiles"]["bits_per_dim"]
    assert entry["images"] == training["held_out_images"]
    assert known.percentile(entry["mean"]) == pytest.approx(50, abs=15)
    keys = ("method", "solver", "divergence", "dequantization")
    request = {key: entry[key] for key in keys}
    assert LoglikParameters(model="digits", **request) == LoglikParameters(model="digits")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("conditional", [False, True])
def test_held_out_digits_cost_fewer_than_two_bits_a_dimension(
    shipped: checkpoints.Checkpoint, conditional: bool
) -> None:
    held_out = digits(shipped.description.training["config"]["data"]["held_out"]).held_out
    bits = held_out_bits_per_dim(
        shipped, held_out, conditional=conditional, solver=Adaptive(tolerance=1e-3), probes=8
    )
    print(f"held-out bits/dim ({conditional=}): {bits.mean:.4f} ± {bits.standard_error:.4f}")
    assert bits.converged
    assert bits.mean + 4 * bits.standard_error < 2.0


def test_samples_show_the_class_they_were_asked_for(shipped: checkpoints.Checkpoint) -> None:
    labels = torch.arange(10).repeat(4)
    x = samples(shipped, labels, steps=100)
    levels = shipped.description.data.to_levels(x)
    assert class_accuracy(levels, labels, digits(0.15).train) >= 0.85  # 90 % of 200 is e2e's


def test_the_reversible_pair_closes_the_round_trip_on_the_shipped_network(
    shipped: checkpoints.Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    process, denoiser = shipped.description.process, shipped.denoiser()
    x = shipped.description.data.to_model(digits(0.15).held_out.levels[:16])
    solver, condition = FixedGrid(name="reversible", steps=20), Condition.same(16)
    there = run(encode(process, x, condition, solver), denoiser)
    back = run(decode(process, there.end, condition, solver, there.companion), denoiser)
    tight = run(encode(process, x, condition, Adaptive(tolerance=1e-5)), denoiser)
    error = float((back.end - x).abs().max())
    distance = float((there.end - tight.end).square().mean().sqrt())
    with capsys.disabled():
        print(f"\n  reversible, 20 steps: round trip {error:.1e}, latents {distance:.3f} RMS off")
    assert error < 1e-6
    assert distance < 0.05
