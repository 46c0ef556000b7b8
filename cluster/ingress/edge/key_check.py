"""The check of keys around the whole HTTP application, WebSockets included: whatever has no key goes no
further than here, whether or not there is a route for it."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any, Final
from urllib.parse import parse_qs

from fastapi import Request
from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.ingress.edge.guard import key_of
from tandem.cluster.ingress.http.errors import LIBRETRANSLATE, error_answer
from tandem.cluster.ingress.http.forms import read_fields
from tandem.cluster.ingress.http.page.routes import FILES
from tandem.cluster.ingress.service import Service
from tandem.errors import InvalidRequest, Overloaded, TandemError

_HEALTH: Final = "/health"
_READ: Final = ("GET", "HEAD")
_BODIES: Final = ("/translate", "/translate_file", "/detect", "/suggest")  # may have the key in their bodies
_FILES: Final = "/translate_file"
# OpenAI's way for a browser, which can set no headers of a WebSocket.
_SUBPROTOCOL: Final = "openai-insecure-api-key."
_ENCODED: Final = "tandem-api-key."  # the page's, in hexadecimal: such a name cannot have every character
_POLICY_VIOLATION: Final = 1008  # of RFC 6455
_READ_AHEAD: Final = 4  # times the longest request: what the bodies may have that are read for their keys


class KeyCheck:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        # The only paths that anybody may read: the page's files say nothing of the model.
        self._open = frozenset([_HEALTH, *FILES]) if service.config.ui else frozenset([_HEALTH])
        self._read_ahead = 0  # bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        guard, path = self._service.guard, get_route_path(scope)
        public = scope["type"] == "http" and path in self._open and scope["method"] in _READ
        with ExitStack() as stack:
            try:
                key = None
                if guard.closed and not public:
                    key = key_of(scope["headers"]) or _of_protocols(scope) or _of_query(scope, path)
                    if key is None and path in _BODIES and scope["method"] == "POST":
                        body = _Body(receive)
                        receive = body.receive
                        key = await self._of_body(scope, body, path, stack)
                stack.enter_context(guard.admit(key, public=public))
            except TandemError as error:
                self._service.metrics.turned_away("http", "-", error)
                await _refuse(error, scope, receive, send)
                return
            if scope["type"] == "websocket":
                receive = _until_gone(receive, stack)
            await self._app(scope, receive, send)

    async def _of_body(self, scope: Scope, body: _Body, path: str, stack: ExitStack) -> str | None:
        """The `api_key` in a body, which is then read again. Raises RequestTooLarge, DeadlineExceeded;
        Overloaded where too many such bodies are on their way."""
        limits = self._service.config.limits
        most = limits.media_bytes if path == _FILES else limits.message_bytes
        if self._read_ahead + most > _READ_AHEAD * limits.request_bytes:
            raise Overloaded(
                "too many bodies are read for their keys; send the key in a header", refused="media"
            )
        self._read_ahead += most
        stack.callback(self._give_back, most)
        try:
            fields = await read_fields(Request(scope, body.read), limits, most)
        except InvalidRequest:
            return None  # who has no key is not told what is wrong
        key = fields.values.get("api_key")
        return key if isinstance(key, str) and key else None

    def _give_back(self, size: int) -> None:
        self._read_ahead -= size


class _Body:
    """A request's messages, which are read twice."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []

    async def read(self) -> Message:
        message = await self._receive()
        self._messages.append(message)
        return message

    async def receive(self) -> Message:
        return self._messages.pop(0) if self._messages else await self._receive()


def _until_gone(receive: Receive, call: ExitStack) -> Receive:
    """Ends a WebSocket's call as its client goes, and not when all that it began has ended: the client's next
    call may follow at once."""

    async def received() -> Message:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            call.close()
        return message

    return received


def _of_protocols(scope: Scope) -> str | None:
    for one in scope.get("subprotocols", []):
        if one.startswith(_SUBPROTOCOL):
            return str(one.removeprefix(_SUBPROTOCOL))
        if one.startswith(_ENCODED):
            with suppress(ValueError):
                return bytes.fromhex(one.removeprefix(_ENCODED)).decode()
    return None


def _of_query(scope: Scope, path: str) -> str | None:
    """LibreTranslate's only: addresses end up in logs."""
    if scope["type"] != "http" or not path.startswith(LIBRETRANSLATE):
        return None
    return next(iter(parse_qs(scope["query_string"].decode("latin-1")).get("api_key", [])), None)


async def _refuse(error: TandemError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await error_answer(error, scope["path"])(scope, receive, send)
    elif "websocket.http.response" in scope.get("extensions", {}):
        answer = error_answer(error, scope["path"])

        async def renamed(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        await answer({**scope, "type": "http", "method": "GET"}, receive, renamed)
    else:
        closing: dict[str, Any] = {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": str(error)}
        await send(closing)
