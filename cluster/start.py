"""Ray and Serve: starting them here or joining them, the settings of their processes, and the ports.

Nothing here knows what is deployed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions

from tandem.cluster.config import ServeConfig
from tandem.cluster.listening import CALLBACK, Listening
from tandem.cluster.serve_compat.driver import own_signals
from tandem.cluster.serve_compat.loopback import ADDRESS, loopback_stays
from tandem.cluster.telemetry import disk
from tandem.errors import InvalidRequest, Unavailable

# In direct mode one replica listens on the first port of its range, each further one on the next free port.
# Ray gives its own workers ports from 10002 on.
DIRECT_PORTS = 100
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers run at nice 15 otherwise, and anything else on the machine would go first.
    "RAY_worker_niceness": "0",
    # The control plane would keep an account of the last 100,000 calls between actors, and grow for hours.
    "RAY_task_events_report_interval_ms": "0",
    # Each file that Ray keeps for a process: 16 MiB, and three older ones. What workers print does not rotate
    # at all without it.
    "RAY_ROTATION_MAX_BYTES": str(2**24),
    "RAY_ROTATION_BACKUP_COUNT": "3",
}
# The settings that decide whether, where and how ingress replicas listen in direct mode.
_LISTENING = {
    *CALLBACK,
    "TANDEM_TLS_CERT",
    "TANDEM_TLS_KEY",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS",
    *(f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT" for end in ("MIN", "MAX") for kind in ("HTTP", "GRPC")),
}
_TLS = {"TANDEM_TLS_CERT", "TANDEM_TLS_KEY"}
GRPC_SERVICES = [
    "tandem.protocol.rpc.add_inference_service",
    "tandem.protocol.rpc.add_health_service",
]


@contextlib.contextmanager
def ray_alone(address: str | None = None) -> Iterator[None]:
    """Ray without Serve, on this machine or as the cluster at `address`, for work on a server elsewhere."""
    _init_ray(address, _RAY_SETTINGS)
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(config: ServeConfig, address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if address is None:
        disk.check_room()
        _check_certificate(config)
        for field in ("http_port", "grpc_port"):
            _refuse_used_port(config.host, getattr(config, field), field)
    _init_ray(address, serve_settings(config))


def _check_certificate(config: ServeConfig) -> None:
    """Raises InvalidRequest where the certificate cannot be used."""
    if config.tls_cert is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                config.tls_cert, config.tls_key
            )
        except OSError as error:  # ssl.SSLError is one
            raise InvalidRequest(f"{config.tls_cert}: {error}", field="tls_cert") from None


def _init_ray(address: str | None, settings: Mapping[str, str]) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is not None:
            with own_signals():
                ray.init(address=address, **quiet)
            return
        with _environment(settings), loopback_stays(), own_signals():  # Ray's processes inherit it
            # Ray's ports are this machine's alone and, unless RAY_AUTH_MODE says otherwise, ask for a token:
            # `ray.init` makes one for this user if there is none.
            ray.init("local", include_dashboard=False, _node_ip_address=ADDRESS, **quiet)
    except Exception as error:  # Ray has no class for it
        where = "here" if address is None else f"at {address}"
        raise Unavailable(f"Ray does not start {where}: {' '.join(str(error).split()):.300}") from error
    _keep_token_private()


def _keep_token_private() -> None:
    """Ray writes the token so that all users of the machine may read it."""
    token = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)


def serve_settings(config: ServeConfig) -> dict[str, str]:
    """What Serve reads from the environment, in each of its processes. A cluster that is joined must have
    been started with the same."""
    settings = {
        **_RAY_SETTINGS,
        # A replica whose group lost a rank cannot drain; its requests go on elsewhere.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # A proxy that died is replaced after three checks that fail.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        # Tandem does not block a replica's event loop, so no second loop is needed, in a thread that every
        # request and every part of an answer would have to cross to.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Serve checks it before our own limit is looked at, and it bounds answers as well.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.limits.transport_bytes),
        **_listening(config).environment(),
    }
    if min(config.encoder_cpus, config.decoder_cpus) < 1:
        # The workers share cores: threads that spin while they wait take the cores from other workers.
        settings["OMP_WAIT_POLICY"] = "passive"
    if config.ingress_mode == "direct":
        settings |= {
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            # No load balancer has to forget a replica, so a replica need not outstay its requests, and its
            # port is free for the next.
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
            "RAY_SERVE_PORT_QUARANTINE_S": "0",
        }
        for name, first, other in (
            ("HTTP", config.http_port, config.grpc_port),
            ("GRPC", config.grpc_port, config.http_port),
        ):
            # The two ranges must not overlap.
            end = min(first + DIRECT_PORTS, other if other > first else 65536)
            settings[f"RAY_SERVE_DIRECT_INGRESS_MIN_{name}_PORT"] = str(first)
            settings[f"RAY_SERVE_DIRECT_INGRESS_MAX_{name}_PORT"] = str(end)
    return settings


def _listening(config: ServeConfig) -> Listening:
    limits = config.limits
    return Listening(
        grpc_host=config.host,
        header_bytes=limits.header_bytes,
        headers=limits.headers,
        head_s=limits.head_s,
        connections_per_address=limits.connections_per_address,
        tls_cert=config.tls_cert or "",
        tls_key=config.tls_key or "",
    )


def check_joined(config: ServeConfig) -> None:
    """Raises InvalidRequest where the environment of the cluster that was joined would have the ingress
    replicas listen elsewhere than `config` says, or not at all."""
    names = _LISTENING if config.ingress_mode == "direct" else _TLS if config.tls_cert else set()
    if names:
        read: Any = ray.remote(num_cpus=0)(lambda: {name: os.environ.get(name) for name in names})
        _refuse_other_settings(config, ray.get(read.remote()), names)


def _refuse_other_settings(config: ServeConfig, theirs: Mapping[str, str | None], names: Set[str]) -> None:
    """`theirs`: the environment of the cluster's processes; `names`: what must be equal in it."""
    settings = serve_settings(config)
    for name in sorted(names):
        if theirs.get(name) != settings.get(name):
            raise InvalidRequest(
                f"{config.ingress_mode}: the cluster's processes need {name}={settings.get(name, '')}, "
                f"theirs is {theirs.get(name)}",
                field="ingress_mode",
            )


