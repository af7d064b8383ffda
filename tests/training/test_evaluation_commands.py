"""`fokker evaluate` and `fokker features`, on a small array and an exact model of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from model import checkpoint as checkpoints
from model.analytic import GaussianMixture
from model.checkpoint import Description
from model.data import DataSpec
from model.process import VPLinear
from model.quantiles import held_out_quantiles
from tests.laws.mixture import draw, mixture
from training import data
from training.cli import register
from training.config import DataSection
from training.evaluation import classifier

SPEC = DataSpec(shape=(1, 4, 4), levels=256, low=-4.0, high=4.0, class_names=("near", "far"))
QUICK = ("--probes", "2", "--images", "8", "--samples", "40", "--sample-steps", "5")


@pytest.fixture(scope="module")
def network() -> GaussianMixture:
    return mixture(components=2, shape=SPEC.shape)


def save_array(path: Path, network: GaussianMixture, count: int, seed: int) -> Path:
    levels = SPEC.to_levels(draw(network, count, seed)).round().numpy().astype(np.uint8)
    names = np.array(SPEC.class_names)
    np.savez(path, images=levels[:, 0], labels=np.arange(count) % 2, class_names=names)
    return path


@pytest.fixture
def folder(tmp_path: Path, network: GaussianMixture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An array, and a checkpoint that says that it was trained on it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = {"path": str(save_array(tmp_path / "dots.npz", network, 150, 0))}
    dataset = data.read(DataSection.model_validate(section))
    description = Description(
        architecture=network.config,
        process=VPLinear(t_min=1e-3),
        data=SPEC,
        training={"data_fingerprint": dataset.fingerprint, "config": {"data": section}},
    )
    path = tmp_path / "dots.safetensors"
    checkpoints.save(path, description, network.state_dict())
    return tmp_path


def command(*arguments: Any) -> Any:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_figures_are_printed_and_written_as_json_and_as_a_report(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    done = command("evaluate", folder / "dots.safetensors", "--out", folder / "out", *QUICK)
    assert done.exit_code == 0, done.output
    assert "bits/dim" in done.stdout
    document = json.loads((folder / "out" / "dots.evaluation.json").read_text())
    assert document["checkpoint"] == "dots"
    assert document["data"]["trained_on"] is True
    assert document["bits_per_dim"]["images"] == 8
    page = (folder / "out" / "dots.html").read_text()
    assert "<h2>Training loss</h2>" in page
    assert document["digest"] in page


def test_store_puts_the_quantiles_into_the_checkpoint(folder: Path) -> None:
    path = folder / "dots.safetensors"
    before = checkpoints.digest(path)
    done = command("evaluate", path, "--store", *QUICK[:-4], "--samples", "0")
    assert done.exit_code == 0, done.output
    after = checkpoints.load(path)
    assert after.digest != before
    assert f"is now {after.digest}" in done.stdout
    assert held_out_quantiles(after.description.training, "bits_per_dim") is not None
    assert json.loads((folder / "dots.evaluation.json").read_text())["digest"] == after.digest


@pytest.mark.parametrize(
    ("option", "reason"),
    [("--held-out", "leave --held-out out"), ("--data", "may have been trained on")],
)
def test_nothing_is_stored_of_other_images_than_those_held_out(
    folder: Path, network: GaussianMixture, option: str, reason: str
) -> None:
    path, other = folder / "dots.safetensors", save_array(folder / "other.npz", network, 150, 1)
    before = path.read_bytes()
    refused = command("evaluate", path, option, other, "--store", *QUICK)
    assert refused.exit_code == 1
    assert reason in refused.stderr
    assert path.read_bytes() == before


def test_other_data_can_stand_in_for_what_was_held_out(
    folder: Path, network: GaussianMixture
) -> None:
    other = save_array(folder / "other.npz", network, 30, 1)
    path = folder / "dots.safetensors"
    arguments = ("--held-out", other, "--probes", "2", "--samples", "0")
    done = command("evaluate", path, *arguments)
    assert done.exit_code == 0, done.output
    document = json.loads((folder / "dots.evaluation.json").read_text())
    assert document["data"]["held_out_images"] == document["bits_per_dim"]["images"] == 30


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("absent.safetensors",), "absent"),
        (("dots.safetensors", "--features", "pixel"), "there are 'pixels'"),
        (("dots.safetensors", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    folder: Path, arguments: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    refused = command("evaluate", *arguments)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("fokker evaluate: ")
    assert reason in refused.stderr


def test_a_classifier_is_trained_from_a_run_s_configuration_and_compares_by_its_features(
    folder: Path,
) -> None:
    (folder / "run.toml").write_text(f'[data]\npath = "{folder / "dots.npz"}"\n')
    out = folder / "classifiers" / "dots.safetensors"
    done = command("features", folder / "run.toml", "--out", out, "--epochs", "3")
    assert done.exit_code == 0, done.output
    assert "held-out images are given their class" in done.stdout
    assert classifier.load(out).config.classes == 2
    measured = command("evaluate", folder / "dots.safetensors", "--features", out, *QUICK)
    assert measured.exit_code == 0, measured.output
    document = json.loads((folder / "dots.evaluation.json").read_text())
    assert document["samples"]["features"] == "dots"
    assert document["samples"]["dimensions"] == 64


def test_a_checkpoint_that_does_not_know_its_data_asks_for_them(
    folder: Path, network: GaussianMixture
) -> None:
    description = Description(architecture=network.config, process=VPLinear(), data=SPEC)
    checkpoints.save(folder / "bare.safetensors", description, network.state_dict())
    refused = command("evaluate", folder / "bare.safetensors")
    assert refused.exit_code == 1
    assert "give --data" in refused.stderr
