"""The client of a Fokker service: `Client`, and `AsyncClient` for asyncio and trio.

    with Client("http://127.0.0.1:8000") as client:
        drawn = client.generate("digits", count=4, seed=7, class_label=3)
        drawn.images[0].save("three.png")

It needs no torch and nothing of the server. Both clients share what a call is (`calls`,
`submission`), what an answer means (`errors`, `job`, `results`, `events`) and when to try again
(`retries`); they differ in how they wait.
"""

from service.client.asynchronous import AsyncClient
from service.client.errors import (
    ClientError,
    InvalidInput,
    JobCanceled,
    JobError,
    JobFailed,
    RequestRefused,
    ServiceUnavailable,
)
from service.client.events import Event
from service.client.job import Job
from service.client.results import Generated, Inverted, LogLikelihoods, Result
from service.client.sync import Client

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Event",
    "Generated",
    "InvalidInput",
    "Inverted",
    "Job",
    "JobCanceled",
    "JobError",
    "JobFailed",
    "LogLikelihoods",
    "RequestRefused",
    "Result",
    "ServiceUnavailable",
]
