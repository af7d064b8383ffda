"""The client that blocks."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar, Unpack

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


class Client:
    """A Fokker service. Close it, or use it in a `with` statement. Threads may share it.

    url: where it is; the environment's FOKKER_URL, else http://127.0.0.1:8000.
    api_key: sent as a bearer token; the environment's FOKKER_API_KEY if None, none if "".
    timeout: seconds to connect and to wait for an answer to go on. Waiting for a job has no limit;
        a deadline gives it one.
    retries: how often a call is sent again while the service is away, or asks for patience.

    Every method raises `RequestRefused` for a request that cannot be met, and `ServiceUnavailable`
    when the retries did not help.
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
        self._http = httpx.Client(**self._connection.options)

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the service is."""
        return self._connection.url

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self, model: str, *, on_event: OnEvent | None = None, **options: Unpack[GenerateOptions]
    ) -> Generated:
        """Draw `count` images, or decode `latents`, and wait for them.

        The options are those of `POST /generate`; besides, `sampler` may be a mere name, `latents`
        sets `init`, and `deadline` the job's. `on_event` is called with each event of the job. If
        the wait is interrupted, the job is canceled. Raises `JobFailed`, `JobCanceled`.
        """
        return self._complete(Generated, Submission.of("generate", model, options), on_event)

    def invert(
        self,
        images: Images,
        *,
        model: str,
        on_event: OnEvent | None = None,
        **options: Unpack[InvertOptions],
    ) -> Inverted:
        """Encode images into their latents; the rest as in `generate`."""
        return self._complete(Inverted, Submission.of("invert", model, options, images), on_event)

    def loglik(
        self,
        images: Images,
        *,
        model: str,
        on_event: OnEvent | None = None,
        **options: Unpack[LoglikOptions],
    ) -> LogLikelihoods:
        """Give the log-likelihood of images; the rest as in `generate`."""
        submission = Submission.of("loglik", model, options, images)
        return self._complete(LogLikelihoods, submission, on_event)

    def submit(
        self,
        operation: str,
        request: Mapping[str, Any],
        *,
        images: Images | None = None,
        latents: LatentsLike | None = None,
        deadline: Deadline | None = None,
    ) -> Job:
        """Submit a job of the JSON `request` and return it at once, queued."""
        return self._submit(Submission(operation, request, images, latents, deadline))

    def wait(self, job: JobOrId, *, on_event: OnEvent | None = None) -> Job:
        """Return a job when it has finished, whichever way."""
        if isinstance(job, Job) and job.finished:
            return job
        for event in self.events(job):
            if on_event is not None:
                on_event(event)
        return self.job(job)

    def result(self, job: JobOrId, *, on_event: OnEvent | None = None) -> Result:
        """Wait for a job's end and fetch its result. Raises `JobFailed`, `JobCanceled`."""
        ended = require_success(self.wait(job, on_event=on_event))
        return self._read(RESULTS[ended.operation], ended)

    def job(self, job: JobOrId) -> Job:
        """Look at a job as it stands now."""
        return Job.of(self._ask(calls.job(job)))

    def jobs(self, *, status: str | None = None, page: int | None = None) -> Iterator[Job]:
        """Go through the jobs, of a status if one is given; `page` of them a call."""
        cursor: str | None = None
        while True:
            found = Page.of(self._ask(calls.jobs(status, page, cursor)))
            yield from found.jobs
            if (cursor := found.next) is None:
                return

    def events(self, job: JobOrId, *, after: str | None = None) -> Iterator[Event]:
        """Follow a job's events, from the start or from behind the event id `after`, to its end.

        A connection that is lost is made again, and no event is missed or comes twice.
        """
        reading = Reading(job, after, self._retries)
        while True:
            call = reading.call()
            try:
                with reaching(call, self.url), self._stream(call) as response:
                    if response.is_error:
                        response.read()
                    if not reading.open(call, response):
                        return
                    for message in EventSource(response).iter_sse():
                        if (event := reading.receive(message)) is None:
                            continue
                        yield event
                        if event.last:
                            return
                raise broken_off(call)
            except ServiceUnavailable as failure:
                pause = reading.pause(failure)
            time.sleep(pause)

    def cancel(self, job: JobOrId) -> Job:
        """Cancel a job: a queued one ends at once, a running one soon, a finished one stays."""
        return Job.of(self._ask(calls.cancel(job)))

    def delete(self, job: JobOrId) -> None:
        """Remove a job with its artifacts."""
        self._send(calls.delete(job))

    def artifact(self, job: JobOrId, name: str) -> bytes:
        """Fetch one file of a job."""
        return self._send(calls.artifact(job, name)).content

    def models(self) -> list[dict[str, Any]]:
        """List the models: their cards, and whether a worker serves them (`live`)."""
        return list(self._ask(calls.models())["models"])

    def model(self, name: str) -> dict[str, Any]:
        """Give one model's card."""
        return self._ask(calls.model(name))

    def ready(self) -> bool:
        """Tell whether the service answers and a worker serves a model, without retries."""
        call = calls.ready()
        try:
            with reaching(call, self.url):
                return self._request(call).is_success
        except ServiceUnavailable:
            return False

    def _complete(self, kind: type[R], submission: Submission, on_event: OnEvent | None) -> R:
        job = self._submit(submission)
        try:
            ended = self.wait(job, on_event=on_event)
        except ClientError:
            raise
        except BaseException:
            self._abandon(job)
            raise
        return self._read(kind, require_success(ended))

    def _abandon(self, job: Job) -> None:
        call = calls.cancel(job)
        with suppress(ClientError), reaching(call, self.url):  # once: somebody wants to leave
            self._request(call)

    def _submit(self, submission: Submission) -> Job:
        return Job.of(self._ask(submission.call()))

    def _read(self, kind: type[R], job: Job) -> R:
        return kind.of(job, {name: self.artifact(job, name) for name in kind.artifacts(job)})

    def _ask(self, call: Call) -> dict[str, Any]:
        return document(call, self._send(call))

    def _send(self, call: Call) -> httpx.Response:
        patience = Patience(self._retries)
        while True:
            try:
                with reaching(call, self.url):
                    return check(call, self._request(call))
            except ServiceUnavailable as failure:
                pause = patience.pause(failure)
            time.sleep(pause)

    def _request(self, call: Call) -> httpx.Response:
        return self._http.request(call.method, call.path, **call.arguments)

    def _stream(self, call: Call) -> AbstractContextManager[httpx.Response]:
        timeout = self._connection.streaming
        return self._http.stream(call.method, call.path, timeout=timeout, **call.arguments)
