"""Server-sent events as an HTTP answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import Response
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from tandem.cluster.ingress.http.body import unless_disconnected
from tandem.cluster.ingress.http.errors import error_body


class EventStream(Response):
    """Sends JSON values as events, then `[DONE]`; after an error, the error is the last event instead.

    Unlike Starlette's StreamingResponse it watches for the client going away whatever ASGI version the server
    claims, and closes `resources` in every case, even if nothing was sent.
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncIterator[object], resources: AsyncExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._values, self._resources = values, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._resources:
                await unless_disconnected(receive, self._send(send, scope["path"]))
        except Exception:
            # `resources` have recorded the error, and the client, unless it has gone, was told. After the
            # status line there is nothing else to answer with.
            pass

    async def _send(self, send: Send, path: str) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        failure: Exception | None = None
        try:
            async for value in self._values:
                await _event(send, to_json(value))
            await _event(send, b"[DONE]")
        except Exception as error:
            failure = error
            await _event(send, to_json(error_body(error, path)))
        await send({"type": "http.response.body", "body": b""})
        if failure is not None:
            raise failure


async def _event(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
