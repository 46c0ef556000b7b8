"""The ops of the forward pass.

Each function runs its Triton kernel on CUDA tensors and its plain PyTorch twin on all others; the twin in
reference.py documents it.
"""

from __future__ import annotations

from tandem.kernels.groups import RowGroups
from tandem.kernels.reference import (
    add_rms_norm,
    encoder_attention,
    gated_gelu,
    paged_cross_attention,
    paged_self_attention,
    rms_norm,
    write_kv,
)
from tandem.kernels.relative_bias import relative_bias_table

__all__ = [
    "RowGroups",
    "add_rms_norm",
    "encoder_attention",
    "gated_gelu",
    "paged_cross_attention",
    "paged_self_attention",
    "relative_bias_table",
    "rms_norm",
    "write_kv",
]
