"""Running a cluster from Python: Ray and Serve, then applications, one after another.

`serve(config)` is what `tandem serve` does. On Kubernetes the operator starts Ray and Serve, and the
application comes from a Serve config file; then only `app.py` is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from tandem.cluster.app import INGRESS, SUPERVISOR_CPUS, application, resolve_auto
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints, read_endpoints, serving
from tandem.cluster.forwarding import Forwarding
from tandem.cluster.replicas.decoder import Decoder
from tandem.cluster.replicas.encoder import Encoder
from tandem.cluster.serve_compat.controller import begin_delete, routes, serve_runs
from tandem.cluster.serve_compat.driver import stop_printing_errors
from tandem.cluster.start import check_joined, start_ray, start_serve
from tandem.cluster.telemetry import logs, traces
from tandem.errors import InvalidRequest, Unavailable
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.model_folder import resolve, weight_files

logger = logging.getLogger(__name__)

APPLICATION = "tandem"
ROUTE = "/"
POLL_S = 0.1
HANDLE_S = 5.0  # longest that a new handle takes to learn of the replicas


def _unheard(_: str) -> None:
    pass


@contextlib.contextmanager
def serve(
    config: ServeConfig, *, address: str | None = None, progress: Callable[[str], None] = _unheard
) -> Iterator[RunningCluster]:
    """Everything, from nothing to a server that answers; on leaving, running requests end first.

    `progress` is told of each stage when it begins or has moved on. `address` joins a Ray cluster that runs
    already; its processes must have been started with the environment of `start.serve_settings`. Raises
    ModelLoadError, InvalidRequest, Unavailable.
    """
    traces.check(config.otlp_endpoint)
    check_model(resolve_auto(config))
    progress("Starting Ray and Serve" if address is None else f"Joining {address}")
    with RunningCluster(config, address=address) as cluster:
        cluster.deploy(config, progress=progress)
        yield cluster


def check_model(config: ServeConfig) -> None:
    """Reads all of the model but its weights, and their files' heads, so that what is missing or damaged is
    said before Ray starts, and not three times by a replica. Raises ModelLoadError, InvalidRequest."""
    from tandem.cluster.ingress.ingress import load_request_builder

    Checkpoint(resolve(config.model))
    load_request_builder(config)


class RunningCluster:
    """Ray and Serve, running. Closing it ends what it has started.

    The host, the ports, the ingress mode and the largest message are those of the configuration that the
    cluster is started with; everything else is each application's own.
    """

    def __init__(self, config: ServeConfig, *, address: str | None = None) -> None:
        self._host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
        self._config: ServeConfig | None = None  # the application's
        self._started_serve = False
        self._forwarding: Forwarding | None = None
        self._started_ray = not ray.is_initialized()
        self._is_this_machine = self._started_ray and address is None  # the cluster will not grow
        if self._started_ray:
            start_ray(config, address)
        try:
            if self._started_ray and (path := os.environ.get(logs.PATH)) is not None:
                stop_printing_errors()  # the lines at that path say it shorter
                if address is not None:
                    self._forwarding = Forwarding(path, config.log_format)
            if address is not None:
                check_joined(config)
            self._started_serve = not serve_runs()
            if self._started_serve:
                start_serve(config)
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
        progress: Callable[[str], None] = _unheard,
    ) -> Endpoints:
        """Replaces the application and returns when it answers. The previous one is drained first: one model
        at a time. For an update without a gap use Serve's own means. The classes are `application`'s;
        `progress` is told how many replicas there are.

        Raises ModelLoadError where there is no model of that name here, InvalidRequest where somebody else
        has an application of the same name or route on this cluster, Unavailable where the application does
        not become healthy, with what Serve says about it.
        """
        self.undeploy()
        _refuse_to_replace()
        config = resolve_auto(config)  # a wrong model fails here, not three times in a replica
        if self._is_this_machine:
            _refuse_what_does_not_fit(config)
        self._config = config
        app = application(config, ingress, encoder=encoder, decoder=decoder)
        ray_serve.run_many(
            [ray_serve.RunTarget(app, name=APPLICATION, route_prefix=ROUTE)],
            wait_for_applications_running=False,
        )
        deadline = time.monotonic() + timeout_s
        said = ""
        while True:
            status = _status()
            if (now := _replicas(config, status)) != said:
                progress(said := now)
            if status is not None and status.status is ApplicationStatus.RUNNING:
                endpoints = self.endpoints()
                if ingress is not None or serving(endpoints, self._host, tls=config.tls_cert is not None):
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
        begin_delete(APPLICATION)
        # After the drain timeout Serve ends the replicas by force; it needs a moment more to notice.
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
        """Ends the application after its running requests, then Serve and Ray where they were started here;
        Serve goes on where others have applications."""
        try:
            self.undeploy()
        finally:
            if self._started_ray:
                stop_printing_errors()
            if self._started_serve and (self._is_this_machine or not ray_serve.status().applications):
                ray_serve.shutdown()  # type: ignore[no-untyped-call]
            if self._forwarding is not None:
                self._forwarding.end()
            if self._started_ray:
                ray.shutdown()


def _refuse_to_replace() -> None:
    """Raises InvalidRequest where there is an application already whose name or route ours would take: Serve
    would replace it without a word."""
    for name, route in routes().items():
        if name == APPLICATION or route == ROUTE:
            raise InvalidRequest(
                f"this cluster serves an application already, {name!r} at {route or 'no route yet'}: end it "
                f"where it was started, or by `serve.delete({name!r})` of ray.serve, or use another cluster",
                field="address",
            )


def _drain_ingress(timeout_s: float) -> None:
    """Has the ingress finish its requests and refuse others while engines and encoders still run: Serve stops
    all deployments of an application at the same moment."""
    status = _status()
    if status is None or status.status not in (ApplicationStatus.RUNNING, ApplicationStatus.UNHEALTHY):
        return  # the application serves nobody
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


def _replicas(config: ServeConfig, status: ApplicationStatusOverview | None) -> str:
    """How far the replicas have come, which load the model."""
    size = sum(path.stat().st_size for path in weight_files(resolve(config.model)))
    states = {} if status is None else {name: one.replica_states for name, one in status.deployments.items()}
    there = [
        f"{name} {sum(count for state, count in each.items() if state == 'RUNNING')} of {sum(each.values())}"
        for name, each in states.items()
    ]
    return f"Loading {size / 1e6:,.0f} MB of weights{': ' if there else ''}{', '.join(there)}"


def _reasons(status: ApplicationStatusOverview | None) -> str:
    if status is None:
        return "Serve does not know it"
    messages = [status.message, *(d.message for d in status.deployments.values())]
    return "; ".join(message for message in messages if message) or str(status.status.value)


def _refuse_what_does_not_fit(config: ServeConfig) -> None:
    """Raises InvalidRequest where the replicas need more than this machine has: Serve would wait for ever."""
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
