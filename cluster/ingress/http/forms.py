"""A request's fields: its query's, and those of a body that is JSON, a URL-encoded or a multipart form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from tandem.cluster.ingress.http.body import body_chunks, json_object, media_type, read_body
from tandem.errors import InvalidRequest
from tandem.limits import Limits

_FIELDS: Final = 1000  # at most so many, repeated ones included
_FILES: Final = 8
_NAMES: Final = "application/json, application/x-www-form-urlencoded or multipart/form-data"


@dataclass(frozen=True, slots=True)
class FormFile:
    """A file in a multipart form."""

    name: str  # as the client calls it
    data: bytes


@dataclass(frozen=True, slots=True)
class Fields:
    """Values by name: whatever JSON has; a form's texts and files, in a list where a name is repeated."""

    values: dict[str, Any]
    typed: bool  # from JSON, where numbers and lists are what they are


async def read_fields(
    request: Request, limits: Limits, limit: int, *, no_object: str | None = None
) -> Fields:
    """The fields of a request; those of its query come before those of a form. `no_object` is for
    `json_object`.

    Raises InvalidRequest for a body of another kind, RequestTooLarge beyond `limit` bytes and
    DeadlineExceeded beyond `limits.body_s`.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        pairs = await _multipart(request, limits, limit)
        return Fields({**_grouped(pairs), **_grouped(request.query_params.multi_items())}, typed=False)
    body = await read_body(request, limits, limit)
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return Fields(json_object(body, no_object=no_object), typed=True)
    if kind == "application/x-www-form-urlencoded":
        pairs = _url_encoded(body)
    elif not body:
        pairs = []
    else:
        raise InvalidRequest(f"must be {_NAMES}", field="content-type")
    return Fields({**_grouped(pairs), **_grouped(request.query_params.multi_items())}, typed=False)


def _url_encoded(body: bytes) -> list[tuple[str, Any]]:
    try:
        return list(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS))
    except ValueError as error:  # UnicodeDecodeError is one
        raise InvalidRequest(f"the body is not a form: {error}") from None


async def _multipart(request: Request, limits: Limits, limit: int) -> list[tuple[str, Any]]:
    """Files are read to the disk as they come."""
    parser = MultiPartParser(
        request.headers,
        body_chunks(request, limits, limit),
        max_files=_FILES,
        max_fields=_FIELDS,
        max_part_size=limits.message_bytes,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError) as error:
        raise InvalidRequest(f"the body is not a form: {getattr(error, 'message', error)}") from None
    try:
        return [
            (
                name,
                FormFile(value.filename or "", await value.read())
                if isinstance(value, UploadFile)
                else value,
            )
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()


def _grouped(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, list[Any]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}
