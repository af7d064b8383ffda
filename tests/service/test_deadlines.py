"""`Cancel-After`: a job ends by its deadline, whoever is alive."""

import asyncio
from typing import Any

import httpx
import pytest

from service.api.operations import duration
from service.api.problems import Problem
from service.jobs.lease import Claim, WorkerStore
from tests.service.helpers import LIMIT, ROOMS

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]


async def submitted(client: httpx.AsyncClient, cancel_after: str) -> dict[str, Any]:
    answer = await client.post(
        "/generate", json={"model": "digits"}, headers={"Cancel-After": cancel_after}
    )
    assert answer.status_code == 202
    job: dict[str, Any] = answer.json()
    return job


async def ended(client: httpx.AsyncClient, job: dict[str, Any]) -> tuple[str, list[str]]:
    """The status that a job ends with, and the reasons in its events."""
    async with asyncio.timeout(LIMIT):
        answer = await client.get(job["links"]["events"])
    reasons = [line for line in answer.text.splitlines() if '"reason"' in line]
    return (await client.get(job["links"]["self"])).json()["status"], reasons


def claimed(worker: WorkerStore) -> Claim:
    claim = worker.claim(SERVED, ROOMS)
    assert claim is not None
    return claim


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("90", 90), ("1.5 m", 90), ("500ms", 0.5), ("2h", 7200), (" 3s ", 3)],
)
async def test_a_duration_has_a_unit_or_is_in_seconds(text: str, seconds: float):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0s", "-1s", "1e3", "inf", "nan", "1d", "9" * 400])
async def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(Problem, match="Cancel-After"):
        duration(text)


async def test_the_deadline_is_part_of_the_job(client: httpx.AsyncClient):
    job = await submitted(client, "90s")
    assert job["deadline"] == pytest.approx(job["created"] + 90, abs=1e-3)
    assert not job["cancel_requested"]


async def test_without_the_header_there_is_no_deadline(client: httpx.AsyncClient):
    job = (await client.post("/generate", json={"model": "digits"})).json()
    assert job["deadline"] is None


async def test_a_bad_header_is_named(client: httpx.AsyncClient):
    answer = await client.post(
        "/generate", json={"model": "digits"}, headers={"Cancel-After": "tomorrow"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "Cancel-After"


async def test_with_no_worker_alive_a_queued_job_is_aborted(client: httpx.AsyncClient):
    job = await submitted(client, "200ms")
    status, reasons = await ended(client, job)
    assert status == "aborted"
    assert "deadline" in reasons[0]


async def test_the_owner_of_a_late_job_is_asked_to_stop(client: httpx.AsyncClient, worker: Any):
    job = await submitted(client, "200ms")
    claim = claimed(worker)
    async with asyncio.timeout(LIMIT):
        while worker.canceled() != {job["id"]: "deadline"}:
            await asyncio.sleep(0.02)
    claim.cancel("deadline")
    assert await ended(client, job) == ("canceled", ['data: {"reason": "deadline"}'])
    assert worker.canceled() == {}
