"""HTTP bodies: read within the limit, parsed, and watched for the client going away; the options in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final, TypeVar, cast, get_type_hints

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from tandem.errors import Cancelled, DeadlineExceeded, InvalidRequest, RequestTooLarge
from tandem.inputs import RequestOptions
from tandem.limits import Limits
from tandem.params import invalid
from tandem.workers.requests.media.data_uri import bytes_besides

T = TypeVar("T")
BodyT = TypeVar("BodyT", bound=BaseModel)

# What the validator calls the fields of a request, in the words of the APIs that take a `prompt`.
FIELDS: Final = {
    "prompt_token_ids": "prompt",
    ".prompt_token_ids": "",
    "encoder_prompt": "prompt",
    "request_id": "x-request-id",
}

# The options that a body may set; a request's id is in a header.
_OPTIONS: Final = {
    name: hint for name, hint in get_type_hints(RequestOptions).items() if name != "request_id"
}
Options: Final[type[BaseModel]] = create_model(  # type: ignore[call-overload]
    "Options",
    __config__=ConfigDict(strict=True, allow_inf_nan=False),
    **{name: (hint, None) for name, hint in _OPTIONS.items()},
)


async def read_json(request: Request, limits: Limits, *, media: bool = False) -> dict[str, Any]:
    """The body, a JSON object. Raises InvalidRequest, RequestTooLarge beyond `limits.message_bytes`,
    DeadlineExceeded beyond `limits.body_s`.

    media: it may have files as `data:` URIs, which are not counted.
    """
    if media_type(request) != "application/json":
        raise InvalidRequest("must be application/json", field="content-type")
    most = limits.message_bytes
    body = await read_body(request, limits, limits.base64_request_bytes if media else most)
    if len(body) > most and (size := bytes_besides(body)) > most:
        raise RequestTooLarge(f"the body has {size} bytes besides its media, the limit is {most}")
    return json_object(body)


def take_options(request: Request, body: dict[str, Any]) -> RequestOptions:
    """Takes the request options out of a body, by name. Raises InvalidRequest, naming the field, for a value
    of a wrong type."""
    given = {name: body.pop(name) for name in _OPTIONS if name in body}
    validated(Options, given)
    return cast(RequestOptions, {**given, "request_id": request.headers.get("x-request-id")})


def validated(kind: type[BodyT], values: dict[str, Any]) -> BodyT:
    """The values as this model. Raises InvalidRequest, naming the field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits `work`, whose request has been read; cancels it and raises Cancelled if the client goes."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client has gone")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def media_type(request: Request) -> str:
    """What kind of body a request says it has, in lower case, without parameters; "" where it says none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limits: Limits, limit: int) -> bytes:
    """The whole body. Raises what `body_chunks` raises."""
    return b"".join([chunk async for chunk in body_chunks(request, limits, limit)])


async def body_chunks(request: Request, limits: Limits, limit: int) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises RequestTooLarge beyond `limit` bytes, as soon as it is announced or sent,
    and DeadlineExceeded beyond `limits.body_s`."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise RequestTooLarge(f"the body has {announced} bytes, the limit is {limit}")
    size, stream = 0, aiter(request.stream())
    deadline = asyncio.get_running_loop().time() + limits.body_s
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(f"the body has not arrived within {limits.body_s:g} s") from None
        except ClientDisconnect:
            raise Cancelled("the client has gone") from None
        size += len(chunk)
        if size > limit:
            raise RequestTooLarge(f"the body has more than {limit} bytes")
        yield chunk


def json_object(body: bytes, *, no_object: str | None = None) -> dict[str, Any]:
    """A body as a JSON object. Raises InvalidRequest for anything else, for other JSON with the words
    `no_object`, where they are given."""
    try:
        value = from_json(body)  # NaN passes here, to be refused where its field is known
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(no_object or f"the body must be a JSON object, got {type(value).__name__}")
    return value
