"""`fokker publish`: what workers serve appears whole, and what it replaces stays for its jobs."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from model import checkpoint as checkpoints
from model.checkpoint import Description, replaced_path
from model.data import DataSpec
from model.process import VPLinear
from tests.laws.mixture import mixture
from training.cli import register
from training.publish import PublishError, find, publish

SHAPE = (1, 2, 2)


def run_of(folder: Path, variance: float, name: str = "trained") -> Path:
    """A run's folder with a checkpoint, its card and its samples."""
    folder.mkdir(parents=True)
    network = mixture(components=3, shape=SHAPE, variance=variance)
    spec = DataSpec(shape=SHAPE, levels=256, class_names=("a", "b", "c"))
    description = Description(architecture=network.config, process=VPLinear(), data=spec)
    checkpoints.save(folder / f"{name}.safetensors", description, network.state_dict())
    (folder / f"{name}.md").write_text(f"# {name}\n\n![samples]({name}.png)\n")
    (folder / f"{name}.png").write_bytes(b"samples")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return run_of(tmp_path / "first", 0.1)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return run_of(tmp_path / "second", 0.2)


def test_checkpoint_card_and_samples_appear_under_the_name(first: Path, models: Path) -> None:
    done = publish(first, "faces", models)
    assert sorted(path.name for path in models.iterdir()) == [
        "faces.md",
        "faces.png",
        "faces.safetensors",
    ]
    assert done.path.read_bytes() == (first / "trained.safetensors").read_bytes()
    assert done.digest == checkpoints.load(done.path).digest
    assert checkpoints.load(done.path).description.data.class_names == ("a", "b", "c")
    assert (models / "faces.md").read_text() == "# faces\n\n![samples](faces.png)\n"
    assert done.path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_said_and_leaves_no_half_of_a_file(first: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(63 << 10))
    checkpoint = first / "trained.safetensors"
    checkpoint.with_suffix(".png").write_bytes(bytes(64 << 10))
    with pytest.raises(PublishError, match="cannot be written: No space left"):
        publish(first, "faces", small_disk)
    assert [path.name for path in small_disk.iterdir() if path.suffix == ".partial"] == []


def test_another_checkpoint_of_the_name_is_replaced_only_by_force(
    first: Path, second: Path, models: Path
) -> None:
    old = publish(first, "faces", models)
    with pytest.raises(PublishError, match="--force replaces it"):
        publish(second, "faces", models)
    assert checkpoints.load(old.path).digest == old.digest
    new = publish(second, "faces", models, force=True)
    assert new.replaced == old.digest
    assert checkpoints.load(new.path).digest == new.digest != old.digest


def test_publishing_the_same_again_changes_nothing(first: Path, models: Path) -> None:
    old = publish(first, "faces", models)
    again = publish(first, "faces", models)
    assert (again.digest, again.replaced, again.kept) == (old.digest, None, None)
    assert not (models / "replaced").exists()


@pytest.mark.parametrize("links", [True, False])
def test_the_version_before_is_kept_under_its_digest(
    first: Path, second: Path, models: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    old = publish(first, "faces", models)
    new = publish(second, "faces", models, force=True)
    assert new.kept == replaced_path(old.path, old.digest)
    assert checkpoints.load(new.kept).digest == old.digest


def test_at_every_moment_a_whole_version_is_in_place_and_the_one_before_is_to_be_had(
    tmp_path: Path, models: Path
) -> None:
    runs = [run_of(tmp_path / f"run{i}", 0.1 + 0.01 * i) for i in range(20)]
    whole = {checkpoints.digest(run / "trained.safetensors") for run in runs}
    target = publish(runs[0], "faces", models).path
    wrong: list[str] = []
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            digest = checkpoints.digest(target)
            seen.add(digest)
            still = checkpoints.digest(target) == digest
            if digest not in whole or not (still or replaced_path(target, digest).exists()):
                wrong.append(digest)

    reader = threading.Thread(target=look)
    reader.start()
    for run in runs[1:]:
        publish(run, "faces", models, force=True)
    ended.set()
    reader.join()
    assert wrong == []
    assert len(seen) > 1


def test_a_version_in_place_again_is_no_longer_among_the_replaced(
    first: Path, second: Path, models: Path
) -> None:
    publish(first, "faces", models)
    kept = publish(second, "faces", models, force=True).kept
    back = publish(first, "faces", models, force=True)
    assert back.dropped == (kept,)
    found = sorted((models / "replaced").glob("*/*"))
    assert found == [replaced_path(back.path, checkpoints.digest(second / "trained.safetensors"))]


def test_versions_replaced_long_ago_are_removed_and_those_of_other_names_are_not(
    tmp_path: Path, first: Path, second: Path, models: Path
) -> None:
    for name in ("faces", "houses"):
        publish(first, name, models)
    kept = publish(second, "faces", models, force=True).kept
    others = publish(second, "houses", models, force=True).kept
    assert kept is not None
    assert others is not None
    third = run_of(tmp_path / "third", 0.3)
    assert publish(third, "faces", models, force=True).dropped == ()
    fourth = run_of(tmp_path / "fourth", 0.4)
    dropped = publish(fourth, "faces", models, force=True, kept_days=0.0).dropped
    assert kept in dropped
    assert not kept.exists()
    assert others.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(first: Path, models: Path, name: str) -> None:
    with pytest.raises(PublishError, match="no name for a model"):
        publish(first, name, models)
    assert not models.exists()


def test_a_checkpoint_that_could_not_be_served_is_refused(first: Path, models: Path) -> None:
    path = first / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PublishError, match=r"trained\.safetensors"):
        publish(first, "faces", models)
    assert not models.exists()


def test_a_run_without_one_checkpoint_says_what_to_name(tmp_path: Path, first: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PublishError, match="has `fokker train` finished"):
        find(tmp_path / "empty")
    (first / "other.safetensors").write_bytes(b"")
    with pytest.raises(PublishError, match=r"\(other\.safetensors, trained\.safetensors\)"):
        find(first)
    assert find(first / "other.safetensors") == first / "other.safetensors"


def test_a_card_of_the_version_before_does_not_stay(
    first: Path, second: Path, models: Path
) -> None:
    publish(first, "faces", models)
    (second / "trained.md").unlink()
    publish(second, "faces", models, force=True)
    assert not (models / "faces.md").exists()


def test_the_command_says_what_it_did_and_refuses_with_code_1(
    first: Path, second: Path, models: Path
) -> None:
    app = typer.Typer()
    register(app)

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["publish", *arguments, "--models", str(models)])

    done = command(str(first), "faces")
    assert done.exit_code == 0
    assert "faces.safetensors: sha256:" in done.stdout
    refused = command(str(second), "faces")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert "is kept in" in command(str(second), "faces", "--force").stdout


def test_weights_are_published_to_the_bit(first: Path, models: Path) -> None:
    before = checkpoints.load(first / "trained.safetensors").network.state_dict()
    after = checkpoints.load(publish(first, "faces", models).path).network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
