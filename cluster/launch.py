"""Starting a cluster from Python: Ray and Serve, then applications, one after another.

`serve(config)` is what `tandem serve` does. On Kubernetes the operator starts Ray and Serve, and the
application comes from a Serve config file; then only `app.py` is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve.config import HTTPOptions, ProxyLocation, gRPCOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from tandem.cluster.app import INGRESS, SUPERVISOR_CPUS, application, resolve_auto
from tandem.cluster.config import ServeConfig
from tandem.cluster.replicas.decoder import Decoder
from tandem.cluster.replicas.encoder import Encoder
from tandem.cluster.serve_compat import grpc_address
from tandem.cluster.serve_compat.endpoints import Endpoints, read_endpoints, serving
from tandem.errors import InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

APPLICATION = "tandem"
POLL_S = 0.1
HANDLE_S = 5.0  # for a new handle to learn of the replicas
# One replica in direct mode listens on the first port of its range, further ones on the next. Ray gives
# its own workers ports from 10002 on.
DIRECT_PORTS = 100
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's workers run at nice 15 otherwise, and anything else on the machine would go first.
    "RAY_worker_niceness": "0",
}
# What decides in direct mode whether and where the ingress replicas listen.
_LISTENING = {
    "RAY_SERVE_ENABLE_DIRECT_INGRESS",
    *(f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT" for end in ("MIN", "MAX") for kind in ("HTTP", "GRPC")),
}
GRPC_SERVICES = [
    "tandem.protocol.rpc.add_inference_service",
    "tandem.protocol.rpc.add_health_service",
]


@contextlib.contextmanager
def serve(config: ServeConfig, *, address: str | None = None) -> Iterator[RunningCluster]:
    """Everything, from nothing to a server that answers; on leaving, running requests end first.

    `address` joins a Ray cluster that runs already; its processes must have been started with what
    `_serve_settings` says. Raises ModelLoadError, InvalidRequest, Unavailable.
    """
    resolve_auto(config)  # a wrong model fails before Ray starts
    with RunningCluster(config, address=address) as cluster:
        cluster.deploy(config)
        yield cluster


class RunningCluster:
    """Ray and Serve, running. Ends, when it is closed, what it has started.

    The host, the ports, the ingress mode and the largest message are the cluster's, from the
    configuration it is started with; everything else is each application's own.
    """

    def __init__(self, config: ServeConfig, *, address: str | None = None) -> None:
        self._host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        self._config: ServeConfig | None = None  # of the application
        self._started_serve = False
        self._started_ray = not ray.is_initialized()
        self._is_this_machine = self._started_ray and address is None  # and will not grow
        if self._started_ray:
            _start_ray(config, address)
        try:
            if address is not None and config.ingress_mode == "direct":
                _refuse_other_ports(config, _listening_of_workers())
            self._started_serve = not _serve_runs()
            if self._started_serve:
                _start_serve(config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunningCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def deploy(
        self,
        config: ServeConfig,
        *,
        ingress: type[Any] | None = None,
        encoder: type[Encoder] = Encoder,
        decoder: type[Decoder] = Decoder,
        timeout_s: float = 600.0,
    ) -> Endpoints:
        """Replaces the application and returns when it answers. A former one is drained first: one model
        at a time. For an update without a gap use Serve's own means. The classes are `application`'s.

        Raises ModelLoadError where there is no such model here, Unavailable where the application does
        not become healthy, with what Serve says about it.
        """
        self.undeploy()
        config = resolve_auto(config)  # a wrong model fails here and now, not three times in a replica
        if self._is_this_machine:
            _refuse_what_does_not_fit(config)
        self._config = config
        app = application(config, ingress, encoder=encoder, decoder=decoder)
        ray_serve.run_many(
            [ray_serve.RunTarget(app, name=APPLICATION, route_prefix="/")],
            wait_for_applications_running=False,
        )
        deadline = time.monotonic() + timeout_s
        while True:
            status = _status()
            if status is not None and status.status is ApplicationStatus.RUNNING:
                endpoints = self.endpoints()
                if ingress is not None or serving(endpoints, self._host):
                    return endpoints
            if status is not None and status.status is ApplicationStatus.DEPLOY_FAILED:
                raise Unavailable(f"the application could not be deployed: {_reasons(status)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"not healthy after {timeout_s:.0f} s: {_reasons(status)}")
            time.sleep(POLL_S)

    def undeploy(self) -> None:
        """Ends the application, if there is one, after its running requests."""
        if self._config is None:
            return
        _drain_ingress(self._config.drain_timeout_s)
        ray_serve.delete(APPLICATION, _blocking=False)
        # Serve ends the replicas by force then; a moment more for it to notice.
        deadline = time.monotonic() + self._config.drain_timeout_s + 30
        while _status() is not None:
            if time.monotonic() > deadline:
                raise Unavailable("the application does not end")
            time.sleep(POLL_S)
        self._config = None

    def endpoints(self) -> Endpoints:
        """Where the application listens at this moment."""
        return read_endpoints(APPLICATION, self._host)

    def close(self) -> None:
        """Ends the application after its running requests, then Serve, then Ray where it was started
        here."""
        try:
            self.undeploy()
        finally:
            if self._started_ray:
                _stop_printing_errors()
            if self._started_serve:
                ray_serve.shutdown()  # type: ignore[no-untyped-call]
            if self._started_ray:
                ray.shutdown()


@contextlib.contextmanager
def ray_alone(address: str | None = None) -> Iterator[None]:
    """Ray without Serve, for work that is done elsewhere: on this machine, or the cluster at `address`."""
    _init_ray(address, _RAY_SETTINGS)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(config: ServeConfig, address: str | None) -> None:
    """Starts Ray on this machine, or joins the cluster at `address`."""
    logging.getLogger(SERVE_LOGGER_NAME).setLevel(logging.WARNING)
    if address is None:
        for field in ("http_port", "grpc_port"):
            _refuse_used_port(config.host, getattr(config, field), field)
    _init_ray(address, _serve_settings(config))


def _init_ray(address: str | None, settings: Mapping[str, str]) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is not None:
        ray.init(address=address, **quiet)
        return
    with _environment(settings):  # Ray's processes inherit it
        # Ray's own ports are open to other machines, whatever address it is given, but unless RAY_AUTH_MODE
        # says otherwise they ask for a token: `ray.init` makes one, for this user, where there is none.
        ray.init("local", include_dashboard=False, **quiet)


def _serve_settings(config: ServeConfig) -> dict[str, str]:
    """What Serve reads from the environment, in each of its processes. A cluster that is joined must
    have been started with the like."""
    settings = {
        **_RAY_SETTINGS,
        # A replica whose group lost a rank cannot drain; what it held goes on elsewhere.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # Nothing of ours blocks a replica's event loop, so it needs no second one, with a thread to cross to
        # for every request and every part of an answer.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Read before our own limit is looked at, and it bounds answers as well.
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(4 * config.limits.message_bytes),
        **grpc_address.settings(config.host),
    }
    if min(config.encoder_cpus, config.decoder_cpus) < 1:
        # Workers that share cores: one whose threads spin while they wait takes the cores from the others.
        settings["OMP_WAIT_POLICY"] = "passive"
    if config.ingress_mode == "direct":
        settings |= {
            "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
            # No load balancer has to forget a replica of ours, so none has to outstay its requests, and
            # its port is free for the next.
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


def _listening_of_workers() -> dict[str, str | None]:
    """What a process of the cluster that is joined finds in its environment."""
    read: Any = ray.remote(num_cpus=0)(lambda: {name: os.environ.get(name) for name in _LISTENING})
    return dict(ray.get(read.remote()))


def _refuse_other_ports(config: ServeConfig, theirs: Mapping[str, str | None]) -> None:
    """The ingress replicas would not listen at all, or where nobody expects them."""
    for name, value in _serve_settings(config).items():
        if name in _LISTENING and theirs.get(name) != value:
            raise InvalidRequest(
                f"direct: the cluster's processes need {name}={value}, theirs is {theirs.get(name)}",
                field="ingress_mode",
            )


def _serve_runs() -> bool:
    return _get_global_client(raise_if_no_controller_running=False) is not None


def _start_serve(config: ServeConfig) -> None:
    direct = config.ingress_mode == "direct"
    http_port, grpc_port = _proxy_ports(config)
    ray_serve.start(
        proxy_location=ProxyLocation.HeadOnly if direct else ProxyLocation.EveryNode,
        http_options=HTTPOptions(host=config.host, port=http_port),
        grpc_options=gRPCOptions(
            port=grpc_port, grpc_servicer_functions=GRPC_SERVICES, enable_reflection=False
        ),
    )


def _proxy_ports(config: ServeConfig) -> tuple[int, int]:
    """Where Serve's own proxies listen, HTTP and gRPC. In direct mode there still is one, on the head node.
    It keeps out of the replicas' ranges: gRPC would share a port silently, and either could get a call."""
    wanted = config.http_port, config.grpc_port
    if config.ingress_mode != "direct":
        return wanted
    replicas = {first + n for first in wanted for n in range(DIRECT_PORTS)}
    while True:
        http_port, grpc_port = free_ports(config.host, 2)
        if not replicas & {http_port, grpc_port}:
            return http_port, grpc_port


