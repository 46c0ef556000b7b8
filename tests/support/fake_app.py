"""An ASGI application that says how long a body was, and how many Authorizations came with it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    body = await Request(scope, receive).body()
    told = [value for name, value in scope["headers"] if name == b"authorization"]
    await PlainTextResponse(f"{len(body)} {len(told)}")(scope, receive, send)
