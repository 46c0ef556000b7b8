"""Keeps Serve's gRPC servers to the address that HTTP is bound to."""

from __future__ import annotations

import os

from ray.serve._private.grpc_util import gRPCGenericServer

HOST = "TANDEM_GRPC_HOST"  # the variable that has the address, in the environment of Serve's processes


def add_address(grpc_server: gRPCGenericServer, server_address: str) -> None:
    """Binds to the address in `HOST`, and to the port of the one that Serve would bind to. Serve has an
    option for HTTP's address only and binds gRPC to all interfaces."""
    grpc_server.add_insecure_port(f"{os.environ[HOST]}:{server_address.rpartition(':')[2]}")