def _drain_ingress(timeout_s: float) -> None:
    """Has the ingress end its requests and refuse others, for as long as there are engines and encoders to
    end them: Serve stops all deployments of an application at the same moment."""
    status = _status()
    if status is None or status.status not in (ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY):
        return  # it serves nobody
    handle = ray_serve.get_deployment_handle(INGRESS, APPLICATION)
    learned = time.monotonic() + HANDLE_S
    answers: list[Any] = []
    while not answers:
        try:
            answers = handle.broadcast("drain").results(timeout_s=timeout_s, return_exceptions=True)
        except (RayServeException, RayError, TimeoutError) as error:
            if not isinstance(error, DeploymentUnavailableError) or time.monotonic() > learned:
                answers = [error]
            time.sleep(POLL_S)
    for answer in answers:
        if isinstance(answer, Exception):
            logger.warning("an ingress replica stops without having drained: %r", answer)


def _status() -> ApplicationStatusOverview | None:
    return ray_serve.status().applications.get(APPLICATION)


def _reasons(status: ApplicationStatusOverview | None) -> str:
    if status is None:
        return "Serve does not know it"
    messages = [status.message, *(d.message for d in status.deployments.values())]
    return "; ".join(message for message in messages if message) or str(status.status.value)


def _refuse_what_does_not_fit(config: ServeConfig) -> None:
    """Serve would wait for ever."""
    encoders = config.min_encoder_replicas if config.placement == "disaggregated" else 0
    shards = config.min_decoder_replicas * config.tensor_parallel_size
    needs = {
        "CPU": encoders * (config.encoder_cpus + SUPERVISOR_CPUS)
        + shards * config.decoder_cpus
        + config.min_decoder_replicas * SUPERVISOR_CPUS
        + config.ingress_replicas * config.ingress_cpus,
        "GPU": encoders * config.encoder_gpus + shards * config.decoder_gpus
        if config.device == "cuda"
        else 0,
    }
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for resource, need in needs.items():
        if need > there.get(resource, 0):
            raise InvalidRequest(
                f"the replicas need {need:g} {resource}s, this machine has {there.get(resource, 0):g}: "
                f"ask for fewer replicas, a fraction for each (encoder_{resource.lower()}s, "
                f"decoder_{resource.lower()}s), or placement=colocated",
                field="placement",
            )


def _stop_printing_errors() -> None:
    """Ray's, in this process, as `ray.shutdown` does a little later. Serve's end fails the calls that its
    parts wait for, and Ray would print them."""
    worker: Any = ray._private.worker.global_worker
    with contextlib.suppress(Exception):  # whatever it is: what follows must end Serve and Ray
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()


def _refuse_used_port(host: str, port: int, field: str) -> None:
    """Serve would silently take the next port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidRequest(f"{host}:{port} cannot be used: {error.strerror}", field=field) from None


def free_ports(host: str, count: int) -> list[int]:
    """Ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for the time being; those the user has set stay as they are."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
