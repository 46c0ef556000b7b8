"""Lets an ingress replica that is replaced listen on the same HTTP port again, and answer from the first
request on."""

from __future__ import annotations

import asyncio
import socket
import types
from typing import Any

from ray.serve._private import http_util
from ray.serve._private import replica as serve_replica

_POLL_S = 0.01


class _ReusableSocket(socket.socket):
    """A socket that binds to an address which had connections shortly before. Another listener on the address
    still excludes it."""

    def bind(self, address: Any) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)


def reuse_http_port() -> None:
    """Makes Serve bind HTTP ports with SO_REUSEADDR. Call it in an ingress replica's constructor, before
    Serve binds the port.

    Serve binds without it and has no option for it. For a minute after a replica has ended, the kernel
    remembers its connections and refuses the port; Serve then takes the next one, and never this one again.
    The address that clients know would be dead for good. (gRPC's own server does set the option.)
    """
    own = {**vars(socket), "socket": _ReusableSocket}
    http_util.socket = types.SimpleNamespace(**own)  # type: ignore[attr-defined, assignment]


def hold_early_requests() -> None:
    """Makes Serve's HTTP server in this replica hold requests until the replica is initialized. Call it in an
    ingress replica's constructor.

    Serve listens a moment before that, while it asks the controller for gRPC's port, and answers what comes
    then with a bare 500: its handler asserts that the replica is initialized.
    """
    start = http_util.start_asgi_http_server

    async def start_held(handler: Any, *arguments: Any, **options: Any) -> Any:
        replica = handler.__self__

        async def held(scope: Any, receive: Any, send: Any) -> None:
            while not replica._user_callable_initialized:
                await asyncio.sleep(_POLL_S)
            await handler(scope, receive, send)

        return await start(held, *arguments, **options)

    serve_replica.start_asgi_http_server = start_held  # type: ignore[attr-defined, assignment]
