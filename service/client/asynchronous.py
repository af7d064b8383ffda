"""The client for asyncio and trio."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, TypeVar, Unpack

import anyio
import httpx
from httpx_sse import EventSource

from service.client import calls
from service.client.calls import Call, JobOrId
from service.client.connection import Connection
from service.client.errors import (
    ClientError,
    ServiceUnavailable,
    check,
    document,
    reaching,
    require_success,
)
from service.client.events import Event, OnEvent, Reading, broken_off
from service.client.job import Job, Page
from service.client.results import RESULTS, Generated, Inverted, LogLikelihoods, Result
from service.client.retries import Patience
from service.client.submission import (
    Deadline,
    GenerateOptions,
    Images,
    InvertOptions,
    LatentsLike,
    LoglikOptions,
    Submission,
)

R = TypeVar("R", bound=Result)

PARTING = 5.0
"""Seconds that a wait which is interrupted takes at most to cancel its job."""


class AsyncClient:
    """`Client` for asyncio and trio: the same arguments, methods, results and errors.

    Close it with `aclose`, or use it in an `async with` statement.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
    ) -> None:
        self._connection = Connection(url, api_key, timeout)
        self._retries = retries
        self._http = httpx.AsyncClient(**self._connection.options)

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self, model: str, *, on_event: OnEvent | None = None, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """Draw `count` images, or decode `latents`, and wait for them.

        The options are those of `POST /generate`; besides, `sampler` may be a mere name, `latents`
        sets `init`, and `deadline` the job's. `on_event` is called with each event of the job. If
        the wait is interrupted, the job is canceled. Raises `JobFailed`, `JobCanceled`.
        """
        return await self._complete(Generated, Submission.of("generate", model, options), on_event)

    async def invert(
        self,
        images: Images,
        *,
        model: str,
        on_event: OnEvent | None = None,
        **options: Unpack[InvertOptions],
    ) -> Inverted:
        """Encode images into their latents; the rest as in `generate`."""
        return await self._complete(
            Inverted, Submission.of("invert", model, options, images), on_event
        )

    async def loglik(
        self,
        images: Images,
        *,
        model: str,
        on_event: OnEvent | None = None,
        **options: Unpack[LoglikOptions],
    ) -> LogLikelihoods:
        """Give the log-likelihood of images; the rest as in `generate`."""
        submission = Submission.of("loglik", model, options, images)
        return await self._complete(LogLikelihoods, submission, on_event)

    async def submit(
        self,
        operation: str,
        request: Mapping[str, Any],
        *,
        images: Images | None = None,
        latents: LatentsLike | None = None,
        deadline: Deadline | None = None,
    ) -> Job:
        """Submit a job of the JSON `request` and return it at once, queued."""
        return await self._submit(Submission(operation, request, images, latents, deadline))

    async def wait(self, job: JobOrId, *, on_event: OnEvent | None = None) -> Job:
        """Return a job when it has finished, whichever way."""
        if isinstance(job, Job) and job.finished:
            return job
        async with aclosing(self.events(job)) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
        return await self.job(job)

    async def result(self, job: JobOrId, *, on_event: OnEvent | None = None) -> Result:
        """Wait for a job's end and fetch its result. Raises `JobFailed`, `JobCanceled`."""
        ended = require_success(await self.wait(job, on_event=on_event))
        return await self._read(RESULTS[ended.operation], ended)

    async def job(self, job: JobOrId) -> Job:
        """Look at a job as it stands now."""
        return Job.of(await self._ask(calls.job(job)))

    async def jobs(
        self, *, status: str | None = None, page: int | None = None
    ) -> AsyncGenerator[Job, None]:
        """Go through the jobs, of a status if one is given; `page` of them a call."""
        cursor: str | None = None
        while True:
            found = Page.of(await self._ask(calls.jobs(status, page, cursor)))
            for job in found.jobs:
                yield job
            if (cursor := found.next) is None:
                return

    async def events(
        self, job: JobOrId, *, after: str | None = None
    ) -> AsyncGenerator[Event, None]:
        """Follow a job's events, from the start or from behind the event id `after`, to its end.

        A connection that is lost is made again, and no event is missed or comes twice.
        """
        reading = Reading(job, after, self._retries)
        while True:
            call = reading.call()
            try:
                with reaching(call, self.url):
                    async with self._stream(call) as response:
                        if response.is_error:
                            await response.aread()
                        if not reading.open(call, response):
                            return
                        async with aclosing(EventSource(response).aiter_sse()) as messages:
                            async for message in messages:
                                if (event := reading.receive(message)) is None:
                                    continue
                                yield event
                                if event.last:
                                    return
                raise broken_off(call)
            except ServiceUnavailable as failure:
                pause = reading.pause(failure)
            await anyio.sleep(pause)

    async def cancel(self, job: JobOrId) -> Job:
        """Cancel a job: a queued one ends at once, a running one soon, a finished one stays."""
        return Job.of(await self._ask(calls.cancel(job)))

    async def delete(self, job: JobOrId) -> None:
        """Remove a job with its artifacts."""
        await self._send(calls.delete(job))

    async def artifact(self, job: JobOrId, name: str) -> bytes:
        """Fetch one file of a job."""
        return (await self._send(calls.artifact(job, name))).content

    async def models(self) -> list[dict[str, Any]]:
        """List the models: their cards, and whether a worker serves them (`live`)."""
        return list((await self._ask(calls.models()))["models"])

    async def model(self, name: str) -> dict[str, Any]:
        """Give one model's card."""
        return await self._ask(calls.model(name))

    async def ready(self) -> bool:
        """Tell whether the service answers and a worker serves a model, without retries."""
        call = calls.ready()
        try:
            with reaching(call, self.url):
                return (await self._request(call)).is_success
        except ServiceUnavailable:
            return False

    async def _complete(self, kind: type[R], submission: Submission, on_event: OnEvent | None) -> R:
        job = await self._submit(submission)
        try:
            ended = await self.wait(job, on_event=on_event)
        except ClientError:
            raise
        except BaseException:
            await self._abandon(job)
            raise
        return await self._read(kind, require_success(ended))

    async def _abandon(self, job: Job) -> None:
        call = calls.cancel(job)
        # Once, and shielded: somebody wants to leave, by a cancellation that would end this too.
        with (
            anyio.move_on_after(PARTING, shield=True),
            suppress(ClientError),
            reaching(call, self.url),
        ):
            await self._request(call)

    async def _submit(self, submission: Submission) -> Job:
        return Job.of(await self._ask(submission.call()))

    async def _read(self, kind: type[R], job: Job) -> R:
        return kind.of(job, {name: await self.artifact(job, name) for name in kind.artifacts(job)})

    async def _ask(self, call: Call) -> dict[str, Any]:
        return document(call, await self._send(call))

    async def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self._retries)
        while True:
            try:
                with reaching(call, self.url):
                    return check(call, await self._request(call))
            except ServiceUnavailable as failure:
                pause = patience.pause(failure)
            await anyio.sleep(pause)

    async def _request(self, call: Call) -> httpx.Response:
        return await self._http.request(call.method, call.path, **call.arguments)

    def _stream(self, call: Call) -> AbstractAsyncContextManager[httpx.Response]:
        timeout = self._connection.streaming
        return self._http.stream(call.method, call.path, timeout=timeout, **call.arguments)
