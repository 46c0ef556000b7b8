"""The configuration of a Tandem cluster: one frozen value, checked once, that every deployment is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from tandem.cluster.telemetry.logs import LogFormat
from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.params import invalid
from tandem.workers.config import Device, Dtype, EngineConfig, Quantization
from tandem.workers.models.model_folder import resolve
from tandem.workers.requests.parameters.defaults import checked_overrides

Placement = Literal["disaggregated", "colocated"]
IngressMode = Literal["direct", "proxy"]
Count = Annotated[int, Field(gt=0)]
Port = Annotated[int, Field(gt=0, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Origins = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda given: tuple(given.split(",") if isinstance(given, str) else given)),
]
NotNegative = Annotated[float, Field(ge=0)]

REPORT_PERIOD_S = 10.0  # Serve's `metrics_interval_s`: it collects what replicas report this often

# The fields of `EngineConfig` that a cluster derives, and from what. Every other one is a field of
# `ServeConfig` by the same name.
DERIVED_ENGINE_FIELDS = {
    "max_encoder_length": "limits.encoder_tokens: the ingress refuses what is longer",
    "max_decoder_length": "limits.decoder_tokens: the ingress refuses what is longer",
    "with_encoder": "placement: whether the engine encodes by itself",
}


@dataclass(frozen=True)
class ServeConfig:
    """One model, served. Every field can be set by `tandem serve`, by `serve run
    tandem.cluster.app:build name=value …` and by `args:` in a Serve config file.

    Raises `InvalidRequest`, naming the field, for a value out of range or a combination that cannot hold.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    # The model
    model: str = "quickstart"  # a folder or hub id: see workers/models/model_folder.py
    served_model_name: str | None = None  # what clients call it; None: `model`
    tokenizer: str | None = None  # a folder or hub id; None: the one in the model's folder
    dtype: Dtype = EngineConfig.dtype
    device: Device = EngineConfig.device  # auto: GPUs if the cluster has any when the application is built
    quantization: Quantization | None = EngineConfig.quantization
    tensor_parallel_size: Count = EngineConfig.tensor_parallel_size  # shards of one decoder replica
    # Decoding defaults that come before the model's `generation_config.json`, under its names.
    override_generation_config: dict[str, Any] = field(default_factory=dict)

    # The cluster
    # colocated: the decoder's engine encodes by itself. A decoder-only model is always colocated.
    placement: Placement = "disaggregated"
    min_encoder_replicas: Count = 1
    max_encoder_replicas: Count | None = None  # None: min, no autoscaling
    min_decoder_replicas: Count = 1
    max_decoder_replicas: Count | None = None
    ingress_replicas: Count = 1
    # On each machine with an ingress replica a process waits, with all modules, that becomes the next one.
    spare_ingress: bool = True

    # The ingress
    ingress_mode: IngressMode = "direct"  # direct: the ingress replicas listen themselves
    host: str = "127.0.0.1"  # HTTP and gRPC bind to it
    http_port: Port = 8000  # in direct mode the first of the replicas' ports
    grpc_port: Port = 9000
    # Who may call, see cluster/keys.py; without either everybody may.
    api_keys: str | None = None  # the path of the file of keys, on every machine with an ingress
    api_key_sha256: str | None = None  # the hash of one more key; None: that of TANDEM_API_KEY, if it is set
    allow_origins: Origins = ()  # pages that a browser lets call; see edge/cors.py. As text: "a,b"
    ui: bool = True  # the page for people at /; see ingress/http/page
    metrics_port: Port | None = None  # /metrics there, the first that is free from it on; None: on http_port
    tls_cert: str | None = (
        None  # PEM files, on every machine that listens: the certificate's chain, and its key;
    )
    tls_key: str | None = None  # None: no TLS
    log_format: LogFormat = "text"  # see telemetry/logs.py
    call_log: bool = True  # a line for each call of a client
    otlp_endpoint: str | None = None  # the URL of an OTLP/HTTP receiver of spans; None: none are made

    # One engine: see `EngineConfig`, which says what None means and checks the ranges
    max_num_seqs: int = EngineConfig.max_num_seqs  # sequences decoded at once
    max_batched_tokens: int = EngineConfig.max_batched_tokens  # decoder positions in one step
    max_encoder_tokens: int = EngineConfig.max_encoder_tokens  # in one forward, and in a router's batch
    kv_cache_gib: float | None = EngineConfig.kv_cache_gib
    page_size: int | None = EngineConfig.page_size  # positions
    num_pages: int | None = EngineConfig.num_pages
    draft_tokens: int = EngineConfig.draft_tokens  # guessed for a sequence in a step; 0: none
    overlap: bool | None = EngineConfig.overlap
    async_encode: bool | None = EngineConfig.async_encode  # only where the engine encodes by itself
    cuda_graphs: bool | None = EngineConfig.cuda_graphs
    check_invariants: bool = EngineConfig.check_invariants

    # The router, for each ingress replica
    # Hidden states kept for reuse by each router, and as much of vision models' outputs by each worker that
    # encodes; 0: none.
    encoder_cache_bytes: Annotated[int, Field(ge=0)] = EngineConfig.encoder_cache_bytes
    encoder_batches_in_flight: Count = 2  # for each encoder replica: one running, one that waits for it
    staged_encoder_tokens: Count = 2**17  # being encoded, or encoded for requests that no engine has yet
    encoder_attempts: Count = 3  # tries to encode one input before the request fails
    replica_wait_s: Positive = 60.0  # longest wait for an engine or encoder before Unavailable
    # A request that would wait longer for a slot is refused at once. Half of the minute after which gateways
    # and load balancers give up by default, so that the other half is left for its answer.
    max_queue_wait_s: Positive = 30.0
    # An engine that is not heard of for so long loses its requests to others; it says something every second.
    engine_silence_s: Annotated[float, Field(ge=2)] = 5.0
    limits: Limits = field(default_factory=Limits)

    # Autoscaling, where a stage's maximum exceeds its minimum
    # Reports, which come every REPORT_PERIOD_S, are averaged over it.
    look_back_s: Annotated[float, Field(gt=REPORT_PERIOD_S)] = 30.0
    upscale_delay_s: NotNegative = 10.0  # a need must last this long
    downscale_delay_s: NotNegative = 300.0

    # Health and shutdown
    stall_timeout_s: Positive = 60.0  # work waiting and no step for this long: unhealthy
    drain_timeout_s: Positive = 600.0  # longest a replica finishes its requests before it stops

    # What each actor asks Ray for. Fractions let a laptop run the whole cluster: see
    # threads.use_cpus. GPUs only on cuda.
    ingress_cpus: Positive = 0.1
    encoder_cpus: Positive = 0.1
    decoder_cpus: Positive = 0.1  # each shard
    encoder_gpus: Positive = 1.0
    decoder_gpus: Positive = 1.0  # each shard

    def __post_init__(self) -> None:
        try:
            _FIELDS.model_validate(vars(self), strict=True)
        except ValidationError as error:
            raise invalid(error) from None
        for stage in ("encoder", "decoder"):
            low, high = getattr(self, f"min_{stage}_replicas"), getattr(self, f"max_{stage}_replicas")
            if high is not None and high < low:
                raise InvalidRequest(
                    f"must be at least the minimum, {low}, got {high}", field=f"max_{stage}_replicas"
                )
        if self.http_port == self.grpc_port:
            raise InvalidRequest("must differ from http_port", field="grpc_port")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidRequest("goes with tls_key", field="tls_cert")
        checked_overrides(self.override_generation_config)
        self.engine_config(self.model)

    def engine_config(self, folder: str | None = None) -> EngineConfig:
        """The configuration of one engine or encoder. Finds the model's folder on the machine it runs on.

        Raises ModelLoadError where there is no such model, InvalidRequest for sizes that cannot hold.
        """
        shared = {each.name for each in fields(EngineConfig)} - DERIVED_ENGINE_FIELDS.keys() - {"model"}
        return EngineConfig(
            model=folder or str(resolve(self.model)),
            max_encoder_length=self.limits.encoder_tokens,
            max_decoder_length=self.limits.decoder_tokens,
            with_encoder=self.placement == "colocated",
            **{name: getattr(self, name) for name in shared},
        )

    @property
    def workers_at_once(self) -> int:
        """How many workers compute at the same time in a cluster of one decoder: its shards in step, and as
        much again for an encoder."""
        return self.tensor_parallel_size * (2 if self.placement == "disaggregated" else 1)

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.served_model_name or self.model

    @property
    def encoder_replicas(self) -> tuple[int, int]:
        return self.min_encoder_replicas, self.max_encoder_replicas or self.min_encoder_replicas

    @property
    def decoder_replicas(self) -> tuple[int, int]:
        return self.min_decoder_replicas, self.max_decoder_replicas or self.min_decoder_replicas


