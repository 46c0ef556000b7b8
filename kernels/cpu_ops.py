"""The CPU's hot ops in one pass each: launchers of `_cpu.cpp`, which is compiled when Tandem is installed.

Where no compiler was there, or for tensors it does not take, the plain twins in `reference` do the same.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tandem.kernels.groups import RowGroups

try:
    from tandem.kernels import _cpu
except ImportError:
    COMPILED = False
else:
    COMPILED = True

# The dtypes of activations, and whether they are the half-precision one.
_HALF: Final = {torch.float32: False, torch.bfloat16: True}
# Up to this many query rows of a sequence attend here; from there on dense products pay.
_FEW_ROWS: Final = 16


def takes(*tensors: Tensor) -> bool:
    """Whether these activations and weights are on the CPU, and of one dtype that is known here."""
    dtype = tensors[0].dtype
    if not COMPILED or dtype not in _HALF:
        return False
    # A loop, for it is run a hundred times a step.
    for tensor in tensors:  # noqa: SIM110
        if not (tensor.is_cpu and tensor.dtype == dtype):
            return False
    return True


def takes_pages(pages: Tensor, groups: RowGroups | None = None) -> bool:
    """Whether K or V in these pages are read and written here; `groups`: for these query rows."""
    few = groups is None or groups.max_rows <= _FEW_ROWS
    return COMPILED and pages.is_cpu and pages.dtype == torch.float32 and few


def add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As in `reference`; without a residual, the sum is x. All of one dtype."""
    x, weight = x.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.contiguous()
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    _cpu.add_rms_norm(
        x.data_ptr(), 0 if residual is None else residual.data_ptr(), weight.data_ptr(), out.data_ptr(),
        0 if residual is None else total.data_ptr(), x.shape[0], x.shape[1], eps, _HALF[x.dtype],
        torch.get_num_threads(),
    )  # fmt: skip
    return out, total


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """As in `reference`, into float32 pages."""
    assert slots.dtype == torch.int64
    k, v, slots = _rows(k), _rows(v), slots.contiguous()
    rows, heads, dim = k.shape
    _cpu.write_kv(
        k.data_ptr(), v.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr(), slots.data_ptr(),
        rows, heads, dim, k_pages.shape[2], k.stride(0), v.stride(0), _HALF[k.dtype],
    )  # fmt: skip


def int8_pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [outputs, inputs], quantized by output: for `int8_linear`, bytes and scales [outputs]."""
    assert weight.dtype == torch.float32
    weight = weight.contiguous()
    outputs, inputs = weight.shape
    packed = torch.empty(_cpu.int8_bytes(outputs, inputs), dtype=torch.uint8)
    scales = torch.empty(outputs)
    threads = torch.get_num_threads()
    _cpu.int8_pack(weight.data_ptr(), packed.data_ptr(), scales.data_ptr(), outputs, inputs, threads)
    return packed, scales


def int8_linear(x: Tensor, packed: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """``quantize(x) @ quantized weight.T + bias``: float32 [N, inputs] -> [N, outputs]."""
    assert x.dtype == torch.float32
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, inputs = x.shape
    outputs = len(scales)
    out = torch.empty(rows, outputs)
    _cpu.int8_linear(
        x.data_ptr(), packed.data_ptr(), scales.data_ptr(), 0 if bias is None else bias.data_ptr(),
        out.data_ptr(), rows, outputs, inputs, x.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    cu_rows: Tensor,
    bias_table: Tensor | None,
    scale: float,
    softcap: float | None,
    sums: Tensor | None,
    *,
    causal: bool,
    by_cell: bool = False,
) -> Tensor:
    """As `paged_self_attention` and its kin in `reference`, over float32 pages.

    cu_rows: int32 [S + 1]. by_cell: the table names each key's place, page P + offset, instead of each page.
    """
    assert sums is None or sums.is_contiguous()
    assert page_table.dtype == lengths.dtype == cu_rows.dtype == torch.int32
    q = _rows(q)
    _, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype)
    if page_table.stride(1) != 1:
        page_table = page_table.contiguous()
    bias_table = None if bias_table is None else bias_table.contiguous()
    _cpu.attend(
        q.data_ptr(), out.data_ptr(), k_pages.data_ptr(), v_pages.data_ptr(), page_table.data_ptr(),
        cu_rows.data_ptr(), lengths.data_ptr(), 0 if bias_table is None else bias_table.data_ptr(),
        0 if sums is None else sums.data_ptr(), lengths.shape[0], heads, k_pages.shape[1], dim,
        k_pages.shape[2], q.stride(0), page_table.stride(0),
        0 if bias_table is None else bias_table.shape[1] - 1, scale, softcap or 0.0, causal, by_cell,
        _HALF[q.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x [N, H, D] such that only its rows may lie apart."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
