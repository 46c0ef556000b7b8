"""The configuration: as `serve run` and Serve config files give it, and what the engine gets of it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from tandem.cluster.config import DERIVED_ENGINE_FIELDS, ServeConfig, parse_args
from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.workers.config import EngineConfig


def test_strings_from_the_command_line_are_converted() -> None:
    config = parse_args({"model": "m", "tensor_parallel_size": "2", "replica_wait_s": "1.5"})
    assert (config.model, config.tensor_parallel_size, config.replica_wait_s) == ("m", 2, 1.5)


def test_typed_values_from_a_file_are_taken_as_they_are() -> None:
    config = parse_args({"min_decoder_replicas": 2, "limits": {"n": 2}, "check_invariants": True})
    assert config.decoder_replicas == (2, 2)
    assert config.limits.n == 2
    assert config.check_invariants


@pytest.mark.parametrize(
    "args", [{"limits.n": "4"}, {"limits.n": 4}, {"limits": {"n": 4}}, {"limits": {"n": 2}, "limits.n": 4}]
)
def test_limits_are_set_by_their_names(args: dict[str, Any]) -> None:
    limits = parse_args({"model": "m", **args, "limits.timeout_s": "9" if "4" in args.values() else 9}).limits
    assert (limits.n, limits.timeout_s) == (4, 9)


def test_nothing_given_is_the_default() -> None:
    assert parse_args({}) == ServeConfig()


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ({"modell": "m"}, "modell"),
        ({"modell": 1}, "modell"),
        ({"limits": {"samples": 1}}, "limits.samples"),
        ({"limits.samples": "1"}, "limits.samples"),
        ({"limits.n": "many"}, "limits.n"),
        ({"limits.n": 1, "limits": 2}, "limits"),
        ({"tensor_parallel_size": 1.5}, "tensor_parallel_size"),
        ({"tensor_parallel_size": "two"}, "tensor_parallel_size"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"model": 3}, "model"),
        ({"device": "tpu"}, "device"),
        ({"min_encoder_replicas": 3, "max_encoder_replicas": 2}, "max_encoder_replicas"),
        ({"http_port": 9000}, "grpc_port"),
        ({"http_port": 70000}, "http_port"),
        ({"max_num_seqs": 64, "max_batched_tokens": 32}, "max_batched_tokens"),
        ({"draft_tokens": -1}, "draft_tokens"),
        ({"replica_wait_s": "nan"}, "replica_wait_s"),
        ({"look_back_s": 10}, "look_back_s"),
        ({"override_generation_config": {"beams": 4}}, "override_generation_config.beams"),
    ],
)
def test_faults_are_refused_by_name(args: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_args(args)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("http_port", 0),
        ("http_port", 70000),
        ("max_decoder_replicas", 0),
        ("encoder_cache_bytes", -1),
        ("upscale_delay_s", -1.0),
        ("encoder_cpus", 0),
        ("replica_wait_s", float("nan")),
        ("look_back_s", 10.0),
        ("tensor_parallel_size", 0),
        ("tensor_parallel_size", "2"),
        ("page_size", 0),
        ("dtype", "float16"),
    ],
)
def test_values_in_python_are_checked_as_well(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ServeConfig(**{name: value})
    assert caught.value.field == name


TOLD = {
    "model": "folder",
    "dtype": "float32",
    "device": "cpu",
    "quantization": "int8",
    "tensor_parallel_size": 2,
    "max_num_seqs": 8,
    "max_batched_tokens": 99,
    "max_encoder_tokens": 99,
    "kv_cache_gib": 0.5,
    "page_size": 16,
    "num_pages": 9,
    "encoder_cache_bytes": 77,
    "draft_tokens": 4,
    "overlap": True,
    "async_encode": True,
    "cuda_graphs": True,
    "check_invariants": True,
}


@pytest.mark.parametrize("name", [field.name for field in fields(EngineConfig)])
def test_every_option_of_the_engine_can_be_set_or_is_derived(name: str) -> None:
    if name in DERIVED_ENGINE_FIELDS:
        assert not hasattr(ServeConfig(), name)
        return
    config = ServeConfig(**{name: TOLD[name]})  # type: ignore[arg-type]
    assert getattr(config.engine_config("folder"), name) == TOLD[name]
    if name != "model":
        assert getattr(ServeConfig(), name) == getattr(EngineConfig("folder"), name) != TOLD[name]


def test_lengths_are_derived_from_the_limits() -> None:
    engine = ServeConfig(limits=Limits(encoder_tokens=7, decoder_tokens=9)).engine_config("folder")
    assert (engine.max_encoder_length, engine.max_decoder_length) == (7, 9)


def test_the_engine_gets_an_encoder_only_where_it_encodes_itself() -> None:
    assert not ServeConfig().engine_config("folder").with_encoder
    assert ServeConfig(placement="colocated").engine_config("folder").with_encoder
