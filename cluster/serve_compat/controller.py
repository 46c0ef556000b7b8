"""What Serve's controller knows and does that its public API does not offer."""

from __future__ import annotations

from typing import Any, NamedTuple

from ray import serve
from ray.serve._private.common import RequestProtocol
from ray.serve.context import _get_global_client


class Listener(NamedTuple):
    """A port on which Serve takes requests."""

    protocol: str  # "http" or "grpc"
    application: str  # "" for a proxy, which serves them all
    ip: str
    port: int


def serve_runs() -> bool:
    """Whether the Ray cluster that this process is connected to has a Serve instance.

    `serve.status()` answers alike where there is no Serve and where there is no application.
    """
    return _get_global_client(raise_if_no_controller_running=False) is not None


def listeners() -> list[Listener]:
    """Where proxies and, in direct mode, ingress replicas listen at this moment.

    Serve publishes this in its REST API only, which needs the dashboard, so the controller is asked as the
    REST API asks it.
    """
    client: Any = _get_global_client()
    names = {RequestProtocol.HTTP: "http", RequestProtocol.GRPC: "grpc"}
    return [
        Listener(names[group["protocol"]], group.get("app_name", ""), target["ip"], target["port"])
        for group in client.get_serve_details()["target_groups"]
        for target in group["targets"]
    ]


def routes() -> dict[str, str | None]:
    """The applications that Serve has, with their route prefixes; None where one has none by now."""
    client: Any = _get_global_client()
    applications = client.get_serve_details()["applications"]
    return {name: details["route_prefix"] for name, details in applications.items()}


def begin_delete(application: str) -> None:
    """Tells Serve to end an application. `serve.delete` waits for the end as well, 60 s and no longer."""
    serve.delete(application, _blocking=False)
