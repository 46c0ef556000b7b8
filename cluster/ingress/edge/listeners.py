"""What every process of Serve's does before it listens, a proxy and in direct mode an ingress replica."""

from __future__ import annotations

import functools
import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path
from typing import Final

import grpc
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tandem.cluster.ingress.edge.bounded_http import BoundedHttp
from tandem.cluster.ingress.http.errors import error_body
from tandem.cluster.listening import Listening
from tandem.cluster.serve_compat.grpc_address import bind_grpc
from tandem.cluster.serve_compat.grpc_handlers import ARRIVED, shed_no_calls
from tandem.cluster.serve_compat.http_protocol import use_http_protocol
from tandem.errors import ModelNotFound

_ROUTES: Final = "/-/routes"  # where Serve tells everybody of its applications


def prepare() -> list[Middleware]:
    """Bounds what HTTP connections may send before a body and binds gRPC to its address, as the environment
    says; both note when a call comes. Serve calls it, and puts the middlewares before everything it does
    itself."""
    listening = Listening.of_environment()
    use_http_protocol(functools.partial(BoundedHttp, listening, Counter[str]()))
    bind_grpc(listening.grpc_host, grpc_credentials(listening))
    shed_no_calls()
    return [Middleware(Arrivals), Middleware(_WithoutServesRoutes)]


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
