"""The pool's size follows from the engine's options, the model and the device."""

from __future__ import annotations

from dataclasses import replace

import torch

from tandem.kernels.cpu.ops import COMPILED
from tandem.workers.config import EngineConfig
from tandem.workers.models.kv_pool import pool_pages
from tandem.workers.models.spec import ModelSpec, StackSpec

CPU = torch.device("cpu")
STACK = StackSpec(
    vocab_size=128, layers=3, d_model=64, heads=8, head_dim=16, d_ff=128, activation="relu", norm="rms",
    norm_eps=1e-6, attention_scale=1.0,
)  # fmt: skip
MODEL = ModelSpec(
    family="test", encoder=replace(STACK, layers=9), decoder=STACK, decoder_start_id=0, pad_id=0, eos_ids=(1,)
)
PAGE_BYTES = 2 * 3 * 8 * 32 * 16 * 4  # k and v, planes, heads, positions, head_dim, float32


def test_pages_are_what_the_sequences_can_use() -> None:
    config = EngineConfig("m", max_num_seqs=4, max_encoder_length=100, max_decoder_length=33)
    assert pool_pages(config, MODEL, CPU) == 4 * (4 + 2)


def test_pages_are_what_fits() -> None:
    room = 37 * PAGE_BYTES / 2**30
    config = EngineConfig("m", kv_cache_gib=room)
    assert pool_pages(config, MODEL, CPU) == 37
    for lower in ({"dtype": "bfloat16"}, {"quantization": "int8"}):
        assert pool_pages(replace(config, **lower), MODEL, CPU) == (2 * 37 if COMPILED else 37)
    assert pool_pages(replace(config, tensor_parallel_size=2), MODEL, CPU) == 2 * 37
    assert pool_pages(replace(config, page_size=64), MODEL, CPU) == 37 // 2
    assert pool_pages(replace(config, kv_cache_gib=room / 1e6), MODEL, CPU) == 1
    assert pool_pages(replace(config, num_pages=5), MODEL, CPU) == 5


def test_a_cpu_engine_keeps_to_a_gibibyte() -> None:
    config = EngineConfig("m", max_num_seqs=10_000, max_batched_tokens=10_000)
    assert pool_pages(config, MODEL, CPU) == 2**30 // PAGE_BYTES


def test_layers_of_one_kind_of_attention_share_planes() -> None:
    """Two layers of three, and the third."""
    config = EngineConfig("m", kv_cache_gib=37 * PAGE_BYTES / 2**30)
    listed = replace(MODEL, decoder=replace(STACK, cross_layers=(1,)))
    assert pool_pages(config, listed, CPU) == 37 * 3 // 2
