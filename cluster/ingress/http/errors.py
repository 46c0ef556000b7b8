"""Errors as HTTP answers, in the shape that the clients of each path know."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tandem.errors import STATUS, InternalError, InvalidRequest, ModelNotFound, Status, TandemError, status_of

# The paths of LibreTranslate's API, or what they begin with.
LIBRETRANSLATE: Final = (
    "/translate", "/languages", "/detect", "/suggest", "/frontend/settings", "/download_file", "/spec",
)  # fmt: skip
_LONGEST_MESSAGE: Final = 1000  # characters


def add_error_handlers(app: FastAPI) -> None:
    """Makes every error an answer in the right shape, the ones that FastAPI raises itself included."""
    app.add_exception_handler(TandemError, _answer)
    app.add_exception_handler(Exception, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_http)


def error_body(error: BaseException, path: str) -> dict[str, Any]:
    """The body that says what went wrong. The text of an error that is no TandemError is not shown."""
    if not isinstance(error, TandemError):
        error = InternalError("internal error, see the server's log")
    return _body(str(error), error.field, status_of(error), path)


def _body(message: str, field: str | None, status: Status, path: str) -> dict[str, Any]:
    message = message[:_LONGEST_MESSAGE]  # it may quote the request, and so may the field
    if path.startswith(LIBRETRANSLATE):
        return {"error": message}
    field = field and field[:_LONGEST_MESSAGE]
    return {"error": {"message": message, "type": status.kind, "param": field, "code": status.grpc.lower()}}


def error_answer(error: Exception, path: str) -> Response:
    """The answer that says what went wrong."""
    headers = {}
    if isinstance(error, TandemError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))  # openai-python waits as long
    return _response(error_body(error, path), status_of(error).http, headers)


async def _answer(request: Request, error: Exception) -> Response:
    return error_answer(error, request.url.path)


async def _answer_http(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals: no such path, no such method, malformed parameters."""
    if not isinstance(error, HTTPException):
        error = HTTPException(400, str(error))
    status = STATUS[ModelNotFound if error.status_code == 404 else InvalidRequest]
    message = f"{error.detail}: {request.method} {request.url.path}"
    body = _body(message, None, status, request.url.path)
    return _response(body, error.status_code, error.headers)


def _response(body: dict[str, Any], http: int, headers: Any = None) -> Response:
    headers = dict(headers or {})
    if http == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # ASCII, because a message may quote half a character, which UTF-8 cannot carry.
    return Response(json.dumps(body), http, headers, media_type="application/json")
