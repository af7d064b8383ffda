import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.network import inputs
from model import checkpoint as checkpoints
from model.checkpoint import CheckpointError, Description, build_network
from model.cores import exactly
from model.data import DataSpec
from model.process import PROCESSES, VPLinear
from model.unet import UNetConfig
from tests.laws.mixture import draw, mixture
from tests.laws.processes import make
from tests.model.networks import Recorder

UNET = UNetConfig(in_channels=1, channels=(16, 16), blocks=1, classes=2, head_channels=16)
DATA = DataSpec(shape=(1, 8, 8), levels=17, class_names=("a", "b"))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    description = Description(
        architecture=UNET, process=VPLinear(t_min=1e-3), data=DATA, training={"steps": 3}
    )
    path = tmp_path / "small.safetensors"
    checkpoints.save(path, description, build_network(UNET).state_dict())
    return path


def rewritten(path: Path, **changes: object) -> Path:
    """The same weights under a changed document; None removes a part."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    document = json.loads(header["__metadata__"]["fokker"]) | changes
    save_file(load_file(path), path, metadata={"fokker": json.dumps(document)})
    return path


def test_what_was_saved_is_what_is_loaded(saved: Path) -> None:
    loaded = checkpoints.load(saved)
    assert loaded.description.architecture == UNET
    assert loaded.description.process == VPLinear(t_min=1e-3)
    assert loaded.description.data == DATA
    assert loaded.description.training == {"steps": 3}
    weights = load_file(saved)
    assert all(torch.equal(weights[k], v) for k, v in loaded.network.state_dict().items())


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_every_process_survives_a_checkpoint(name: str, tmp_path: Path) -> None:
    network = mixture(components=2, shape=(1, 2, 2))
    data = DataSpec(shape=(1, 2, 2), levels=256)
    description = Description(
        architecture=network.config, process=make(name, t_min=0.01), data=data
    )
    path = tmp_path / "mixture.safetensors"
    checkpoints.save(path, description, network.state_dict())
    assert checkpoints.load(path).description.process == make(name, t_min=0.01)


def test_the_analytic_model_loads_like_any_other(tmp_path: Path) -> None:
    network = mixture(components=3, shape=(1, 2, 2))
    description = Description(
        architecture=network.config, process=VPLinear(), data=DataSpec(shape=(1, 2, 2), levels=256)
    )
    path = tmp_path / "mixture.safetensors"
    checkpoints.save(path, description, network.state_dict())
    denoiser = checkpoints.load(path).denoiser()
    u, log_snr, label = draw(network, 2), torch.zeros(2, dtype=torch.float64), torch.tensor([-1, 1])
    assert torch.equal(denoiser.network(u, log_snr, label), network(u, log_snr, label))


def test_the_digest_follows_the_content(saved: Path) -> None:
    before = checkpoints.load(saved).digest
    assert checkpoints.load(saved).digest == before
    assert checkpoints.load(rewritten(saved, training={"steps": 4})).digest != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"process": {"name": "vp_linaer"}}, "vp_linaer.*vp_linear"),
        ({"process": {"name": "vp_linear", "beta": 3}}, r"process has unknown fields \['beta'\]"),
        ({"architecture": {"name": "resnet"}}, "unknown architecture 'resnet'"),
        ({"prediction": "noise"}, "unknown prediction 'noise'"),
        ({"data": None}, "data must be an object"),
        ({"data": {"shape": [1, 8], "levels": 17}}, "shape must be three"),
    ],
)
def test_a_wrong_document_is_refused_by_the_part_that_is_wrong(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(rewritten(saved, **changes))


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    weights = load_file(saved)
    document = {"fokker": json.dumps(checkpoints.load(saved).description.to_json())}
    head = weights.pop("head.weight")
    save_file(weights, saved, metadata=document)
    with pytest.raises(CheckpointError, match=r"missing 'head\.weight', not expected none"):
        checkpoints.load(saved)
    save_file(weights | {"head.weight": head[:, :4].contiguous()}, saved, metadata=document)
    with pytest.raises(CheckpointError, match=r"'head\.weight' has shape"):
        checkpoints.load(saved)
    save_file(weights | {"head.weight": head * float("nan")}, saved, metadata=document)
    with pytest.raises(CheckpointError, match=r"'head\.weight' has values that are not finite"):
        checkpoints.load(saved)


def test_of_many_wrong_names_the_first_are_told() -> None:
    wanted = {f"w{n}": torch.zeros(1) for n in range(9)}
    with pytest.raises(
        CheckpointError, match=r"missing 'w0', 'w1', 'w2', 'w3' and 5 more, not expected"
    ):
        checkpoints.check_weights(wanted, {})


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"PK\x03\x04not a checkpoint"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        checkpoints.load(path)


def test_someone_else_s_safetensors_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="no 'fokker' entry"):
        checkpoints.load(path)


@pytest.mark.parametrize(("compiled", "sizes"), [(False, [32]), (True, [16, 16])])
def test_cores_share_smaller_batches_where_they_run_compiled_code(
    saved: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool, sizes: list[int]
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(checkpoints, "prepare", lambda *_, **__: recorder)
    fast = checkpoints.load(saved).denoiser(compile=compiled).fast
    assert fast is not None
    with torch.no_grad(), exactly(2):
        fast(*inputs(UNET, 32, 8))
    assert recorder.sizes == sizes
