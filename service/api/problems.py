"""Errors as RFC 9457 problem documents, which name the field and the fix."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.api.wording import say
from service.jobs.errors import ArtifactsError, StoreError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5  # seconds
SHOWN = 3  # errors spelled out in `detail`
LISTED = 20  # errors in `errors`: an answer must not be larger than the mistake
LONGEST = 200  # characters of anything that was given and is shown again

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_ABSENT: Any = object()


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field, and what was given there if that is short enough to show."""

    field: str
    detail: str
    given: Any = _ABSENT

    def document(self) -> dict[str, Any]:
        """The entry of a problem's `errors`."""
        entry: dict[str, Any] = {"field": self.field[:LONGEST], "detail": self.detail[:1000]}
        match self.given:
            case str():
                entry["given"] = self.given[:LONGEST]
            case int() if abs(self.given) >= 10**LONGEST:
                pass
            case float() if not math.isfinite(self.given):
                pass  # JSON has no word for it
            case bool() | int() | float() | None:
                entry["given"] = self.given
        return entry


@dataclass(eq=False)
class Problem(Exception):  # noqa: N818 - named as in the RFC
    """An answer other than success; `detail` says what was given, allowed, and what to do."""

    status: int
    detail: str
    errors: Sequence[FieldError] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def response(self, request: Request) -> JSONResponse:
        """The problem document as a response to `request`."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": request.url.path,
            **self.extra,
        }
        if self.errors:
            document["errors"] = [error.document() for error in self.errors[:LISTED]]
        headers = dict(self.headers)
        return JSONResponse(document, self.status, headers, media_type=MEDIA_TYPE)


def invalid(*errors: FieldError) -> Problem:
    """422 for these fields."""
    shown = "; ".join(f"{error.field[:LONGEST]}: {error.detail[:1000]}" for error in errors[:SHOWN])
    hidden = f"; and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, shown + hidden, errors)


def not_found(detail: str) -> Problem:
    """404."""
    return Problem(HTTPStatus.NOT_FOUND, detail)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A clause that lists the known names, the nearest one first proposed."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"known: {', '.join(names)}{hint}"


def from_pydantic(error: ValidationError, body: Any) -> Problem:
    """422 for what pydantic found wrong with `body`."""
    entries = error.errors(include_url=False)
    found = [_field_error(entry, body) for entry in entries[:LISTED]]
    return invalid(*found, *[found[-1]] * (len(entries) - len(found)))


def _field_error(entry: Mapping[str, Any], body: Any) -> FieldError:
    name = field_name(entry["loc"], body)
    context = entry.get("ctx", {})
    match entry["type"]:
        case "union_tag_invalid":
            discriminator = context["discriminator"].strip("'")
            known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
            tag = str(context["tag"])
            detail = f'"{tag}" is unknown; {did_you_mean(tag, known)}'
            return FieldError(f"{name}.{discriminator}", detail, tag)
        case "union_tag_not_found":
            discriminator = context["discriminator"].strip("'")
            return FieldError(f"{name}.{discriminator}", "missing; say which one is meant")
        case "missing":
            return FieldError(name, "missing; this field is required")
        case "extra_forbidden":
            return FieldError(
                name, "no such field here; remove it or check its spelling", entry["input"]
            )
        case "value_error":
            return FieldError(name, str(context["error"]), entry["input"])
        case kind:
            given = entry.get("input")
            return FieldError(name, say(kind, context, given, entry["msg"]), given)


def field_name(location: Sequence[int | str], body: Any) -> str:
    """`sampler.steps`, `seeds[1]`: pydantic's location without the tags of its unions."""
    name, here = "", body
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
            here = here[part] if isinstance(here, list) and part < len(here) else None
            continue
        if (
            isinstance(here, dict)
            and part not in here
            and part
            in (
                here.get("name"),
                here.get("kind"),
            )
        ):
            continue
        name += f".{part}" if name else part
        here = here.get(part) if isinstance(here, dict) else None
    return name or "request"


def _methods(request: Request) -> list[str]:
    """What the path of a request can be asked with; a route's own `Allow` names only its own."""
    found = {
        method
        for method in METHODS
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return error.response(request)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        detail, headers = str(error.detail), error.headers or {}
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}; /docs lists what there is"
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_methods(request))
            asked = request.scope.get("asked", request.method)
            detail = f"{asked} is not allowed at {request.url.path}; use {allowed}"
            headers = {"Allow": allowed}
        return Problem(error.status_code, detail, headers=headers).response(request)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        # A location begins with where the parameter is: query, header, path.
        errors = [
            _field_error({**entry, "loc": entry["loc"][1:]}, None) for entry in error.errors()
        ]
        return invalid(*errors).response(request)

    @app.exception_handler(StoreError)
    async def away(request: Request, error: StoreError) -> JSONResponse:
        # Of the job store only the log says more; of artifacts the message is made for users.
        said = "the job store cannot take or give anything now"
        if isinstance(error, ArtifactsError):
            said = f"{error}"
        detail = f"{said}; try again in {RETRY_AFTER} seconds"
        headers = {"Retry-After": str(RETRY_AFTER)}
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return Problem(status, detail, headers=headers).response(request)
