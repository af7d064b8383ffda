"""The OpenAPI document: what FastAPI writes, made true of what the routes do by hand."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from service.api.schemas import ProblemDocument, component_schemas, problem_responses

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
OPEN = {"health"}
"""Tags of the routes that ask for no key."""


def document(app: FastAPI, *, keyed: bool) -> None:
    """Let `/openapi.json` describe `app`, which asks for keys if it is keyed."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(generate(), keyed)
        return generate()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(found: dict[str, Any], keyed: bool) -> None:
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    # FastAPI's own answer to what it refuses is never given.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas[ProblemDocument.__name__] = ProblemDocument.model_json_schema()
    schemas.update(component_schemas())
    if keyed:
        components["securitySchemes"] = SCHEMES
    for operation in _operations(found):
        responses = operation["responses"]
        if "application/json" in responses.get("422", {}).get("content", {}):
            del responses["422"]
        for status, answer in problem_responses(s500="The service failed on it").items():
            responses.setdefault(str(status), answer)
        for parameter in operation.get("parameters", ()):
            _never_null(parameter["schema"])
        if keyed and not OPEN & set(operation.get("tags", ())):
            operation["security"] = [{name: []} for name in SCHEMES]


def _never_null(schema: dict[str, Any]) -> None:
    """A query or a header leaves out what it does not say; it has no null."""
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    schema.update(*kinds)


def _operations(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in found["paths"].values():
        yield from path.values()
