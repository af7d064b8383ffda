"""A request's result does not depend on load: the shipped network, alone and in a full mix."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis
import torch
from PIL import Image

from service.jobs.arrays import pack, unpack
from service.jobs.job import Status
from service.jobs.lease import Claim, WorkerStore
from service.settings import Settings
from tests.worker.conftest import Stopped, claiming
from training.data import digits
from worker.courier import Courier
from worker.engine import Engine
from worker.knee import Curve, Curves
from worker.shelf import SHIPPED, ServedModel, Shelf

LOOSE = {"name": "adaptive", "tolerance": 1e-2}
REVERSIBLE = {"name": "reversible", "steps": 5}
PROBED = {"kind": "hutchinson", "probes": 2}


@pytest.fixture(scope="module")
def zoo() -> Shelf:
    curve = Curve((1, 16, 64), (0.0025, 0.007, 0.012), gradient_seconds=0.06)
    return Shelf(SHIPPED, torch.device("cpu"), curves=Curves(measure=lambda *_: curve))


@pytest.fixture
def running(zoo: Shelf, client: redis.Redis, redis_url: str) -> Iterator[Stopped]:
    courier = Courier()
    courier.start()
    yield Stopped(Engine(zoo, courier), courier, client, redis_url)
    courier.stop(5)


@pytest.fixture
def ask(settings: Settings, store: WorkerStore, zoo: Shelf) -> Callable[..., Claim]:
    served: ServedModel = next(m for m in zoo.models.values() if m.name == "digits")
    return claiming(settings, store, served)


def images(count: int) -> bytes:
    return pack({"levels": digits(0.15).held_out.levels[:count].numpy()})


def requests(ask: Callable[..., Claim]) -> dict[str, Claim]:
    """One of each kind; the answers of the last four must be equal to the bit."""
    table: dict[str, Any] = {"format": "png", "seed": 5}
    return {
        "ddpm": ask("generate", count=2, sampler={"name": "ddpm", "steps": 20}, **table),
        "guided": ask(
            "generate",
            count=2,
            class_label=3,
            guidance=2.0,
            sampler={"name": "ddim", "steps": 10, "eta": 0.5},
            **table,
        ),
        "clipped": ask(
            "generate", count=1, sampler={"name": "ddpm", "steps": 15, "clip": True}, **table
        ),
        "decoded": ask(
            "generate",
            count=1,
            seed=5,
            sampler={"name": "pf_ode", "solver": LOOSE},
            format="npy",
        ),
        "encoded": ask("invert", images(2), solver=LOOSE),
        "reversible": ask("invert", images(1), solver=REVERSIBLE),
        "likelihood": ask("loglik", images(2), seed=0, solver=LOOSE, divergence=PROBED),
    }


def answers(running: Stopped, claims: dict[str, Claim]) -> dict[str, Any]:
    """Pixels, latents or likelihoods of each."""
    found: dict[str, Any] = {}
    for name, claim in claims.items():
        job = running.job(claim)
        assert job.status is Status.SUCCEEDED, job.error
        assert job.result is not None
        if name in ("encoded", "reversible"):
            found[name] = unpack(running.artifact(claim, "latents.safetensors"))[0]["latents"]
        elif name == "likelihood":
            found[name] = [
                (image["log_likelihood"], image["standard_error"]["probe"], image["nfe"])
                for image in job.result["images"]
            ]
        elif name == "decoded":
            found[name] = np.load(io.BytesIO(running.artifact(claim, "images.npy")))
        else:
            files = [running.artifact(claim, image["artifact"]) for image in job.result["images"]]
            found[name] = [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]
    return found


def test_a_result_is_the_same_alone_and_in_a_full_mixed_batch(
    running: Stopped, ask: Callable[..., Claim]
) -> None:
    claims = requests(ask)
    for claim in claims.values():
        running.run(claim)
    alone = answers(running, claims)

    claims = requests(ask)
    crowd = [
        ask("generate", count=40, seed=9, sampler={"name": "ddpm", "steps": 60}),
        ask("invert", images(9), solver=REVERSIBLE),
        ask("loglik", images(5), seed=4, solver=LOOSE, divergence=PROBED),
        ask("loglik", images(3), seed=4, method="elbo", bound={"draws": 16}),
    ]
    for claim in crowd:
        running.admit(claim)
    for _ in range(7):  # so that nobody starts in step
        running.engine.tick()
    running.run(*claims.values())
    crowded = answers(running, claims)

    for name in ("ddpm", "guided", "clipped"):
        for image, other in zip(alone[name], crowded[name], strict=True):
            assert np.abs(image - other).max() <= 1, name
    for name in ("decoded", "encoded", "reversible"):
        assert np.array_equal(alone[name], crowded[name]), name
    assert alone["likelihood"] == crowded["likelihood"]
    assert running.engine.idle
