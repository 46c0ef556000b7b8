"""Activations: gated GELU in one pass, the gate's activation and its product with the linear half. The others
are PyTorch's.

Bound by memory: for x [N, 2F] of b bytes a number 3 N F b bytes, two thirds read and one third written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tandem.kernels import reference

BLOCK = 1024


@triton.jit
def _gated_gelu_kernel(x_ptr, out_ptr, x_stride, width, BLOCK: tl.constexpr):
    """``gelu_tanh(gate) * linear``, one block of one row per program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    linear = tl.load(x_ptr + row * x_stride + width + columns, mask=inside, other=0.0)
    # (1 + tanh(u)) / 2 = sigmoid(2u), with u = sqrt(2 / pi) (g + 0.044715 g^3)
    gelu = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    # Rounded between activation and product, as two separate operators would.
    gelu = gelu.to(linear.dtype).to(tl.float32)
    out = gelu * linear.to(tl.float32)
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask=inside)


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    if not gated or activation != "gelu_new":
        return reference.activate(x, activation, gated=gated)
    rows, width = x.shape[0], x.shape[1] // 2
    assert x.stride(1) == 1
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    if rows:
        _gated_gelu_kernel[(rows, triton.cdiv(width, BLOCK))](
            x, out, x.stride(0), width, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True
        )
    return out
