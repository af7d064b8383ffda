"""What the API answers with and, for the documentation, what the operations take."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from service.jobs.job import Status
from service.jobs.parameters import (
    GenerateParameters,
    InvertParameters,
    LoglikParameters,
    Priority,
)

REF = "#/components/schemas/{model}"
REFUSED = {"s401": "No or an unknown API key", "s503": "The job store is away"}
"""What every route that asks for a key may answer: arguments of `problem_responses`."""


class SignedLinks(BaseModel):
    """Links that need no key, for browsers' `EventSource` and `<img>`; they work for a while."""

    events: str
    artifacts: dict[str, str]


class Links(BaseModel):
    """Where the parts of a job are."""

    self: str
    events: str
    cancel: str
    artifacts: dict[str, str]
    signed: SignedLinks


class QueueView(BaseModel):
    """Where a queued job stands."""

    position: int = Field(description="Jobs of its model that go before it.")
    eta: float | None = Field(description="Seconds until it is done, about; null: no telling.")


class JobView(BaseModel):
    """A job as its owner sees it; times are seconds since 1970."""

    id: str
    operation: Literal["generate", "invert", "loglik"]
    model: str
    digest: str
    parameters: dict[str, Any]
    priority: Priority
    status: Status
    attempt: int
    deadline: float | None
    cancel_requested: bool
    cancel_reason: Literal["requested", "deadline", "abandoned"] | None
    created: float | None
    started: float | None
    finished: float | None
    queue: QueueView | None = Field(description="Null for a job that does not wait.")
    error: dict[str, Any] | None
    result: dict[str, Any] | None
    links: Links


class Jobs(BaseModel):
    """A page of jobs; next: the `cursor` of the following one, null on the last."""

    jobs: list[JobView]
    next: str | None


class ModelView(BaseModel):
    """A model's card, and whether a live worker serves it."""

    model_config = ConfigDict(extra="allow")

    name: str
    digest: str
    shape: list[int] = Field(description="Channels, height, width.")
    levels: int = Field(description="Grey levels of the data: values are 0..levels-1.")
    class_names: list[str] | None = None
    live: bool


class FailedModel(BaseModel):
    """A model whose checkpoint a live worker has and cannot serve."""

    name: str
    reason: str


class Models(BaseModel):
    """All models that a worker ever announced, and those that failed."""

    models: list[ModelView]
    failed: list[FailedModel]


class Health(BaseModel):
    """A process's own state, and which models have a live worker."""

    status: Literal["ok"] = "ok"
    models: dict[str, bool] | None = None


class ProblemDocument(BaseModel):
    """RFC 9457: what went wrong, where, and what to do about it."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, Any]] | None = None


class InvertRequest(InvertParameters):
    """`POST /invert` as JSON alone."""

    images: list[str] = Field(min_length=1, description="Image files, base64.")


class LoglikRequest(LoglikParameters):
    """`POST /loglik` as JSON alone."""

    images: list[str] = Field(min_length=1, description="Image files, base64.")


DOCUMENTED: tuple[type[BaseModel], ...] = (
    GenerateParameters,
    InvertParameters,
    LoglikParameters,
    InvertRequest,
    LoglikRequest,
)


def component_schemas() -> dict[str, Any]:
    """The schemas of the request bodies, which the routes read by hand."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [(m, "validation") for m in DOCUMENTED]
    _, definitions = models_json_schema(models, ref_template=REF)
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def request_body(
    json: type[BaseModel], form: type[BaseModel], files: dict[str, Any], example: dict[str, Any]
) -> dict[str, Any]:
    """`openapi_extra` of an operation that takes JSON, or a form with a `request` part."""
    request = {"$ref": REF.format(model=form.__name__)}
    multipart = {
        "schema": {
            "type": "object",
            "properties": {"request": request, **files},
            "required": ["request"],
        },
        "encoding": {"request": {"contentType": "application/json"}},
    }
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": REF.format(model=json.__name__)}},
        "multipart/form-data": multipart,
    }
    if example:
        content["application/json"]["example"] = example
    return {"requestBody": {"required": True, "content": content}}


def problem_responses(**described: str) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: `problem_responses(s404="no such job")`."""
    schema = {"$ref": REF.format(model=ProblemDocument.__name__)}
    content = {"application/problem+json": {"schema": schema}}
    statuses = {name.removeprefix("s"): text for name, text in described.items()}
    return {int(key): {"description": text, "content": content} for key, text in statuses.items()}
