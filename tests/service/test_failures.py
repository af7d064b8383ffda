"""What nobody foresaw is answered, counted and logged, under the request's id."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from service.jobs.redis_store import RedisJobStore
from service.logs import configure
from service.settings import Settings
from tests.service.test_auth import api
from tests.service.test_logs import lines, logging_as_before  # noqa: F401 - a fixture

pytestmark = pytest.mark.anyio
ORIGIN = "https://page.example"


@pytest.fixture
async def broken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    async def fail(self: RedisJobStore, job_id: str) -> None:
        raise RuntimeError("a mistake of ours")

    async with api(settings, cors_origins=ORIGIN) as client:
        monkeypatch.setattr(RedisJobStore, "get", fail)
        yield client


async def test_a_500_names_its_request_in_answer_log_and_document(
    broken: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
):
    configure(Settings(log_format="json"))
    headers = {"X-Request-ID": "mine-7", "Origin": ORIGIN}
    answer = await broken.get("/jobs/some-job", headers=headers)
    assert answer.status_code == 500
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"] == "mine-7"
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN, "its page may read it"
    assert answer.json()["request_id"] == "mine-7"
    assert "a mistake of ours" not in json.dumps(answer.json())
    (line,) = (line for line in lines(capsys) if line["level"] == "error")
    assert (line["request_id"], line["job_id"]) == ("mine-7", "some-job")
    assert "RuntimeError: a mistake of ours" in str(line["exception"])


async def test_a_500_is_counted(broken: httpx.AsyncClient):
    await broken.get("/jobs/some-job")
    found = (await broken.get("/metrics")).text
    counted = 'fokker_http_requests_total{method="GET",route="/jobs/{job_id}",status="500"} 1.0'
    assert counted in found
