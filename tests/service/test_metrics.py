"""The API's `/metrics`, read as Prometheus reads it."""

from itertools import product

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from service.api import create_app
from service.jobs.job import FINISHED
from service.jobs.lease import WorkerStore
from service.jobs.parameters import OPERATIONS
from service.jobs.redis_store import keys
from service.redis_server import free_port
from service.settings import Settings
from tests.service.helpers import CARDS, ROOMS

pytestmark = pytest.mark.anyio

Key = tuple[str | tuple[str, str], ...]


def samples(text: str) -> dict[Key, float]:
    """The values of an exposition by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_the_metrics_tell_what_was_answered_and_what_waits(
    client: httpx.AsyncClient, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60, rates={"sha256:digits": 500.0})
    body = {"model": "digits", "count": 2, "sampler": {"name": "ddpm", "steps": 50}}
    jobs = [(await client.post("/generate", json=body)).json() for _ in range(3)]
    assert worker.claim(["sha256:digits"], ROOMS)
    await client.get(jobs[0]["links"]["self"])
    await client.get("/jobs/nobody")
    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert jobs[0]["id"] not in answer.text
    assert "nobody" not in answer.text
    found = samples(answer.text)
    requests = "fokker_http_requests_total"
    route = ("route", "/generate")
    assert found[requests, ("method", "POST"), route, ("status", "202")] == 3
    one = ("method", "GET"), ("route", "/jobs/{job_id}")
    assert found[(requests, *one, ("status", "200"))] == 1
    assert found[(requests, *one, ("status", "404"))] == 1
    assert found["fokker_http_seconds_count", route] == 3
    digits, faces = ("model", "digits"), ("model", "faces")
    interactive, batch = ("priority", "interactive"), ("priority", "batch")
    assert found["fokker_jobs_waiting", digits, interactive] == 2
    assert found["fokker_jobs_waiting", digits, batch] == 0
    assert found["fokker_row_calls_waiting", digits, interactive] == 200
    assert found["fokker_row_calls_waiting", faces, interactive] == 0
    assert 0 < found["fokker_oldest_wait_seconds", digits, interactive] < 60
    assert found["fokker_oldest_wait_seconds", faces, interactive] == 0
    assert found[("fokker_jobs_running",)] == 1
    assert found["fokker_row_calls_running", digits] == 100
    assert found["fokker_workers", faces] == 1
    assert found[("fokker_live_workers",)] == 1
    assert found["fokker_row_calls_per_second", digits] == 500
    assert found["fokker_jobs_submitted_total", digits, ("operation", "generate")] == 3
    assert found[("fokker_redis_up",)] == 1
    assert found[("fokker_redis_memory_used_bytes",)] > 100_000


async def test_what_has_not_happened_yet_is_zero(client: httpx.AsyncClient):
    found = samples((await client.get("/metrics")).text)
    for operation, status in product(OPERATIONS, FINISHED):
        labels = ("model", "digits"), ("operation", operation), ("status", status)
        assert found[("fokker_jobs_ended_total", *labels)] == 0
    assert found["fokker_leases_expired_total", ("outcome", "failed")] == 0
    assert found[("fokker_jobs_handed_back_total",)] == 0
    assert found[("fokker_live_workers",)] == 0


async def test_jobs_of_a_checkpoint_that_was_replaced_are_not_lost_sight_of(
    client: httpx.AsyncClient, worker: WorkerStore
):
    await client.post("/generate", json={"model": "digits"})
    worker.announce([CARDS[0] | {"digest": "sha256:new"}], ttl=60)
    found = samples((await client.get("/metrics")).text)
    interactive = ("priority", "interactive")
    assert found["fokker_jobs_waiting", ("model", "digits"), interactive] == 0
    assert found["fokker_jobs_waiting", ("model", "replaced"), interactive] == 1


async def test_a_count_of_another_version_is_left_out(client: httpx.AsyncClient, redis_url: str):
    with redis.Redis.from_url(redis_url) as other:
        other.hset(keys.COUNTS, '["a count to come","digits"]', 3)
    assert "to come" not in (await client.get("/metrics")).text


async def test_without_redis_the_server_tells_what_it_knows_itself():
    app = create_app(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        await client.get("/healthz")
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    found = samples(answer.text)
    assert found[("fokker_redis_up",)] == 0
    assert found["fokker_http_seconds_count", ("route", "/healthz")] == 1
    assert not any(name == "fokker_jobs_waiting" for name, *_ in found)
