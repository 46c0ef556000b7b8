"""Lets an ingress replica that is replaced listen on the same HTTP port again."""

from __future__ import annotations

import socket
import types
from typing import Any

from ray.serve._private import http_util


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
