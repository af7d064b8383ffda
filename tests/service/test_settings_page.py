"""The page of all settings is that of the settings' class; the API's metrics are Prometheus's."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.lease import WorkerStore
from service.settings import Settings, to_markdown
from tests.service.helpers import CARDS, ROOMS

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_settings_is_up_to_date():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == to_markdown(), "run: python -m service.settings > docs/configuration.md"
    for name in Settings.model_fields:
        assert f"`FOKKER_{name.upper()}`" in written


@pytest.mark.anyio
async def test_the_metrics_tell_what_was_answered_and_what_waits(
    client: httpx.AsyncClient, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60)
    body = {"model": "digits", "count": 2, "sampler": {"name": "ddpm", "steps": 50}}
    jobs = [(await client.post("/generate", json=body)).json() for _ in range(3)]
    assert worker.claim(["sha256:digits"], ROOMS)
    await client.get(jobs[0]["links"]["self"])
    await client.get("/jobs/nobody")
    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert jobs[0]["id"] not in answer.text
    assert "nobody" not in answer.text
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    requests = "fokker_http_requests_total"
    route = ("route", "/generate")
    assert found[requests, ("method", "POST"), route, ("status", "202")] == 3
    one = ("method", "GET"), ("route", "/jobs/{job_id}")
    assert found[(requests, *one, ("status", "200"))] == 1
    assert found[(requests, *one, ("status", "404"))] == 1
    assert found["fokker_http_seconds_count", route] == 3
    assert found[("fokker_jobs_waiting",)] == 2
    assert found["fokker_row_calls_waiting", ("model", "digits")] == 200
    assert found["fokker_row_calls_waiting", ("model", "faces")] == 0
    assert found["fokker_workers", ("model", "faces")] == 1
