"""What Serve's gRPC servers listen on, and which of Serve's own RPCs they answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from ray.serve._private import default_impl
from ray.serve._private.grpc_util import gRPCGenericServer

from tandem.cluster.serve_compat.grpc_handlers import saying_more

_APPLICATIONS: Final = "/ray.serve.RayServeAPIService/ListApplications"


def bind_grpc(host: str, credentials: grpc.ServerCredentials | None) -> None:
    """Makes Serve bind gRPC to an address, with TLS where there are credentials, answer no question about its
    applications, and note and say more of every call: see `saying_more`. Serve has options for HTTP only: it
    binds gRPC to all interfaces, without TLS."""

    def add(grpc_server: gRPCGenericServer, server_address: str) -> None:
        address = f"{host}:{server_address.rpartition(':')[2]}"
        if credentials is None:
            grpc_server.add_insecure_port(address)
        else:
            grpc_server.add_secure_port(address, credentials)
        answer: Callable[..., Any] = grpc_server.service_handler_factory

        def factory(service_method: str, streaming_type: Any) -> Callable[..., Any]:
            if service_method == _APPLICATIONS:
                return _refuse
            return saying_more(answer(service_method=service_method, streaming_type=streaming_type))

        grpc_server.service_handler_factory = factory

    default_impl.add_grpc_address = add


async def _refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not answered here")
