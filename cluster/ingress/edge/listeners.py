"""What every process of Serve's does before it listens, a proxy and in direct mode an ingress replica."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Final

import grpc
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem.cluster.ingress.edge.bounded_http import BoundedHttp, Connections
from tandem.cluster.ingress.http.errors import error_answer, error_body
from tandem.cluster.listening import Listening
from tandem.cluster.serve_compat.dead_replicas import answer_unavailable
from tandem.cluster.serve_compat.grpc_address import bind_grpc
from tandem.cluster.serve_compat.grpc_handlers import ARRIVED, shed_no_calls
from tandem.cluster.serve_compat.http_protocol import use_http_protocol
from tandem.cluster.serve_compat.refusals import quiet_refusals
from tandem.errors import ModelNotFound, Unavailable

_ROUTES: Final = "/-/routes"  # where Serve tells everybody of its applications
_GONE: Final = Unavailable("the ingress replica that had the request is gone", retry_after_s=1.0)


def prepare() -> list[Middleware]:
    """Bounds what HTTP connections may send before a body and binds gRPC to its address, as the environment
    says; both note when a call comes, say that a replica is gone as the application would, and log no
    refusals. Serve calls it, and puts the middlewares before everything it does itself."""
    listening = Listening.of_environment()
    use_http_protocol(functools.partial(BoundedHttp, listening, Connections()))
    bind_grpc(listening.grpc_host, grpc_credentials(listening))
    shed_no_calls()
    quiet_refusals()
    answer_unavailable(str(_GONE))
    return [Middleware(Arrivals), Middleware(_WithoutServesRoutes), Middleware(InOurShape)]


def grpc_credentials(listening: Listening) -> grpc.ServerCredentials | None:
    """TLS for gRPC, where there is a certificate. Raises OSError where its files cannot be read."""
    if not listening.tls_cert:
        return None
    pair = Path(listening.tls_key).read_bytes(), Path(listening.tls_cert).read_bytes()
    return grpc.ssl_server_credentials([pair])


class Arrivals:
    """Notes in the scope when the head of an HTTP request was read: uvicorn calls the application at once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ARRIVED] = time.time()
        await self._app(scope, receive, send)


class _WithoutServesRoutes:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == _ROUTES:
            body = error_body(ModelNotFound(f"no such path: {_ROUTES}"), _ROUTES)
            await JSONResponse(body, HTTPStatus.NOT_FOUND)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class InOurShape:
    """Puts the bare text with which Serve answers that there is no replica into the shape that the clients of
    each path know."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        bare = False

        async def changed(message: Message) -> None:
            nonlocal bare
            if message["type"] == "http.response.start":
                bare = message["status"] == HTTPStatus.SERVICE_UNAVAILABLE and _is_text(message["headers"])
            if not bare:
                await send(message)
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                await error_answer(_GONE, scope["path"])(scope, receive, send)

        await self._app(scope, receive, changed)


def _is_text(headers: Iterable[Iterable[bytes]]) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/plain") for name, value in headers)
