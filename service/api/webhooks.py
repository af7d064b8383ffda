"""Who wants to be told of a job's end, is: a signed POST to the URL in the request.

docs/webhooks.md says what is sent, and how whoever receives it checks that it is from here.
"""

import asyncio
import hmac
import ipaddress
import logging
import socket
import time
import uuid
from urllib.parse import urlsplit

import httpx

from service.api.dependencies import Services
from service.api.views import view_of
from service.jobs.errors import StoreError
from service.jobs.job import Job
from service.jobs.tasks import end
from service.settings import Settings

log = logging.getLogger(__name__)

ATTEMPTS = 6
PAUSE = 5.0  # seconds before the second attempt, doubled each time
TIMEOUT = 10.0  # seconds
AT_ONCE = 50  # deliveries of one process

DELIVERIES = uuid.UUID("6f1b0f1e-7b8a-4d0c-9a53-0d6f4f6b6b72")
"""The namespace of the deliveries' ids: a job has one, whichever process delivers it."""


class ForbiddenError(Exception):
    """A URL that must not be called."""


class RefusedError(Exception):
    """A call that did not succeed."""


def sign(secret: bytes, body: bytes, seconds: int) -> str:
    """The value of `Fokker-Signature`."""
    mac = hmac.digest(secret, b"%d.%s" % (seconds, body), "sha256").hex()
    return f"t={seconds},v1={mac}"


def delivery_id(job_id: str) -> str:
    """The id of the one thing that is told of a job, the same in every attempt to tell it."""
    return str(uuid.uuid5(DELIVERIES, job_id))


def check_url(url: str, settings: Settings) -> None:
    """Raises `ForbiddenError`, which says why, for what can be seen to be no webhook."""
    if settings.webhook_secret is None:
        raise ForbiddenError("webhooks are off here; whoever runs this sets FOKKER_WEBHOOK_SECRET")
    if not url.isprintable() or " " in url:
        raise ForbiddenError("it has characters that no URL has")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - parsed only when it is asked for
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise ForbiddenError(f"not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ForbiddenError("not an http or https URL")
    if parts.username or parts.password:
        raise ForbiddenError("it carries a user or password; leave them out")
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        return
    _check_address(str(address), settings)


def _check_address(address: str, settings: Settings) -> None:
    if not settings.webhook_private and not ipaddress.ip_address(address).is_global:
        raise ForbiddenError(f"{address} is not an address of the public internet")


class Deliveries:
    """The webhooks that are on their way; none waits for another that is answered slowly."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._running: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Begin to tell those who wait to be told; several processes may do so at once."""
        if self._services.settings.webhook_secret is None:
            return  # another process may have it
        room = AT_ONCE - len(self._running)
        if room <= 0:
            return
        for job, attempt in await self._services.store.due_webhooks(TIMEOUT + PAUSE, room):
            task = asyncio.create_task(_deliver(self._services, job, attempt))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Give up what is on its way: it is due again soon, for another process."""
        await end(*self._running)


async def _deliver(services: Services, job: Job, attempt: int) -> None:
    try:
        await _attempt(services, job, attempt)
    except StoreError as error:  # it is due again when the store has forgotten who had it
        log.warning("webhook: %s", error, extra={"job_id": job.id})


async def _attempt(services: Services, job: Job, attempt: int) -> None:
    assert job.webhook is not None
    try:
        await _post(services, job, job.webhook, attempt)
    except Exception as error:
        # Whatever it is, it is this webhook's failure and must not be another's.
        last = attempt >= ATTEMPTS or isinstance(error, ForbiddenError)
        said = "webhook failed for good: %s" if last else "webhook failed: %s"
        about = {"job_id": job.id, "delivery": delivery_id(job.id), "attempt": attempt}
        log.warning(said, error, extra=about)
        pause = None if last else PAUSE * 2 ** (attempt - 1)
        await services.store.webhook_failed(job.id, pause)
    else:
        await services.store.webhook_done(job.id)


async def _post(services: Services, job: Job, url: str, attempt: int) -> None:
    settings = services.settings
    check_url(url, settings)
    assert settings.webhook_secret is not None
    parts = urlsplit(url)
    assert parts.hostname is not None
    address = await _resolve(parts.hostname, settings)
    view = await view_of(services, job)
    body = view.model_dump_json().encode()
    secret = settings.webhook_secret.get_secret_value().encode()
    headers = {
        "Content-Type": "application/json",
        "Fokker-Delivery": delivery_id(job.id),
        "Fokker-Attempt": str(attempt),
        "Fokker-Signature": sign(secret, body, int(time.time())),
        "Host": parts.netloc,
    }
    # The address that was checked is the one that is called, whatever the name says next.
    host = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}")
    async with (
        asyncio.timeout(TIMEOUT),  # httpx's own is of every read
        httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as client,
        client.stream(
            "POST",
            target.geturl(),
            content=body,
            headers=headers,
            extensions={"sni_hostname": parts.hostname},
        ) as answer,
    ):
        pass  # what it says beside its status is not read
    if answer.is_redirect:
        raise ForbiddenError("it redirects, which is not followed")
    if not answer.is_success:
        raise RefusedError(f"it answered {answer.status_code}")


async def _resolve(host: str, settings: Settings) -> str:
    """An address of the host; raises `ForbiddenError` if any of them is private."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        _check_address(address, settings)
    return addresses[0]
