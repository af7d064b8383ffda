"""The real thing: a worker process and an API process over a real Redis, on the shipped model."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import redis
import torch

from model.checkpoint import Checkpoint
from model.denoiser import Denoiser
from service.redis_server import free_port
from tests.e2e.running import Part, Service, wait_until
from training.config import Config
from training.data import Dataset, digits
from worker.knee import Curve, Curves, circumstances
from worker.shelf import SHIPPED, Shelf

ROOT = Path(__file__).parents[2]
CURVE = Curve((1, 16, 32, 64, 256), (0.0025, 0.007, 0.010, 0.017, 0.063), gradient_seconds=0.06)
"""The shipped model's, about, on two cores."""


@pytest.fixture(scope="session")
def data() -> Dataset:
    """The digits, split as the shipped model's training split them."""
    return digits(Config.read(ROOT / "training/configs/digits.toml").data.held_out)


class Known(Curves):
    """Takes every model's curve for known, and keeps it where a worker looks."""

    def of(self, checkpoint: Checkpoint, denoiser: Denoiser, idle: Callable[[], bool]) -> Curve:
        self.keep(circumstances(checkpoint, denoiser), CURVE)
        return CURVE


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that has the shipped models' curves."""
    folder = tmp_path_factory.mktemp("cache")
    assert Shelf(SHIPPED, torch.device("cpu"), curves=Known(folder)).models
    return folder


@pytest.fixture(autouse=True)
def known_curve(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own workers need not measure it, which takes the first job six seconds."""
    monkeypatch.setenv("FOKKER_CACHE", str(measured))


def empty_database(server: str, number: int) -> str:
    """URL of a database of our own, emptied; the other tests empty database 0."""
    url = urlsplit(server)._replace(path=f"/{number}").geturl()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def start_api(stack: ExitStack, redis_url: str, folder: Path, **environment: str) -> Service:
    """An API process, stopped with the stack."""
    port = free_port()
    arguments = ("serve", "--port", str(port))
    api = Part(folder, *arguments, FOKKER_REDIS_URL=redis_url, **environment)
    stack.callback(api.stop)
    base_url = f"http://127.0.0.1:{port}"
    client = stack.enter_context(httpx.Client(base_url=base_url, timeout=30, trust_env=False))
    service = Service(redis_url, folder, api, client)
    wait_until(lambda: api.alive() and service.ready() is not None, "the API to answer")
    return service


@pytest.fixture(scope="session")
def service(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API and one worker of two processes, shared by all tests that leave both as they are.

    The worker's folder has the shipped models, and a file that is no checkpoint. It measures them
    itself.
    """
    models = tmp_path_factory.mktemp("models")
    for shipped in (ROOT / "model/zoo").glob("*.safetensors"):
        shutil.copy(shipped, models)
    (models / "broken.safetensors").write_bytes(b"no checkpoint")
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("service")
        service = start_api(stack, empty_database(redis_server, 1), folder)
        stack.callback(
            service.start_worker(
                FOKKER_MODELS=str(models),
                FOKKER_CACHE=str(folder / "cache"),
                FOKKER_WORKER_PROCESSES="2",
            ).stop
        )
        yield service


@pytest.fixture
def own_service(redis_server: str, tmp_path: Path) -> Iterator[tuple[Service, Callable[..., Part]]]:
    """An API whose workers the test starts, of one process, with leases of four seconds."""
    with ExitStack() as stack:
        service = start_api(stack, empty_database(redis_server, 2), tmp_path, FOKKER_LEASE="4")

        def start_worker(**environment: str) -> Part:
            alone = {"FOKKER_LEASE": "4", "FOKKER_WORKER_PROCESSES": "1"}
            worker = service.start_worker(**alone | environment)
            stack.callback(worker.stop)
            return worker

        yield service, start_worker
