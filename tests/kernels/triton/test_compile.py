"""Without a GPU the kernels can still be compiled for one, which the interpreter says nothing about: here
those variants that no model of test_resources.py launches."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tandem.kernels import values
from tandem.kernels.triton import (
    attention_encoder,
    attention_paged_kernels,
    decode_rows,
)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="test_ops.py compiles them, or nothing can",
)

HOPPER = GPUTarget("cuda", 90, 32)

STRIDES = dict.fromkeys(
    ("x_stride", "residual_stride", "q_stride", "k_stride", "v_stride", "pages_stride", "summary_k_stride",
     "summary_v_stride", "stride"), "i32"
)  # fmt: skip
BF16 = "*bf16"
ATTENTION = {"q_ptr": BF16, "k_ptr": BF16, "v_ptr": BF16, "out_ptr": BF16, "scale": "fp32"}
PAGED = {**ATTENTION, "pages_ptr": "*i32", "lengths_ptr": "*i32", "cu_rows_ptr": "*i32", "blocks": "i32"}
PAGED_SIZES = {"HEADS": 8, "DIM": 64, "BLOCK_D": 64, "BLOCK_N": 64, "UPCAST": False, "CAP": 0.0, "GROUP": 1,
               "SUMS": False, "HAS_BEGINS": False, "begins_ptr": None}  # fmt: skip
WITH_BEGINS = {name: value for name, value in PAGED_SIZES.items() if name != "begins_ptr"} | {
    "HAS_BEGINS": True
}
GEMMA = {"CAP": 50.0, "GROUP": 2}
SUMMARIES = ("summary_k_ptr", "summary_v_ptr", "cu_summaries_ptr", "summary_table_ptr")
ALL_SEEN = {"WINDOWED": False, "SUMMARIZED": 0, "SUMMARY_REACH": 0, **dict.fromkeys(SUMMARIES)}
GATHER_ROWS = {
    **dict.fromkeys(
        ("rows_ptr", "sequences_ptr", "token_ids_ptr", "positions_ptr", "write_slots_ptr"), "*i64"
    ),
    **dict.fromkeys(
        ("self_pages_ptr", "cells_ptr", "cross_pages_ptr", "cross_lengths_ptr", "history_ptr", "lengths_ptr",
         "cross_ptr", "crossed_ptr", "cross_spans_ptr", "begins_ptr"), "*i32"
    ),
    **dict.fromkeys(("width", "self_width", "cells_width", "cross_width"), "i32"),
}  # fmt: skip
NO_SPANS = {"SPANS": False, "cross_spans_ptr": None, "begins_ptr": None}
COLUMNS = {name: getattr(values, name) for name in decode_rows.COLUMNS} | {"BLOCK": 1024}

CASES = {
    "gather_rows with spans": (
        decode_rows._gather_rows_kernel,
        GATHER_ROWS,
        {**COLUMNS, "PAGE": 64, "BEAMS": False, "cells_ptr": None, "SPANS": True},
    ),
    "match_prompt_tokens": (
        decode_rows._match_prompt_tokens_kernel,
        {**dict.fromkeys(("tokens_ptr", "rows_ptr", "sequences_ptr", "out_ptr"), "*i64"), "width": "i32"},
        COLUMNS,
    ),
    "encoder_attention, windowed, with summaries": (
        attention_encoder._encoder_attention_kernel,
        {**ATTENTION, "cu_seqlens_ptr": "*i32", "table_ptr": "*fp32", "tiles_ptr": BF16}
        | {"summary_k_ptr": BF16, "summary_v_ptr": BF16, "cu_summaries_ptr": "*i32"}
        | {"summary_table_ptr": "*fp32"},
        {**PAGED_SIZES, "REACH": 128, "LEFT": 2, "TILES": 6, "HAS_BIAS": True, "BLOCK_M": 128}
        | {"WINDOWED": True, "SUMMARIZED": 16, "SUMMARY_REACH": 128, **GEMMA},
    ),
    "encoder_attention without bias": (
        attention_encoder._encoder_attention_kernel,
        {**ATTENTION, "cu_seqlens_ptr": "*i32"},
        {**PAGED_SIZES, "table_ptr": None, "tiles_ptr": None, "REACH": 0, "LEFT": 0, "TILES": 0}
        | {"HAS_BIAS": False, "BLOCK_M": 128, **ALL_SEEN},
    ),
    "self attention of beams, split": (
        attention_paged_kernels.one_row_kernel,
        {**PAGED, "bias_ptr": "*fp32", "out_ptr": "*fp32", "top_ptr": "*fp32"},
        {**PAGED_SIZES, "REACH": 128, "HAS_BIAS": True, "SPLITS": 4, "PAGE": 64, "BY_CELL": True, **GEMMA},
    ),
    "cross attention, one row, split": (
        attention_paged_kernels.one_row_kernel,
        {**PAGED, "out_ptr": "*fp32", "top_ptr": "*fp32"},
        {**PAGED_SIZES, "bias_ptr": None, "REACH": 0, "HAS_BIAS": False, "SPLITS": 4, "PAGE": 16}
        | {"BY_CELL": False},
    ),
    "cross attention of spans, one row": (
        attention_paged_kernels.one_row_kernel,
        {**PAGED, "begins_ptr": "*i32"},
        {**WITH_BEGINS, "top_ptr": None, "bias_ptr": None, "REACH": 0, "HAS_BIAS": False, "SPLITS": 1}
        | {"PAGE": 64, "BY_CELL": False, "GROUP": 4},
    ),
    "cross attention of spans, several rows, split": (
        attention_paged_kernels.row_block_kernel,
        {**PAGED, "begins_ptr": "*i32", "out_ptr": "*fp32", "top_ptr": "*fp32"},
        {**WITH_BEGINS, "bias_ptr": None, "REACH": 0, "HAS_BIAS": False, "CAUSAL": False, "SPLITS": 4}
        | {"PAGE": 16, "BLOCK_M": 64, "GROUP": 4},
    ),
    "self attention, several rows": (
        attention_paged_kernels.row_block_kernel,
        {**PAGED, "bias_ptr": "*fp32"},
        {**PAGED_SIZES, "top_ptr": None, "REACH": 128, "HAS_BIAS": True, "CAUSAL": True, "SPLITS": 1}
        | {"PAGE": 64, "BLOCK_M": 64, **GEMMA},
    ),
    "cross attention, several rows, split": (
        attention_paged_kernels.row_block_kernel,
        {**PAGED, "out_ptr": "*fp32", "top_ptr": "*fp32"},
        {**PAGED_SIZES, "bias_ptr": None, "REACH": 0, "HAS_BIAS": False, "CAUSAL": False, "SPLITS": 4}
        | {"PAGE": 16, "BLOCK_M": 16},
    ),
    "merge": (
        attention_paged_kernels.merge_kernel,
        {"parts_ptr": "*fp32", "tops_ptr": "*fp32", "out_ptr": BF16, "sums_ptr": "*fp32"},
        {"SPLITS": 4, "SUMS": True, "DIM": 64, "BLOCK_D": 64},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_compiles_for_hopper(name: str) -> None:
    kernel, types, sizes = CASES[name]
    types = types | STRIDES
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, argument in enumerate(kernel.arg_names):
        if argument in sizes:
            signature[argument] = "constexpr"
            constants[(position,)] = sizes[argument]
        else:
            signature[argument] = types[argument]
            if argument in STRIDES or argument.endswith("_ptr"):
                aligned[(position,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=HOPPER, options={"enable_fp_fusion": True}
    )
    assert compiled.asm["cubin"]
    # What one program may use of a multiprocessor's shared memory.
    assert compiled.metadata.shared <= 227 * 1024