def start_serve(config: ServeConfig) -> None:
    direct = config.ingress_mode == "direct"
    http_port, grpc_port = _proxy_ports(config)
    ray_serve.start(
        proxy_location=ProxyLocation.HeadOnly if direct else ProxyLocation.EveryNode,
        http_options=HTTPOptions(
            host=config.host, port=http_port, ssl_certfile=config.tls_cert, ssl_keyfile=config.tls_key
        ),
        grpc_options=gRPCOptions(
            port=grpc_port, grpc_servicer_functions=GRPC_SERVICES, enable_reflection=False
        ),
    )


def _proxy_ports(config: ServeConfig) -> tuple[int, int]:
    """The ports of Serve's own proxies, HTTP and gRPC. In direct mode there still is one, on the head node.
    It keeps out of the replicas' ranges: gRPC would share a port silently, and either could get a call."""
    wanted = config.http_port, config.grpc_port
    if config.ingress_mode != "direct":
        return wanted
    replicas = {first + n for first in wanted for n in range(DIRECT_PORTS)}
    while True:
        http_port, grpc_port = free_ports(config.host, 2)
        if not replicas & {http_port, grpc_port}:
            return http_port, grpc_port


def _refuse_used_port(host: str, port: int, field: str) -> None:
    """Raises InvalidRequest where the port is taken: Serve would silently take the next one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidRequest(f"{host}:{port} cannot be used: {error.strerror}", field=field) from None


def free_ports(host: str, count: int) -> list[int]:
    """`count` ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables while the block runs; those that the user has set stay as they are."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
