"""Where a running application listens."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from dataclasses import dataclass

import grpc
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.cluster.serve_compat.controller import listeners

ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Endpoints:
    """`host:port` of each listener. In direct mode there is one for each ingress replica, and a client may
    use any of them; in proxy mode one for each node with a proxy."""

    http: tuple[str, ...]
    grpc: tuple[str, ...]


def read_endpoints(application: str, host: str) -> Endpoints:
    """The application's listeners as Serve's controller knows them. Empty while nothing listens.

    `host`, to which the listeners of this machine are bound, replaces this machine's address.
    """
    known = listeners()
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]

    def of(protocol: str) -> tuple[str, ...]:
        return tuple(
            sorted(
                f"{host if listener.ip == here else listener.ip}:{listener.port}"
                for listener in known
                if listener.protocol == protocol and listener.application in ("", application)
            )
        )

    return Endpoints(http=of("http"), grpc=of("grpc"))


def _unchecked() -> ssl.SSLContext:
    """For this machine's own listeners, whose certificate has another name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _shake_hands(address: str) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as connection:
        _unchecked().wrap_socket(connection).close()


def serving(endpoints: Endpoints, host: str, *, tls: bool = False) -> bool:
    """Whether the application says, at every listener of this machine, that it can take requests. `host` is
    the listeners' address. With `tls` gRPC's need only shake hands: the certificate has another name. Serve
    calls it running a moment earlier: routers have yet to attach to engines, and proxies to hear of the
    application."""

    def here(addresses: tuple[str, ...]) -> list[str]:
        return [address for address in addresses if address.rpartition(":")[0] == host]

    try:
        scheme = "https" if tls else "http"
        for address in here(endpoints.http):
            url = f"{scheme}://{address}/health"
            urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S, context=_unchecked()).close()
        for address in here(endpoints.grpc):
            if tls:
                _shake_hands(address)
                continue
            with grpc.insecure_channel(address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                answer = check(health_pb2.HealthCheckRequest(), timeout=ANSWER_TIMEOUT_S)
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    return False
    except (OSError, grpc.RpcError):
        return False
    return True
