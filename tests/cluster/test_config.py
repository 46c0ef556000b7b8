"""Arguments as `serve run` and Serve config files give them."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.cluster.config import ServeConfig, parse_args
from tandem.errors import InvalidRequest


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


def test_the_engine_drafts_as_told() -> None:
    assert ServeConfig(draft_tokens=4).engine_config("folder").draft_tokens == 4


def test_the_engine_gets_an_encoder_only_where_it_encodes_itself() -> None:
    assert not ServeConfig().engine_config("folder").with_encoder
    assert ServeConfig(placement="colocated").engine_config("folder").with_encoder
