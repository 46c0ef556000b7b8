"""Keeps Serve's gRPC servers to the address that HTTP is bound to."""

from __future__ import annotations

import os

from ray.serve._private import default_impl
from ray.serve._private.grpc_util import gRPCGenericServer

HOST = "TANDEM_GRPC_HOST"  # the variable that holds the address, in the environment of Serve's processes
# Serve calls this in each process that will listen, before it does: a proxy, and in direct mode an ingress
# replica.
CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tandem.cluster.serve_compat.grpc_address.bind_grpc"}


def settings(host: str) -> dict[str, str]:
    """The environment with which Serve's gRPC servers bind to `host`."""
    return {HOST: host, **CALLBACK}


def bind_grpc() -> None:
    """Makes Serve bind gRPC to the address in `HOST`. Serve has an option for HTTP's address only and binds
    gRPC to all interfaces."""
    host = os.environ[HOST]

    def add(grpc_server: gRPCGenericServer, server_address: str) -> None:
        grpc_server.add_insecure_port(f"{host}:{server_address.rpartition(':')[2]}")

    default_impl.add_grpc_address = add
