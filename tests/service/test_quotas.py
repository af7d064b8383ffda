"""How much is taken, and what is said to the rest: queues, quotas, memory, repeated requests."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import redis

from service.jobs.lease import WorkerStore
from service.settings import Settings
from tests.service.helpers import CARDS, ROOMS
from tests.service.test_auth import ANNA, BELA, KEYS, api, bearer

pytestmark = pytest.mark.anyio
SERVED = ["sha256:digits"]
BODY = {"model": "digits", "count": 2, "sampler": {"name": "ddpm", "steps": 50}}


def over(answer: httpx.Response, status: int) -> int:
    """The seconds after which to try again."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    seconds = int(answer.headers["Retry-After"])
    assert f"{seconds} seconds" in answer.json()["detail"]
    return seconds


# The queue


async def test_a_full_queue_says_when_there_is_room(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60, rates={"sha256:digits": 10.0})
    async with api(settings, max_queued=2) as client:
        for _ in range(2):
            assert (await client.post("/generate", json=BODY)).status_code == 202
        # One job is 2 rows × 50 calls at 10 a second.
        assert over(await client.post("/generate", json=BODY), 503) == 10
        claim = worker.claim(SERVED, ROOMS)
        assert claim is not None
        assert (await client.post("/generate", json=BODY)).status_code == 202
        claim.release()  # what runs already comes back, full or not
        assert over(await client.post("/generate", json=BODY), 503) == 10


async def test_a_queued_job_knows_its_place_and_about_when(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60, rates={"sha256:digits": 10.0})
    async with api(settings) as client:
        views = [
            (await client.post("/generate", json=BODY | {"priority": priority})).json()
            for priority in ("batch", "interactive", "interactive")
        ]
        seen = [(await client.get(view["links"]["self"])).json()["queue"] for view in views]
        assert [place["position"] for place in seen] == [2, 0, 1]
        assert [place["eta"] for place in seen] == pytest.approx([30.0, 10.0, 20.0])
        claim = worker.claim(SERVED, ROOMS)
        assert claim is not None
        assert claim.job.id == views[1]["id"]
        running = (await client.get(views[1]["links"]["self"])).json()
        assert running["queue"] is None
        # Half of what runs is taken to be done.
        after = (await client.get(views[2]["links"]["self"])).json()["queue"]
        assert after == {"position": 0, "eta": pytest.approx(15.0)}


async def test_without_a_worker_nobody_can_tell_when(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with api(settings) as client:
        view = (await client.post("/generate", json=BODY)).json()
        assert view["queue"] == {"position": 0, "eta": None}


# Quotas


async def test_an_owner_s_unfinished_work_is_bounded_and_others_are_not(
    settings: Settings, worker: WorkerStore
):
    worker.announce(CARDS, ttl=60, rates={"sha256:digits": 10.0})
    async with api(settings, api_keys=KEYS, max_owner_cost=150) as client:
        large = BODY | {"count": 4}
        first = await client.post("/generate", json=large, headers=bearer(ANNA))
        assert first.status_code == 202, "a single job is always taken"
        refused = await client.post("/generate", json=BODY, headers=bearer(ANNA))
        assert over(refused, 429) == 15  # 200 + 100 − 150, at 10 a second
        assert "200 unfinished and 100 in this request" in refused.json()["detail"]
        assert (await client.post("/generate", json=BODY, headers=bearer(BELA))).is_success
        await client.post(f"{first.headers['Location']}/cancel", headers=bearer(ANNA))
        assert (await client.post("/generate", json=BODY, headers=bearer(ANNA))).is_success


async def test_an_owner_s_jobs_a_minute_are_bounded(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with api(settings, api_keys=KEYS, requests_per_minute=2) as client:
        for _ in range(2):
            assert (await client.post("/generate", json=BODY, headers=bearer(ANNA))).is_success
        assert 1 <= over(await client.post("/generate", json=BODY, headers=bearer(ANNA)), 429) <= 60
        assert (await client.post("/generate", json=BODY, headers=bearer(BELA))).is_success
        assert (await client.get("/jobs", headers=bearer(ANNA))).is_success, "reading is free"


# Memory


async def test_short_of_memory_new_jobs_wait_and_previews_stop(
    settings: Settings, worker: WorkerStore, redis_url: str
):
    worker.announce(CARDS, ttl=60)
    with redis.Redis.from_url(redis_url) as client:
        async with api(settings) as http:
            assert (await http.post("/generate", json=BODY)).status_code == 202
            claim = worker.claim(SERVED, ROOMS)
            assert claim is not None
            used = client.info("memory")["used_memory"]
            client.config_set("maxmemory", int(used / 0.85))
            try:
                worker.look_at_memory()
                claim.event("preview", {"images": []})
                claim.event("step", {"calls": 1})
                async with asyncio.timeout(10):
                    while (await http.post("/generate", json=BODY)).status_code != 503:
                        await asyncio.sleep(0.1)
                over(await http.post("/generate", json=BODY), 503)
            finally:
                client.config_set("maxmemory", 0)
            async with asyncio.timeout(10):
                while (await http.post("/generate", json=BODY)).status_code != 202:
                    await asyncio.sleep(0.1)
            worker.look_at_memory()
            claim.event("preview", {"images": []})
            claim.succeed({})
            text = (await http.get(f"/jobs/{claim.job.id}/events")).text
    kinds = [line.removeprefix("event: ") for line in text.splitlines() if "event: " in line]
    assert kinds == ["queued", "started", "step", "preview", "succeeded"]


# Requests sent twice


async def sent(client: httpx.AsyncClient, key: str, body: dict[str, Any], owner: str = ANNA) -> Any:
    headers = bearer(owner) | {"Idempotency-Key": key}
    return await client.post("/generate", json=body, headers=headers)


async def test_a_request_sent_twice_is_carried_out_once(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with api(settings, api_keys=KEYS) as client:
        answers = await asyncio.gather(*(sent(client, "k", BODY) for _ in range(8)))
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert len({answer.json()["parameters"]["seed"] for answer in answers}) == 1
        # Its form is not its content.
        form = {"request": (None, json.dumps(BODY), "application/json")}
        again = await client.post(
            "/generate", files=form, headers=bearer(ANNA) | {"Idempotency-Key": "k"}
        )
        assert again.json()["id"] == answers[0].json()["id"]
        other = await sent(client, "k", BODY | {"count": 1})
        assert other.status_code == 422
        assert other.json()["errors"][0]["field"] == "Idempotency-Key"
        for different in (await sent(client, "l", BODY), await sent(client, "k", BODY, BELA)):
            assert different.status_code == 202
            assert different.json()["id"] != answers[0].json()["id"]
        assert (await sent(client, "k" * 256, BODY)).status_code == 422


async def test_a_key_is_free_again_when_its_job_is_gone(settings: Settings, worker: WorkerStore):
    worker.announce(CARDS, ttl=60)
    async with api(settings, api_keys=KEYS) as client:
        first = (await sent(client, "k", BODY)).json()
        await client.delete(first["links"]["self"], headers=bearer(ANNA))
        assert (await sent(client, "k", BODY | {"count": 1})).status_code == 202
