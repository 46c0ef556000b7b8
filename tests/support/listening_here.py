"""Serve's HTTP and gRPC servers in this process, prepared as in a proxy or an ingress replica: no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from ray.serve._private import default_impl, grpc_util, http_util, proxy
from ray.serve._private.grpc_util import start_grpc_server
from ray.serve.config import HTTPOptions, gRPCOptions
from serving import free_port
from starlette.types import ASGIApp

from tandem.cluster.listening import Listening


@contextlib.contextmanager
def prepared(listening: Listening) -> Iterator[Callable[[HTTPOptions], HTTPOptions]]:
    """What Serve does before it listens; undone afterwards. Yields HTTP's options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)
        patch.setattr(http_util, "uvicorn", http_util.uvicorn)
        for name in ("get_http_response_status", "get_grpc_response_status"):
            patch.setattr(proxy, name, getattr(proxy, name))
        patch.setattr(grpc_util, "DEFAULT_GRPC_SERVER_OPTIONS", [*grpc_util.DEFAULT_GRPC_SERVER_OPTIONS])
        for name, value in listening.environment().items():
            patch.setenv(name, value)
            patch.setattr(http_util, name, value, raising=False)  # Serve reads it when it is imported
        yield http_util.configure_http_middlewares


@contextlib.asynccontextmanager
async def http_server(app: ASGIApp, listening: Listening, **options: Any) -> AsyncIterator[int]:
    """The port of Serve's HTTP server on 127.0.0.1."""
    with prepared(listening) as configure:
        given = HTTPOptions(host="127.0.0.1", port=free_port(), **options)
        task, server = await http_util.start_asgi_http_server(
            app, configure(given), event_loop=asyncio.get_running_loop()
        )
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield given.port
        finally:
            server.force_exit = server.should_exit = True
            await task


@contextlib.asynccontextmanager
async def grpc_server(
    listening: Listening, handlers: Callable[..., Any], *services: str
) -> AsyncIterator[int]:
    """The port of Serve's gRPC server. `handlers` makes the handler of a method, as Serve's own does;
    `services` are what Serve is given."""
    with prepared(listening) as configure:
        configure(HTTPOptions())
        options = gRPCOptions(port=free_port(), grpc_servicer_functions=list(services))
        task, server = await start_grpc_server(handlers, options, event_loop=asyncio.get_running_loop())
        try:
            yield options.port
        finally:
            await server.stop(None)
            await task
