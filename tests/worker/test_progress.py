"""What a job tells on its way: progress and calls, and how it leaves when it is deleted."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from model.analytic import GaussianMixture
from service.jobs.arrays import pack
from service.jobs.job import Status
from service.jobs.lease import Claim, WorkerStore
from service.jobs.redis_store import RedisJobStore, keys
from service.settings import Settings
from tests.laws.mixture import draw
from tests.worker.conftest import Stopped
from worker.shelf import ServedModel

Claimed = Callable[..., Claim]
DDPM = {"name": "ddpm", "steps": 12}


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("generate", {"count": 40, "sampler": DDPM, "stream": {"every": 3}}),
    ("generate", {"count": 3, "sampler": {"name": "pf_ode", "solver": {"name": "adaptive"}}}),
    ("invert", {"stream": {"every": 7}}),
    ("invert", {"solver": {"name": "heun", "steps": 9}, "stream": {"every": 1}}),
    ("loglik", {}),
    ("loglik", {"method": "elbo", "bound": {"draws": 20}}),
]


@pytest.mark.parametrize(("operation", "parameters"), WAYS)
def test_progress_runs_once_from_0_to_1_and_calls_end_at_the_result_s(
    stopped: Stopped,
    claimed: Claimed,
    network: GaussianMixture,
    served: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    parameters: dict[str, Any],
) -> None:
    monkeypatch.setattr("worker.reports.STEP_INTERVAL", 0.0)
    monkeypatch.setattr("worker.reports.STEPS_A_SECOND", 1e9)
    images = served.checkpoint.description.data.to_levels(draw(network, 20)).round().numpy()
    inputs = None if operation == "generate" else pack({"levels": images})
    seed = {} if operation == "invert" else {"seed": 0}
    claim = claimed(operation, inputs, **seed, **parameters)
    stopped.run(claim)
    told = [data for kind, data in stopped.events(claim) if kind in ("step", "preview")]
    progress = [data["progress"] for data in told]
    assert progress == sorted(progress)
    assert 0.0 <= progress[0] < 0.2
    assert 0.9 < progress[-1] <= 1.0
    result = stopped.job(claim).result
    assert result is not None
    steps = [data["calls"] for data in told if "images" not in data]
    assert steps == sorted(steps)
    assert steps[-1] == result["calls"]
    assert max(data["calls"] for data in told) <= result["calls"]
    assert max(image["nfe"] for image in result["images"]) <= result["calls"]


def test_a_deleted_job_leaves_its_worker_without_a_warning(
    stopped: Stopped, claimed: Claimed, store: WorkerStore, caplog: pytest.LogCaptureFixture
) -> None:
    stopped.courier.on_lost = stopped.engine.stop_job
    stays, goes = (claimed("generate", count=1, seed=n, sampler=DDPM) for n in range(2))
    for claim in (stays, goes):
        stopped.admit(claim)
    stopped.engine.tick()
    delete(store.settings, goes)
    assert store.renew([stays, goes]) == ["held", "deleted"]
    stopped.courier.send(goes, lambda: goes.event("step", {}))
    stopped.delivered()
    with caplog.at_level("INFO"):
        stopped.engine.tick()
    assert stopped.engine.claims() == [stays]
    stopped.run()
    assert stopped.job(stays).status is Status.SUCCEEDED
    assert not stopped.client.exists(keys.job(goes.job.id))
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def delete(settings: Settings, claim: Claim) -> None:
    """What DELETE does."""

    async def run() -> None:
        jobs = RedisJobStore(settings)
        await jobs.delete(claim.job.id)
        await jobs.close()

    asyncio.run(run())
