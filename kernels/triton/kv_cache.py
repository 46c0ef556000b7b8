"""Stores the keys and values of new tokens in their pages.

Bound by memory, and in a decode step by its launch: for N tokens of G heads of D numbers of b bytes 4 N G D b
bytes, read and written.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _write_kv_kernel(
    k_ptr,
    v_ptr,
    k_pages_ptr,
    v_pages_ptr,
    slots_ptr,
    k_stride,
    v_stride,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token per program: its [HEADS, DIM] row goes to one position of HEADS tiles [PAGE, DIM]."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token)
    element = tl.arange(0, BLOCK)
    inside = element < HEADS * DIM
    head, dim = element // DIM, element % DIM
    target = ((slot // PAGE * HEADS + head) * PAGE + slot % PAGE) * DIM + dim
    k = tl.load(k_ptr + token * k_stride + element, mask=inside)
    tl.store(k_pages_ptr + target, k.to(k_pages_ptr.dtype.element_ty), mask=inside)
    v = tl.load(v_ptr + token * v_stride + element, mask=inside)
    tl.store(v_pages_ptr + target, v.to(v_pages_ptr.dtype.element_ty), mask=inside)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    # Tokens may be strided (slices of a fused projection); the heads of one token may not.
    assert k.stride()[1:] == v.stride()[1:] == (dim, 1)
    assert all(pages.is_contiguous() for pages in (k_pages, v_pages))
    _write_kv_kernel[(tokens,)](
        k,
        v,
        k_pages,
        v_pages,
        slots,
        k.stride(0),
        v.stride(0),
        HEADS=heads,
        PAGE=k_pages.shape[2],
        DIM=dim,
        BLOCK=triton.next_power_of_2(heads * dim),
        num_warps=4,
        enable_fp_fusion=True,
    )
