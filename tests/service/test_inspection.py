"""`fokker inspect`: what a checkpoint says of itself, without torch."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

import model
from model import checkpoint as checkpoints
from service.commands import register
from service.inspection import InspectionError, inspect

SHIPPED = Path(model.__file__).parent / "zoo" / "digits.safetensors"


def written(path: Path, document: Any = None) -> Path:
    metadata = None if document is None else {"fokker": json.dumps(document)}
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4)}, path, metadata=metadata)
    return path


def test_the_shipped_checkpoint_is_read_as_the_loader_reads_it() -> None:
    found, loaded = inspect(SHIPPED), checkpoints.load(SHIPPED)
    assert found.digest == loaded.digest
    assert found.parameters == loaded.parameters
    assert found.tensors == len(loaded.network.state_dict())
    assert found.document == json.loads(json.dumps(loaded.description.to_json()))


def test_weights_are_counted_by_shape_and_type(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"format": 1})
    found = inspect(path)
    assert (found.tensors, found.parameters, found.bytes) == (2, 10, 6 * 4 + 4 * 8)
    assert found.dtypes == ("F32", "F64")
    assert found.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda whole: b"", "cut off"),
        (lambda whole: whole[:7], "cut off"),
        (lambda whole: b"\xff" * 8 + whole, "no safetensors file"),
        (lambda whole: (2**40).to_bytes(8, "little") + whole[8:], "no safetensors file"),
        (lambda whole: whole[:8] + b"?" + whole[9:], "its header is not JSON"),
        (lambda whole: (2).to_bytes(8, "little") + b"[]", "its header is no object"),
        (lambda whole: whole[:-1], "was cut off, or something was added"),
        (lambda whole: whole + b"0", "was cut off, or something was added"),
        (lambda whole: whole.replace(b"data_offsets", b"data_offsits"), "no 'data_offsets'"),
    ],
)
def test_a_file_that_is_none_is_named_with_the_reason(
    tmp_path: Path, damage: Any, reason: str
) -> None:
    path = written(tmp_path / "a.safetensors", {"format": 1})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InspectionError, match=reason) as refused:
        inspect(path)
    assert str(path) in str(refused.value)


def test_weights_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InspectionError, match="no 'fokker' entry"):
        inspect(written(tmp_path / "a.safetensors"))
    with pytest.raises(InspectionError, match=r"cannot read .*absent"):
        inspect(tmp_path / "absent")


def run(*arguments: str) -> Any:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, ["inspect", *arguments])


def test_the_command_prints_lines_for_readers_and_json_for_programs() -> None:
    lines = run(str(SHIPPED))
    assert lines.exit_code == 0
    assert "1,187,969 in" in lines.stdout
    assert "vp_linear" in lines.stdout
    whole = json.loads(run(str(SHIPPED), "--json").stdout)
    assert whole["digest"] == inspect(SHIPPED).digest
    assert math.prod(whole["data"]["shape"]) == 64


def test_quantiles_are_summed_up_in_a_line(tmp_path: Path) -> None:
    levels = [i / 100 for i in range(101)]
    entry = {"levels": levels, "values": [1 + level for level in levels], "images": 270}
    document = {"format": 1, "training": {"quantiles": {"bits_per_dim": entry}}}
    found = run(str(written(tmp_path / "a.safetensors", document)))
    assert "median 1.500, 5 % to 95 % 1.050 to 1.950, of 270 images" in found.stdout
    bare = run(str(written(tmp_path / "b.safetensors", {"format": 1})))
    assert "none stored" in bare.stdout


def test_a_refusal_ends_with_code_1_and_one_line(tmp_path: Path) -> None:
    found = run(str(tmp_path / "absent"))
    assert found.exit_code == 1
    assert found.stderr.startswith("fokker inspect: cannot read")


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['safetensors'] = None\n"
        "from service.cli import build_app\n"
        f"build_app()(['inspect', {str(SHIPPED)!r}], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "1,187,969" in done.stdout
