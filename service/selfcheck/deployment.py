"""The service that is checked: a client of it, and bare HTTP for what the client does by itself."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from service.client import Client, ClientError, Generated, Inverted, Job, LogLikelihoods
from service.client.calls import Call
from service.client.connection import Connection
from service.client.errors import reaching
from service.selfcheck.mixture import MODEL

TIMEOUT = 60.0


@dataclass(frozen=True)
class Deployment:
    """A service, and the jobs that were submitted to it here. All requests name the mixture."""

    client: Client
    http: httpx.Client
    submitted: list[Job] = field(default_factory=list)

    @property
    def asks_for_a_key(self) -> bool:
        """Whether a key was given, which the service then should insist on."""
        return "Authorization" in self.http.headers

    def submit(self, operation: str, request: Mapping[str, Any], **files: Any) -> Job:
        """Submit a job, as `Client.submit` does."""
        return self.note(self.client.submit(operation, {"model": MODEL} | dict(request), **files))

    def note(self, job: Job) -> Job:
        """Keep in mind a job that is to be removed in the end."""
        self.submitted.append(job)
        return job

    def generate(self, request: Mapping[str, Any], **files: Any) -> Generated:
        """Draw or decode images, and wait for them."""
        result = self.client.result(self.submit("generate", request, **files))
        assert isinstance(result, Generated)
        return result

    def invert(self, request: Mapping[str, Any], images: Any) -> Inverted:
        """Encode images, and wait for their latents."""
        result = self.client.result(self.submit("invert", request, images=images))
        assert isinstance(result, Inverted)
        return result

    def loglik(self, request: Mapping[str, Any], images: Any) -> LogLikelihoods:
        """Ask for likelihoods, and wait for them."""
        result = self.client.result(self.submit("loglik", request, images=images))
        assert isinstance(result, LogLikelihoods)
        return result

    def send(
        self, method: str, path: str, *, keyless: bool = False, **given: Any
    ) -> httpx.Response:
        """Send one request as it is, once. Raises ServiceUnavailable if nobody answers."""
        request = self.http.build_request(method, path, **given)
        if keyless:
            request.headers.pop("Authorization", None)
        with reaching(Call(method, path), self.client.url):
            return self.http.send(request)


@contextmanager
def reach(url: str | None, api_key: str | None) -> Iterator[Deployment]:
    """Give a deployment, as `Client` finds it; the jobs that are left are removed in the end."""
    connection = Connection(url, api_key, TIMEOUT)
    with ExitStack() as stack:
        client = stack.enter_context(Client(url, api_key=api_key, timeout=TIMEOUT))
        http = stack.enter_context(httpx.Client(**connection.options))
        deployment = Deployment(client, http)
        try:
            yield deployment
        finally:
            _remove(deployment)


def _remove(deployment: Deployment) -> None:
    """Once each, and no more: why it does not work, the check has said already."""
    try:
        for job in deployment.submitted:
            deployment.send("DELETE", f"/jobs/{job.id}")
    except ClientError:
        return
