"""Request bodies: JSON alone, or multipart with a `request` part and files, up to a size."""

import base64
import binascii
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import anyio
from fastapi import Request
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.api.problems import FieldError, Problem, invalid

JSON = "application/json"
MULTIPART = "multipart/form-data"
MAX_DOCUMENT = 2**20  # bytes of the JSON request without its images
PIECE = 2**18  # bytes parsed at a time, between which other requests get their turn


@dataclass(frozen=True)
class Upload:
    """A request body taken apart: the JSON document, the images and the latents beside it."""

    request: dict[str, Any]
    images: list[bytes]
    latents: bytes | None = None


async def read_upload(request: Request, max_body: int, max_files: int) -> Upload:
    """Read the body of an operation. Raises a `Problem`: 400, 413, 415 or 422."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == JSON:
        return _json_upload(await _read_body(request, max_body))
    if content_type == MULTIPART:
        return await _multipart_upload(request, await _read_body(request, max_body), max_files)
    raise Problem(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f'content type "{content_type}" is not read here; send {JSON} or {MULTIPART}',
        headers={"Accept": f"{JSON}, {MULTIPART}"},
    )


async def _read_body(request: Request, max_body: int) -> bytes:
    too_large = Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than the {max_body} bytes allowed; send fewer images a request",
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_body:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body:
                raise too_large
    except ClientDisconnect as gone:
        raise Problem(HTTPStatus.BAD_REQUEST, "the body ended early") from gone
    return bytes(body)


def parse_document(text: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises a `Problem` 400 if it is not JSON, 422 if not an object."""
    try:
        document = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise invalid(FieldError("request", f"a JSON object is needed, not a {kind}"))
    return document


def _json_upload(body: bytes) -> Upload:
    document = parse_document(body)
    encoded = document.pop("images", [])
    if not isinstance(encoded, list):
        raise invalid(FieldError("images", "a list of base64 strings is needed"))
    return Upload(document, [_from_base64(index, text) for index, text in enumerate(encoded)])


def _from_base64(index: int, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        detail = f"not base64 ({error}); encode the image file's bytes"
        raise invalid(FieldError(f"images[{index}]", detail)) from error


async def _multipart_upload(request: Request, body: bytes, max_files: int) -> Upload:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]
            await anyio.sleep(0)

    # The parser takes a body that breaks off for one that ends, and drops its last part.
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    if not body.rstrip(b"\r\n \t").endswith(b"--" + boundary + b"--"):
        raise Problem(
            HTTPStatus.BAD_REQUEST,
            "the multipart body breaks off before its closing boundary; send it again, whole",
        )
    try:
        parser = MultiPartParser(
            request.headers, pieces(), max_files=max_files, max_fields=max_files
        )
        form = await parser.parse()
    except MultiPartException as error:
        detail = f"the multipart body cannot be read: {error.message}"
        raise Problem(HTTPStatus.BAD_REQUEST, detail) from error
    parts: dict[str, list[bytes]] = {"request": [], "image": [], "latents": []}
    try:
        for name, value in form.multi_items():
            if name not in parts:
                known = ", ".join(parts)
                raise invalid(FieldError(name, f"no such part; the parts are: {known}"))
            if isinstance(value, UploadFile):
                parts[name].append(await value.read())
            elif name == "request":
                parts[name].append(value.encode())
            else:
                detail = 'send it as a file: its Content-Disposition needs a "filename"'
                raise invalid(FieldError(name, detail))
    finally:
        await form.close()
    if len(parts["request"]) != 1:
        detail = f"exactly one part holds the JSON request, given {len(parts['request'])}"
        raise invalid(FieldError("request", detail))
    if len(parts["latents"]) > 1:
        detail = f"at most one part holds latents, given {len(parts['latents'])}"
        raise invalid(FieldError("latents", detail))
    latents = parts["latents"][0] if parts["latents"] else None
    if len(parts["request"][0]) > MAX_DOCUMENT:
        detail = f"the JSON request has more than {MAX_DOCUMENT} bytes; files go into other parts"
        raise invalid(FieldError("request", detail))
    return Upload(parse_document(parts["request"][0]), parts["image"], latents)
