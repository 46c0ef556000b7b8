"""`/metrics` on a port of its own, without a key: whoever watches a server need not be let into it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from tandem.cluster.ingress.edge.bounded_http import BoundedHttp, Connections
from tandem.cluster.listening import Listening
from tandem.errors import Unavailable

_PORTS: Final = 100  # tried, from the one that is asked for on: a machine may have several ingress replicas
_KEEP_ALIVE_S: Final = 90


async def serve_metrics(
    host: str, port: int, listening: Listening, text: Callable[[], bytes]
) -> asyncio.Server:
    """Listens until it is closed. Raises Unavailable where none of the ports is free."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/metrics" and scope["method"] in ("GET", "HEAD"):
            response: Response = Response(text(), media_type=CONTENT_TYPE_LATEST)
        else:
            response = PlainTextResponse("see /metrics\n", 404)
        await response(scope, receive, send)

    config = uvicorn.Config(
        answer, lifespan="off", access_log=False, log_config=None, ws="none", timeout_keep_alive=_KEEP_ALIVE_S
    )
    state, connections = ServerState(), Connections()
    return await asyncio.get_running_loop().create_server(
        lambda: BoundedHttp(listening, connections, config=config, server_state=state, app_state={}),
        sock=_bound(host, port),
    )


def _bound(host: str, first: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in range(first, first + _PORTS):
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError, OverflowError):
            found.bind((host, port))
            return found
        found.close()
    raise Unavailable(f"no port from {first} on is free for the metrics")
