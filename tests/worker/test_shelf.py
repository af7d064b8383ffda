from pathlib import Path

import pytest
import torch

from model.checkpoint import CheckpointError
from worker.shelf import SHIPPED, Shelf

CPU = torch.device("cpu")


def test_a_broken_checkpoint_is_left_out_and_the_others_are_served(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.safetensors").write_bytes((models / "mixture.safetensors").read_bytes())
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    shelf = Shelf(tmp_path, CPU)
    assert [card["name"] for card in shelf.cards] == ["good"]
    assert "broken.safetensors" in caplog.text


def test_a_folder_with_nothing_to_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be served"):
        Shelf(tmp_path, CPU)


def test_the_shipped_model_s_card_has_all_that_a_request_is_checked_against() -> None:
    card = next(card for card in Shelf(SHIPPED, CPU).cards if card["name"] == "digits")
    assert card["shape"] == (1, 8, 8)
    assert card["levels"] == 17
    assert len(card["class_names"]) == 10
    assert card["digest"].startswith("sha256:")
    assert card["process"]["t_min"] == 1e-3
