"""What can go wrong for a client, and what each answer other than success means.

ClientError
├── InvalidInput         what was given cannot be sent; also a ValueError
├── RequestRefused       the request cannot be met as it is; says which field, and the fix
├── ServiceUnavailable   nobody answers, or the service cannot answer now
└── JobError             the job came to another end than a result
    ├── JobFailed
    └── JobCanceled      on request, or because its deadline passed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from service.client.job import Job
from service.jobs.job import Status

if TYPE_CHECKING:  # calls raise errors
    from service.client.calls import Call

SHOWN = 300  # characters of an answer that is no problem document


class ClientError(Exception):
    """Whatever a client raises of its own."""


class InvalidInput(ClientError, ValueError):  # noqa: N818 - named by what it is about
    """What the caller gave cannot be sent; nothing was."""


class RequestRefused(ClientError):  # noqa: N818 - named by what happened
    """The service will not do this request; `problem` is its RFC 9457 document.

    `errors` holds an entry for each wrong field: `field`, `detail` and, where it is short, `given`.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.title = str(problem.get("title") or _phrase(status))
        self.detail = str(problem.get("detail") or self.title)
        self.errors: list[dict[str, Any]] = list(problem.get("errors") or ())
        super().__init__(f"{self.title} ({status}): {self.detail}")


class ServiceUnavailable(ClientError):  # noqa: N818 - as HTTP names it
    """The service cannot be reached, or cannot answer now. `status` is None if nobody answered.

    `retry_after`: seconds after which the service asked to be tried again, if it said so.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message)


class JobError(ClientError):
    """A job ended without a result; `job` is its last state."""

    def __init__(self, message: str, job: Job) -> None:
        self.job = job
        super().__init__(message)


class JobFailed(JobError):  # noqa: N818 - as the job's status is named
    """The job failed; the message and `job.error` say why."""


class JobCanceled(JobError):  # noqa: N818 - as the job's status is named
    """The job was canceled, or aborted because its deadline passed before it started."""


def require_success(job: Job) -> Job:
    """A job that succeeded. Raises `JobFailed` or `JobCanceled` for one that did not."""
    match job.status:
        case Status.SUCCEEDED:
            return job
        case Status.FAILED:
            why = (job.error or {}).get("detail", "no reason was given")
            raise JobFailed(f"job {job.id} failed: {why}", job)
        case Status.ABORTED:
            why = "its deadline passed before it started; submit it again with a later one"
            raise JobCanceled(f"job {job.id} was aborted: {why}", job)
        case Status.CANCELED:
            why = WHY.get(job.document.get("cancel_reason") or "", "on request")
            raise JobCanceled(f"job {job.id} was canceled {why}", job)
        case status:
            raise InvalidInput(f"job {job.id} is {status}; wait for its end first")


WHY = {
    "deadline": "because its deadline passed; submit it again with a later one",
    "abandoned": "because nobody followed its stream any more",
}


@contextmanager
def reaching(call: Call, url: str) -> Iterator[None]:
    """Turn httpx's word for a service at `url` that does not answer `call` into ours."""
    try:
        yield
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise ServiceUnavailable(
            f"the service at {url} does not answer {call.method} {call.path} ({why}); start one "
            "with `fokker up`, or say where it is: FOKKER_URL, url= or --url"
        ) from error


def check(call: Call, response: httpx.Response) -> httpx.Response:
    """A response, read, that is a success. Raises `RequestRefused` or `ServiceUnavailable`."""
    if response.is_success:
        return response
    status, problem = response.status_code, _problem(response)
    if status == HTTPStatus.TOO_MANY_REQUESTS or response.is_server_error:
        retry_after = _retry_after(response.headers)
        detail = str(problem.get("detail") or _phrase(status))
        if retry_after is not None and "again in" not in detail:
            detail += f"; try again in {retry_after:.0f} s"
        message = f"{call.method} {call.path} was answered {status}: {detail}"
        raise ServiceUnavailable(message, status, retry_after)
    raise RequestRefused(status, problem)


def document(call: Call, response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a successful answer."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ServiceUnavailable(
            f"{call.method} {call.path} was answered with something else than a JSON object; "
            f"another service seems to be at {response.request.url.copy_with(path='/')}"
        )
    return answer


def _problem(response: httpx.Response) -> dict[str, Any]:
    if response.is_redirect:
        target = response.headers.get("Location", "elsewhere")
        return {"detail": f"it is at {target} now; give that service's address as the URL"}
    try:
        answer = response.json()
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"detail": response.text[:SHOWN].strip()}


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds of a `Retry-After`: a number, or a date against the answer's own."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    then, now = _date(value), _date(headers.get("Date", "")) or datetime.now(UTC)
    return None if then is None else max(0.0, (then - now).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "An unknown status"
