"""Webhooks: signed, tried again, delivered once, and never to a private address unless allowed."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.webhooks import sign
from service.jobs.lease import WorkerStore
from service.jobs.redis_store import keys
from service.settings import Settings
from tests.service.helpers import CARDS, LIMIT, ROOMS
from tests.service.network import served
from tests.service.test_auth import api

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "webhooks.md"
SECRET = "0123456789abcdef"
ALLOWED = {"webhook_secret": SecretStr(SECRET), "webhook_private": True}


@dataclass
class Receiver:
    """Notes what it is sent, and answers with the next of `statuses`, at last with 204."""

    statuses: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # paths that wait, or waited
    deliveries: list[tuple[str, str]] = field(default_factory=list)  # id and attempt

    answers: asyncio.Event = field(default_factory=asyncio.Event)  # to /slow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            if request.url.path == "/slow":
                self.asked.append("/slow")
                await self.answers.wait()
            self.bodies.append(await request.body())
            self.signatures.append(request.headers["Fokker-Signature"])
            delivery = request.headers["Fokker-Delivery"], request.headers["Fokker-Attempt"]
            self.deliveries.append(delivery)
            status = self.statuses.pop(0) if self.statuses else 204
            await Response(status_code=status, headers={"Location": "/"})(scope, receive, send)


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.webhooks.PAUSE", 0.05)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def address(receiver: Receiver) -> Iterator[str]:
    with served(receiver) as url:
        yield url


@pytest.fixture
async def client(settings: Settings, worker: WorkerStore) -> AsyncIterator[httpx.AsyncClient]:
    worker.announce(CARDS, ttl=60)
    async with api(settings, **ALLOWED) as client:
        yield client


async def submitted(client: httpx.AsyncClient, url: str) -> httpx.Response:
    return await client.post("/generate", json={"model": "digits", "webhook": url})


def check_of_the_docs() -> Callable[..., bool]:
    """The function by which docs/webhooks.md checks a signature."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope["is_from_fokker"]


def succeed(worker: WorkerStore) -> str:
    claim = worker.claim(["sha256:digits"], ROOMS)
    assert claim is not None
    claim.succeed({"images": []})
    return claim.job.id


async def forgotten(redis_url: str) -> None:
    """Until no webhook is due any more."""
    with redis.Redis.from_url(redis_url) as admin:
        async with asyncio.timeout(LIMIT):
            while admin.zcard(keys.WEBHOOKS):
                await asyncio.sleep(0.05)


async def test_the_end_of_a_job_is_told_and_signed(
    client: httpx.AsyncClient, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    assert (await submitted(client, f"{address}/hook")).status_code == 202
    job_id = succeed(worker)
    await forgotten(redis_url)
    (body,), (signature,) = receiver.bodies, receiver.signatures
    told = json.loads(body)
    assert (told["id"], told["status"], told["result"]) == (job_id, "succeeded", {"images": []})
    check = check_of_the_docs()
    assert check(SECRET.encode(), body, signature)
    assert not check(b"another secret 0", body, signature)
    assert not check(SECRET.encode(), body + b" ", signature)
    seconds = int(signature.partition(",")[0].removeprefix("t="))
    assert not check(SECRET.encode(), body, signature.replace(str(seconds), str(seconds - 1)))
    assert not check(SECRET.encode(), body, sign(SECRET.encode(), body, seconds - 400)), "too old"
    for nonsense in ("", "t=,v1=", "t=x,v1=y", "v1", signature.partition(",")[2]):
        assert not check(SECRET.encode(), body, nonsense)


async def test_a_failed_delivery_is_tried_again_and_at_last_given_up(
    client: httpx.AsyncClient, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    receiver.statuses = [500, 404]
    await submitted(client, address)
    succeed(worker)
    await forgotten(redis_url)
    assert len(receiver.bodies) == 3
    ids, attempts = zip(*receiver.deliveries, strict=True)
    assert (len(set(ids)), attempts) == (1, ("1", "2", "3"))
    receiver.statuses = [500] * 100
    await submitted(client, address)
    succeed(worker)
    await forgotten(redis_url)
    assert len(receiver.bodies) == 3 + 6
    assert len({delivery for delivery, _ in receiver.deliveries}) == 2, "one a job"


async def test_one_who_does_not_answer_holds_up_no_other(
    client: httpx.AsyncClient, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    await submitted(client, f"{address}/slow")
    succeed(worker)
    async with asyncio.timeout(LIMIT):
        while not receiver.asked:
            await asyncio.sleep(0.01)
    await submitted(client, f"{address}/other")
    told = succeed(worker)
    async with asyncio.timeout(LIMIT / 2):
        while not receiver.bodies:
            await asyncio.sleep(0.01)
    assert json.loads(receiver.bodies[0])["id"] == told
    receiver.answers.set()
    await forgotten(redis_url)


async def test_two_processes_deliver_once(
    settings: Settings, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    worker.announce(CARDS, ttl=60)
    async with AsyncExitStack() as stack:
        first, _ = [await stack.enter_async_context(api(settings, **ALLOWED)) for _ in range(2)]
        for _ in range(5):
            await submitted(first, address)
            succeed(worker)
        await forgotten(redis_url)
    assert sorted(json.loads(body)["id"] for body in receiver.bodies) == sorted(
        {json.loads(body)["id"] for body in receiver.bodies}
    )
    assert len(receiver.bodies) == 5


async def test_a_redirect_is_not_followed(
    client: httpx.AsyncClient, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    receiver.statuses = [307]
    await submitted(client, address)
    succeed(worker)
    await forgotten(redis_url)
    assert len(receiver.bodies) == 1


async def test_a_name_of_a_private_address_is_not_called(
    settings: Settings, worker: WorkerStore, receiver: Receiver, address: str, redis_url: str
):
    worker.announce(CARDS, ttl=60)
    async with api(settings, **ALLOWED | {"webhook_private": False}) as client:
        answer = await submitted(client, address.replace("127.0.0.1", "localhost"))
        assert answer.status_code == 202, "only its resolution tells"
        succeed(worker)
        await forgotten(redis_url)
    assert receiver.bodies == []


@pytest.mark.parametrize(
    ("url", "changes", "said"),
    [
        ("http://example.org", {"webhook_secret": None}, "FOKKER_WEBHOOK_SECRET"),
        ("ftp://example.org", {}, "http"),
        ("http://", {}, "http"),
        ("http://[::1", {}, "not a URL"),
        ("http://localhost:99999/", {}, "not a URL"),
        ("http://localhost:abc/", {}, "not a URL"),
        (f"http://{'a' * 300}/", {}, "not a URL"),
        ("http://a\u0000b/", {}, "characters"),
        ("http://a/\r\nX: 1", {}, "characters"),
        ("http://me:pass@example.org", {}, "password"),
        ("http://127.0.0.1:1", {"webhook_private": False}, "public"),
        ("http://169.254.169.254/latest", {"webhook_private": False}, "public"),
        ("http://[::1]/", {"webhook_private": False}, "public"),
        ("http://10.0.0.1/", {"webhook_private": False}, "public"),
    ],
)
async def test_what_is_no_webhook_is_refused(
    settings: Settings, worker: WorkerStore, url: str, changes: dict[str, Any], said: str
):
    worker.announce(CARDS, ttl=60)
    async with api(settings, **ALLOWED | changes) as client:
        answer = await submitted(client, url)
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["field"] == "webhook"
        assert said in error["detail"]
