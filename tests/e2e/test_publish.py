"""`fokker publish` under a running service: new versions are offered, old ones still answer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model import checkpoint as checkpoints
from model.analytic import GaussianMixture, GaussianMixtureConfig
from model.checkpoint import Description
from model.data import DataSpec
from model.process import VPLinear
from tests.e2e.running import Part, Service, wait_until
from training.publish import publish

SPEC = DataSpec(shape=(1, 4, 4), levels=256)
DRAW = {"model": "dots", "seed": 1, "format": "npy", "sampler": {"name": "ddim", "steps": 5}}


def version(folder: Path, mean: float) -> Path:
    """A checkpoint whose every image is nearly this level of the model's space."""
    config = GaussianMixtureConfig(components=1, shape=SPEC.shape, variance=1e-4)
    network = GaussianMixture(config)
    network.means.fill_(mean)
    folder.mkdir()
    path = folder / "dots.safetensors"
    description = Description(architecture=config, process=VPLinear(t_min=1e-3), data=SPEC)
    checkpoints.save(path, description, network.state_dict())
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_new_version_is_offered_without_a_restart_and_the_old_one_answers_its_jobs(
    own_service: tuple[Service, Callable[..., Part]], tmp_path: Path
) -> None:
    service, start_worker = own_service
    models = tmp_path / "models"
    dark, bright = version(tmp_path / "dark", -0.5), version(tmp_path / "bright", 0.5)
    old = publish(dark, "dots", models)
    worker = start_worker(FOKKER_MODELS=str(models))

    def offered(name: str) -> str | None:
        cards = service.client.get("/models").json()["models"]
        return next((card["digest"] for card in cards if card["name"] == name), None)

    assert offered("dots") == old.digest
    publish(bright, "more", models)
    wait_until(lambda: offered("more") is not None, "the second model to be offered", limit=20)

    worker.stop()
    waiting = service.submit("/generate", DRAW)  # by the version that was offered last
    new = publish(bright, "dots", models, force=True)
    (models / "more.safetensors").unlink()  # the same checkpoint under another name
    start_worker(FOKKER_MODELS=str(models))  # which has never seen the old version in place
    ended = service.succeeded(waiting)
    assert service.array(ended, "images.npy").mean() == pytest.approx(63.5, abs=3)

    wait_until(lambda: offered("dots") == new.digest, "the new version to be offered", limit=20)
    ended = service.succeeded(service.submit("/generate", DRAW))
    assert service.array(ended, "images.npy").mean() == pytest.approx(191.5, abs=3)
