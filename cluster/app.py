"""The Serve application: `serve run tandem.cluster.app:build model=…`, or `import_path` in a Serve
config file, or `launch.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from tandem.cluster.config import ServeConfig, parse_args
from tandem.cluster.ingress.preparation import PREPARE
from tandem.cluster.keys import hash_in_environment
from tandem.cluster.replicas.autoscaling import decoder_autoscaling, encoder_autoscaling
from tandem.cluster.replicas.decoder import Decoder
from tandem.cluster.replicas.encoder import Encoder
from tandem.cluster.serve_compat.spare_worker import prepared_by
from tandem.limits import DEFAULT_LIMITS
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import pinned, read_config, resolve

INGRESS = "Ingress"  # the deployment's name
SUPERVISOR_CPUS = 0.05  # a supervisor is idle nearly always
HEALTH_CHECK_PERIOD_S = 2.0  # how late Serve learns that an engine died; routers learn it at once
INGRESS_CHECK_PERIOD_S = 0.5  # the same of an ingress, whose clients wait for the next one
HEALTH_CHECK_TIMEOUT_S = 20.0
CONTROL_CALLS = 100  # `describe` calls that one replica may serve at a time
# Serve checks this often whether a replica that is to stop has finished its requests.
DRAIN_POLL_S = 0.5
# Fields of `ServeConfig` that say how many replicas there are, and when.
_SCALE = (
    "min_encoder_replicas",
    "max_encoder_replicas",
    "min_decoder_replicas",
    "max_decoder_replicas",
    "ingress_replicas",
    "look_back_s",
    "upscale_delay_s",
    "downscale_delay_s",
)
QUIET = LoggingConfig(enable_access_log=False)  # the ingress logs calls itself


def build(args: Mapping[str, Any]) -> Application:
    """The application of these arguments: the fields of `ServeConfig`.

    Raises InvalidRequest.
    """
    return application(parse_args(args))


def application(
    config: ServeConfig,
    ingress: type[Any] | None = None,
    *,
    encoder: type[Encoder] = Encoder,
    decoder: type[Decoder] = Decoder,
) -> Application:
    """The deployments of one model, bound together.

    Args:
        ingress: the class of the ingress, called with the configuration, the encoder's handle or None, and
            the decoder's handle; it has `drain`. None: `Ingress`.
        encoder, decoder: the classes of the stages; measurements derive their own.
    """
    if ingress is None:
        from tandem.cluster.ingress.ingress import Ingress

        ingress = Ingress
    config = resolve_auto(config)
    worker = worker_config(config)
    encoders = None if config.placement == "colocated" else _encoder(encoder, config, worker)
    # The router refuses what exceeds `queued_requests`, with a proper error, before Serve's own limit does.
    deployment: Any = serve.deployment(
        ingress,
        name=INGRESS,
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=2 * config.limits.queued_requests,
        ray_actor_options={"num_cpus": config.ingress_cpus, "runtime_env": _prepared(config)},
        logging_config=QUIET,
        **_lifetime(config) | {"health_check_period_s": INGRESS_CHECK_PERIOD_S},
    )
    bound: Application = deployment.bind(worker, encoders, _decoder(decoder, config, worker))
    return bound


def resolve_auto(config: ServeConfig) -> ServeConfig:
    """The configuration with what `auto`, the model and the environment decide filled in, so that all
    processes on all nodes have the same: the device, no encoders for a decoder-only model, inputs as long as
    an item of media where no other limit is set, the commit of a hub id, and the hash of the key in the
    environment.

    Raises ModelLoadError where there is no such model here.
    """
    model = pinned(config.model)
    spec, limits = spec_of(read_config(resolve(model))), config.limits
    if limits.encoder_tokens == DEFAULT_LIMITS.encoder_tokens:
        longest = max(limits.encoder_tokens, spec.item_positions)
        limits = dataclasses.replace(limits, encoder_tokens=longest)
    return dataclasses.replace(
        config,
        model=model,
        served_model_name=config.model_name,
        device="cuda" if uses_gpus(config) else "cpu",
        placement="colocated" if spec.encoder is None else config.placement,
        limits=limits,
        api_key_sha256=config.api_key_sha256 or hash_in_environment(),
    )


def worker_config(config: ServeConfig) -> ServeConfig:
    """What the replicas are given: fields that only concern how many there are have their defaults. Serve
    restarts replicas whose arguments change, and a change of scale is to drain some or add some."""
    default = ServeConfig()
    return dataclasses.replace(config, **{name: getattr(default, name) for name in _SCALE})


def uses_gpus(config: ServeConfig) -> bool:
    """Whether the workers ask for GPUs. With `auto`, they do if the cluster has any at this moment."""
    if config.device != "auto":
        return config.device == "cuda"
    if config.quantization is not None:
        return False
    if ray.is_initialized():
        return bool(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    return torch.cuda.is_available()  # `serve run` builds before it connects


def _encoder(kind: type[Encoder], config: ServeConfig, worker: ServeConfig) -> Application:
    deployment: Any = serve.deployment(
        kind,
        name="Encoder",
        placement_group_bundles=_bundles(config, 1, config.encoder_cpus, config.encoder_gpus),
        **_replicas(config.min_encoder_replicas, encoder_autoscaling(config)),
        **_supervisor(config),
    )
    bound: Application = deployment.bind(worker)
    return bound


def _decoder(kind: type[Decoder], config: ServeConfig, worker: ServeConfig) -> Application:
    ranks = config.tensor_parallel_size
    deployment: Any = serve.deployment(
        kind,
        name="Decoder",
        placement_group_bundles=_bundles(config, ranks, config.decoder_cpus, config.decoder_gpus),
        **_replicas(config.min_decoder_replicas, decoder_autoscaling(config)),
        **_supervisor(config),
    )
    bound: Application = deployment.bind(worker)
    return bound


def _bundles(config: ServeConfig, actors: int, cpus: float, gpus: float) -> list[dict[str, float]]:
    """One bundle for each actor; the replica itself shares the first."""
    bundle = {"CPU": cpus, "GPU": gpus} if config.device == "cuda" else {"CPU": cpus}
    first = bundle | {"CPU": cpus + SUPERVISOR_CPUS}
    return [first, *(dict(bundle) for _ in range(actors - 1))]


def _prepared(config: ServeConfig) -> dict[str, Any]:
    return prepared_by(PREPARE) if config.spare_ingress else {}


def _supervisor(config: ServeConfig) -> dict[str, Any]:
    return {
        "max_ongoing_requests": CONTROL_CALLS,
        "ray_actor_options": {"num_cpus": SUPERVISOR_CPUS},
        "placement_group_strategy": "STRICT_PACK",
        "logging_config": QUIET,
        **_lifetime(config),
    }


def _replicas(fixed: int, autoscaling: Any) -> dict[str, Any]:
    return {"num_replicas": fixed} if autoscaling is None else {"autoscaling_config": autoscaling}


def _lifetime(config: ServeConfig) -> dict[str, Any]:
    return {
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": DRAIN_POLL_S,
    }
