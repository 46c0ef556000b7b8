"""What an engine may be told, and what follows from the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem.errors import InvalidRequest
from tandem.workers.config import EngineConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name",
    ["tensor_parallel_size", "max_num_seqs", "max_batched_tokens", "max_encoder_tokens",
     "max_encoder_length", "max_decoder_length"],
)  # fmt: skip
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    options: dict[str, Any] = {"model": "m", name: 0}
    with pytest.raises(InvalidRequest, match="at least 1, got 0") as caught:
        EngineConfig.of(**options)
    assert caught.value.field == name


def test_a_step_must_hold_a_token_for_each_sequence() -> None:
    with pytest.raises(InvalidRequest, match="at least max_num_seqs = 9, got 8") as caught:
        EngineConfig("model", max_num_seqs=9, max_batched_tokens=8)
    assert caught.value.field == "max_batched_tokens"
    EngineConfig("model", max_num_seqs=8, max_batched_tokens=8)


def test_options_as_a_person_writes_them() -> None:
    assert EngineConfig.of(model="m", dtype="float", page_size=8) == EngineConfig("m", "float32", page_size=8)
    assert EngineConfig.of(model="m") == EngineConfig("m")
    with pytest.raises(InvalidRequest, match="unknown option") as caught:
        EngineConfig.of(model="m", max_seqs=3)
    assert caught.value.field == "max_seqs"


@pytest.mark.parametrize(("dtype", "hint"), [("half", True), ("float16", True), ("int8", False)])
def test_dtypes_that_are_not_served_are_refused(dtype: str, hint: bool) -> None:
    with pytest.raises(InvalidRequest, match=f"must be one of .*bfloat16, got '{dtype}'") as caught:
        EngineConfig.of(model="m", dtype=dtype)
    assert caught.value.field == "dtype"
    assert ("overflow" in str(caught.value)) == hint


def test_who_encodes_alongside_its_steps() -> None:
    cuda, alone = torch.device("cuda"), EngineConfig("m")
    assert alone.encodes_async(cuda)
    assert not alone.encodes_async(CPU)
    assert not replace(alone, tensor_parallel_size=2).encodes_async(cuda)
    assert not replace(alone, with_encoder=False).encodes_async(cuda)
    assert not replace(alone, async_encode=False).encodes_async(cuda)
    assert replace(alone, async_encode=True).encodes_async(CPU)


def test_dtype_by_device() -> None:
    config = EngineConfig("m")
    assert config.torch_dtype(CPU) == torch.float32
    assert config.torch_dtype(torch.device("cuda")) == torch.bfloat16
    assert replace(config, dtype="bfloat16").torch_dtype(CPU) == torch.bfloat16
    assert replace(config, dtype="float32").torch_dtype(torch.device("cuda")) == torch.float32
    assert replace(config, device="cpu").torch_device(rank=3) == CPU


def test_a_gpu_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert EngineConfig("m").torch_device() == CPU
    with pytest.raises(InvalidRequest, match="no GPU") as caught:
        EngineConfig("m", device="cuda").torch_device()
    assert caught.value.field == "device"


def test_page_size_by_device() -> None:
    config = EngineConfig("m")
    assert config.positions_per_page(CPU) == 32
    assert config.positions_per_page(torch.device("cuda")) == 64
    assert replace(config, page_size=4).positions_per_page(CPU) == 4


def test_drafts() -> None:
    assert EngineConfig("m", draft_tokens=0).draft_tokens == 0
    with pytest.raises(InvalidRequest, match="must be at least 0, got -1") as caught:
        EngineConfig.of(model="m", draft_tokens=-1)
    assert caught.value.field == "draft_tokens"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("draft_tokens", None, "must be a whole number, got None"),
        ("max_num_seqs", "8", "must be a whole number, got '8'"),
        ("page_size", 1.5, "must be a whole number, got 1.5"),
        ("num_pages", 0, "must be at least 1, got 0"),
        ("kv_cache_gib", 0, "must be above 0, got 0"),
        ("kv_cache_gib", float("nan"), "must be above 0, got nan"),
        ("device", "tpu", "must be one of auto, cpu, cuda, got 'tpu'"),
        ("overlap", "yes", "must be true or false, got 'yes'"),
        ("model", Path("m"), "must be a string, got "),
        ("max_num_seqs", True, "must be a whole number, got True"),
    ],
)
def test_each_field_says_what_it_takes(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EngineConfig(**{"model": "m", name: value})  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert caught.value.field == name


@pytest.mark.parametrize(
    "options",
    [{"quantization": "int4"}, {"quantization": "int8", "dtype": "bfloat16"},
     {"quantization": "int8", "device": "cuda"}],
)  # fmt: skip
def test_quantization_is_for_float32_on_a_cpu(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"int8|float32 on a CPU") as caught:
        EngineConfig("m", **options)
    assert caught.value.field == "quantization"
    config = EngineConfig("m", quantization="int8")
    assert (config.torch_device(), config.torch_dtype(CPU)) == (CPU, torch.float32)
