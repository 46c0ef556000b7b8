"""Lets an ingress replica that comes back listen on its former HTTP port."""

from __future__ import annotations

import socket
import types
from typing import Any

from ray.serve._private import http_util


class _ReusableSocket(socket.socket):
    """A socket whose address may have had connections shortly before. Another listener still excludes
    it."""

    def bind(self, address: Any) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)


def reuse_http_port() -> None:
    """To be called in an ingress replica before Serve binds its port, that is in its constructor.

    Ray 2.60 binds it without SO_REUSEADDR. For a minute after a replica has ended, the kernel remembers
    its connections and refuses; Serve then takes the next port, and never again this one. The address
    that clients know would be dead for good. (gRPC's own server does set it.)
    """
    own = {**vars(socket), "socket": _ReusableSocket}
    http_util.socket = types.SimpleNamespace(**own)  # type: ignore[attr-defined, assignment]
