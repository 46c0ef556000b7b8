"""What a Tandem cluster is made of: one frozen value, checked once, that every deployment is given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.params import invalid
from tandem.workers.config import Device, Dtype, EngineConfig, Quantization
from tandem.workers.models.checkpoint import resolve
from tandem.workers.requests.defaults import checked_overrides

Placement = Literal["disaggregated", "colocated"]
IngressMode = Literal["direct", "proxy"]

REPORT_PERIOD_S = 10.0  # Serve's `metrics_interval_s`: it collects what replicas report this often


@dataclass(frozen=True)
class ServeConfig:
    """One model, served. Every field can be set by `tandem serve`, by `serve run
    tandem.cluster.app:build name=value …` and by `args:` in a Serve config file.

    Raises `InvalidRequest`, naming the field, for a combination that cannot hold.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    # The model
    model: str = "quickstart"  # a folder or hub id: see workers.checkpoint.resolve
    served_model_name: str | None = None  # what clients call it; None: `model`
    dtype: Dtype = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    device: Device = "auto"  # auto: GPUs if the cluster has any when the application is built
    quantization: Quantization | None = None  # int8: of projections, on CPUs
    tensor_parallel_size: int = 1  # shards of one decoder replica
    # Decoding defaults that come before the model's `generation_config.json`, under its names.
    override_generation_config: dict[str, Any] = field(default_factory=dict)

    # The cluster
    # colocated: the decoder's engine encodes by itself. A decoder-only model is always colocated.
    placement: Placement = "disaggregated"
    min_encoder_replicas: int = 1
    max_encoder_replicas: int | None = None  # None: min, no autoscaling
    min_decoder_replicas: int = 1
    max_decoder_replicas: int | None = None
    ingress_replicas: int = 1

    # The front door
    ingress_mode: IngressMode = "direct"  # direct: the ingress replicas listen themselves
    host: str = "127.0.0.1"  # HTTP and gRPC bind to it
    http_port: int = 8000  # in direct mode the first of the replicas' ports
    grpc_port: int = 9000

    # One engine: see workers.config
    max_num_seqs: int = EngineConfig.max_num_seqs  # sequences decoded at once
    max_batched_tokens: int = EngineConfig.max_batched_tokens  # decoder positions in one step
    max_encoder_tokens: int = EngineConfig.max_encoder_tokens  # of one forward: also of a router's batch
    kv_cache_gib: float | None = None
    page_size: int | None = None  # positions
    num_pages: int | None = None
    draft_tokens: int = 7  # guessed for a sequence in a step; 0: none
    check_invariants: bool = False

    # The router, for each ingress replica
    encoder_cache_bytes: int = 256 * 2**20  # hidden states kept alive for reuse; 0: none
    encoder_batches_in_flight: int = 2  # for each encoder replica: one running, one waiting behind it
    staged_encoder_tokens: int = 2**17  # being encoded, or encoded for requests that no engine has yet
    encoder_attempts: int = 3  # tries to encode one input before the request fails
    replica_wait_s: float = 60.0  # longest wait for an engine or encoder before Unavailable
    limits: Limits = field(default_factory=Limits)

    # Autoscaling, where a stage's maximum exceeds its minimum
    look_back_s: float = 30.0  # reports are averaged over it; they come every REPORT_PERIOD_S
    upscale_delay_s: float = 10.0  # a need must last this long
    downscale_delay_s: float = 300.0

    # Health and shutdown
    stall_timeout_s: float = 60.0  # work waiting and no step for this long: unhealthy
    drain_timeout_s: float = 600.0  # longest a replica finishes its requests before it stops

    # What each actor asks Ray for. Fractions let a laptop run the whole cluster: see
    # threads.use_cpus. GPUs only on cuda.
    ingress_cpus: float = 0.1
    encoder_cpus: float = 0.1
    decoder_cpus: float = 0.1  # each shard
    encoder_gpus: float = 1.0
    decoder_gpus: float = 1.0  # each shard

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InvalidRequest(f"must be positive, got {value}", field=name)
        for name in ("encoder_cache_bytes", "upscale_delay_s", "downscale_delay_s"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"must not be negative, got {getattr(self, name)}", field=name)
        for stage in ("encoder", "decoder"):
            low, high = getattr(self, f"min_{stage}_replicas"), getattr(self, f"max_{stage}_replicas")
            if high is not None and high < low:
                raise InvalidRequest(
                    f"must be at least the minimum, {low}, got {high}", field=f"max_{stage}_replicas"
                )
        for name in ("http_port", "grpc_port"):
            if getattr(self, name) > 65535:
                raise InvalidRequest(f"must be a port, got {getattr(self, name)}", field=name)
        if self.http_port == self.grpc_port:
            raise InvalidRequest("must differ from http_port", field="grpc_port")
        if self.look_back_s <= REPORT_PERIOD_S:
            raise InvalidRequest(
                f"must exceed {REPORT_PERIOD_S:g}, got {self.look_back_s}", field="look_back_s"
            )
        checked_overrides(self.override_generation_config)
        self.engine_config(self.model)

    def engine_config(self, folder: str | None = None) -> EngineConfig:
        """What one engine or encoder is made with. Finds the model's folder on the machine it runs on.

        Raises ModelLoadError where there is no such model, InvalidRequest for sizes that cannot hold.
        """
        return EngineConfig(
            model=folder or str(resolve(self.model)),
            dtype=self.dtype,
            device=self.device,
            quantization=self.quantization,
            tensor_parallel_size=self.tensor_parallel_size,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
            max_encoder_tokens=self.max_encoder_tokens,
            max_encoder_length=self.limits.encoder_tokens,
            max_decoder_length=self.limits.decoder_tokens,
            kv_cache_gib=self.kv_cache_gib,
            page_size=self.page_size,
            num_pages=self.num_pages,
            with_encoder=self.placement == "colocated",
            draft_tokens=self.draft_tokens,
            check_invariants=self.check_invariants,
        )

    @property
    def workers_at_once(self) -> int:
        """That compute at the same time for a cluster of one decoder: its shards in step, and an encoder
        beside them."""
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


_POSITIVE = (
    "tensor_parallel_size",
    "min_encoder_replicas",
    "max_encoder_replicas",
    "min_decoder_replicas",
    "max_decoder_replicas",
    "ingress_replicas",
    "http_port",
    "grpc_port",
    "page_size",
    "num_pages",
    "kv_cache_gib",
    "encoder_batches_in_flight",
    "staged_encoder_tokens",
    "encoder_attempts",
    "replica_wait_s",
    "stall_timeout_s",
    "drain_timeout_s",
    "look_back_s",
    "ingress_cpus",
    "encoder_cpus",
    "decoder_cpus",
    "encoder_gpus",
    "decoder_gpus",
)

_ADAPTER = TypeAdapter(ServeConfig)
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
        if isinstance(own := first.get("ctx", {}).get("error"), InvalidRequest):  # from __post_init__
            raise own from None
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