_ADAPTER = TypeAdapter(ServeConfig)  # for arguments, which may need conversion
_FIELDS: type[BaseModel] = create_model(  # type: ignore[call-overload]  # for values in Python
    "ServeConfigFields",
    __config__=ConfigDict(allow_inf_nan=False),
    **{name: (hint, ...) for name, hint in get_type_hints(ServeConfig, include_extras=True).items()},
)
_LIMITS = "limits."


def parse_args(args: Mapping[str, Any]) -> ServeConfig:
    """The configuration an application was given. `serve run` gives strings, a config file typed values;
    in both, `limits.n: 4` is the same as `limits: {n: 4}`.

    Raises `InvalidRequest` for an unknown name, a wrong type or a value out of range.
    """
    values = _with_nested_limits(args)
    try:
        if _all_strings(values):
            return _ADAPTER.validate_strings(values)
        # As JSON: in Python mode `strict` would refuse a mapping where a dataclass is meant.
        return _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "unexpected_keyword_argument":
            raise InvalidRequest("unknown parameter", field=".".join(map(str, first["loc"]))) from None
        raise invalid(error) from None
    except TypeError as error:
        raise InvalidRequest(f"arguments must be plain values: {error}") from None


def _with_nested_limits(args: Mapping[str, Any]) -> dict[str, Any]:
    dotted = {name: value for name, value in args.items() if name.startswith(_LIMITS)}
    values = {name: value for name, value in args.items() if name not in dotted}
    if dotted:
        nested = values.get("limits", {})
        if not isinstance(nested, Mapping):
            raise InvalidRequest(f"must be a mapping, got {type(nested).__name__}", field="limits")
        values["limits"] = {**nested, **{name.removeprefix(_LIMITS): dotted[name] for name in dotted}}
    return values


def _all_strings(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(_all_strings, value.values()))
    return isinstance(value, str)
