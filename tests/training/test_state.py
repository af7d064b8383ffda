import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from training import state
from training.state import State, StateError


def some(step: int, elements: int = 4) -> State:
    return State(
        step=step,
        tensors={"weights.a": torch.full((elements,), float(step))},
        document={"x": [1.5]},
    )


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = state.save(tmp_path, some(3), keep=2)
    found = state.load(path)
    assert found.step == 3
    assert torch.equal(found.tensors["weights.a"], torch.full((4,), 3.0))
    assert found.document["x"] == [1.5]


def test_the_last_states_stay(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4000):
        state.save(tmp_path, some(step), keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000030.safetensors",
        "step-00004000.safetensors",
    ]
    assert state.latest(tmp_path) == tmp_path / "step-00004000.safetensors"


def test_a_folder_without_states_has_no_latest(tmp_path: Path) -> None:
    (tmp_path / "step-00000007.partial").touch()
    assert state.latest(tmp_path) is None
    assert state.latest(tmp_path / "absent") is None


def test_the_header_is_json(tmp_path: Path) -> None:
    path = state.save(tmp_path, some(3), keep=1)
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["fokker_state"])["step"] == 3


@pytest.mark.parametrize("content", [b"", b"no state", b"\x80\x04pickle"])
def test_a_file_that_is_no_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "step-00000001.safetensors").write_bytes(content)
    with pytest.raises(StateError, match=r"step-00000001\.safetensors is no state of a run: .*rem"):
        state.load(tmp_path / "step-00000001.safetensors")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weights.b": torch.zeros(4)}, r"missing 'weights\.a', not expected 'weights\.b'"),
        ({"weights.a": torch.zeros(5)}, r"'weights\.a' has shape \(5,\)"),
        ({"weights.a": torch.full((4,), torch.nan)}, "not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_the_tensor(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    found = State(step=1, tensors=tensors, document={})
    with pytest.raises(StateError, match=message):
        state.require_fit(tmp_path, found, some(1).tensors)


def test_a_full_disk_leaves_the_state_before_it(small_disk: Path) -> None:
    state.save(small_disk, some(1, 1000), keep=2)
    with pytest.raises(
        StateError, match=r"state of step 2 \(0\.2 MiB\) cannot be written .* --resume from step-0"
    ):
        state.save(small_disk, some(2, 50_000), keep=2)
    assert [path.name for path in small_disk.iterdir()] == ["step-00000001.safetensors"]
    assert state.load(small_disk / "step-00000001.safetensors").step == 1
