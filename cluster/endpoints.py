"""Where a running application listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.serve._private.common import RequestProtocol
from ray.serve.context import _get_global_client


@dataclass(frozen=True)
class Endpoints:
    """`host:port` of each listener. In direct mode there is one for each ingress replica, and a client
    may use any; in proxy mode one for each node with a proxy."""

    http: tuple[str, ...]
    grpc: tuple[str, ...]


def read_endpoints(application: str, host: str) -> Endpoints:
    """What Serve's controller says at this moment. Empty while nothing listens.

    `host` replaces the address of this machine: what the listeners are bound to here.

    Serve publishes this only in its REST API, which needs the dashboard, so the controller is asked as
    that API does.
    """
    client: Any = _get_global_client()
    groups = client.get_serve_details()["target_groups"]
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]

    def of(protocol: RequestProtocol) -> tuple[str, ...]:
        return tuple(
            sorted(
                f"{host if target['ip'] == here else target['ip']}:{target['port']}"
                for group in groups
                # Proxies serve every application, and their group names none.
                if group["protocol"] == protocol and group.get("app_name", "") in ("", application)
                for target in group["targets"]
            )
        )

    return Endpoints(http=of(RequestProtocol.HTTP), grpc=of(RequestProtocol.GRPC))
