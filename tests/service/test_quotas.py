"""How much is taken, and what is said to the rest: queues, quotas, memory, repeated requests."""

import asyncio
import json
from typing import Any

import httpx
import pytest
import redis

from service.jobs import keys
from service.jobs.lease import WorkerStore
from service.jobs.store import JobStore, Once, OtherContentError, QueueFullError, QuotaError
from service.settings import Settings
from tests.service.helpers import CARDS, ROOMS, a_job
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


async def test_totals_are_zero_when_all_has_ended(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    jobs = [await store.submit(a_job(rows=3, calls=7, owner=f"o{n % 2}")) for n in range(6)]
    claims = [worker.claim(SERVED, ROOMS) for _ in range(3)]
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        assert client.hgetall(keys.TOTALS) == {
            "jobs": "3",
            keys.queue("interactive", "sha256:digits"): "63",
            keys.running("sha256:digits"): "63",
            "owner:o0": "63",
            "owner:o1": "63",
        }
        assert all(claims)
        claims[0].succeed({})  # type: ignore[union-attr]
        claims[1].release()  # type: ignore[union-attr]
        await store.delete(jobs[2].id)  # runs
        await store.delete(jobs[3].id)  # waits
        for job in jobs:
            await store.cancel(job.id)
        assert client.hgetall(keys.TOTALS) == {}


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


async def test_the_store_refuses_without_writing(
    settings: Settings, redis_url: str, worker: WorkerStore
):
    store = JobStore(settings.model_copy(update={"max_queued": 1, "max_owner_cost": 10}))
    await store.submit(a_job(owner="x", rows=2, calls=5), once=Once("k", "one"))
    with redis.Redis.from_url(redis_url) as client:
        before = sorted(client.keys())
        with pytest.raises(QueueFullError):
            await store.submit(a_job(owner="y"))
        with pytest.raises(OtherContentError):
            await store.submit(a_job(owner="x"), once=Once("k", "two"))
        assert worker.claim(SERVED, ROOMS)
        with pytest.raises(QuotaError):
            await store.submit(a_job(owner="x"))
        await store.close()
        after = [key for key in sorted(client.keys()) if b":claim:" not in key]
    assert set(after) - set(before) == {keys.RUNNING.encode()}


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


async def test_at_the_limit_of_memory_leases_are_kept_and_jobs_end(
    store: JobStore, worker: WorkerStore, redis_url: str
):
    jobs = [await store.submit(a_job(), bytes(1000)) for _ in range(3)]
    claims = [worker.claim(SERVED, ROOMS) for _ in range(2)]
    held = [claim for claim in claims if claim is not None]
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(redis.OutOfMemoryError):
                client.set("x", "y")
            with pytest.raises(redis.OutOfMemoryError):
                await store.submit(a_job())
            before = client.pttl(keys.claim(held[0].token))
            await asyncio.sleep(0.05)
            assert worker.renew(held) == ["held", "held"]
            assert client.pttl(keys.claim(held[0].token)) > before - 50
            held[0].succeed({"images": []})
            held[1].release()
            await store.cancel(jobs[2].id)
        finally:
            client.config_set("maxmemory", 0)
    found = [await store.get(job.id) for job in jobs]
    assert [job.status for job in found if job] == ["succeeded", "queued", "canceled"]


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
