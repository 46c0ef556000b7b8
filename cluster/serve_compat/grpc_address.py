"""Keeps Serve's gRPC servers to the address that HTTP is bound to."""

from __future__ import annotations

import os

from ray.serve._private import default_impl
from ray.serve._private.grpc_util import gRPCGenericServer

HOST = "TANDEM_GRPC_HOST"  # the address, in the environment of Serve's processes
# Serve calls this in each process that is to listen, before it does: a proxy, and in direct mode an ingress
# replica.
CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tandem.cluster.serve_compat.grpc_address.bind_grpc"}


def settings(host: str) -> dict[str, str]:
    """The environment with which Serve's gRPC servers bind to `host`."""
    return {HOST: host, **CALLBACK}


def bind_grpc() -> None:
    """Ray 2.60 binds gRPC to all interfaces, wherever HTTP is bound to."""
    host = os.environ[HOST]

    def add(grpc_server: gRPCGenericServer, server_address: str) -> None:
        grpc_server.add_insecure_port(f"{host}:{server_address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add
