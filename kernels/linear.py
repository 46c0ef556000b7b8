"""Matrix products with weights that no longer change."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

# What torch.compile's own CPU code calls.
_ONEDNN: Final = torch.ops.mkldnn
# Rows the layout is chosen for. oneDNN's choice for many rows is as fast for one row as its choice for one,
# which in turn is slow for many.
_ROWS: Final = 256


class Linear:
    """``x @ weight.T + bias``: x [N, inputs] -> [N, outputs], in x's dtype, which is the weight's.

    `pack` lays the weight out anew as the CPU's kernels read it. oneDNN then is 2 to 4 times as fast as
    `F.linear` from one row to 128, on AMD's Zen 5 with MKL, whose weights are read as they lie.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight: Tensor | None = weight
        self._packed: Tensor | None = None
        self.bias = bias  # [outputs]

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs], to be filled before it is packed."""
        assert self._weight is not None, "packed"
        return self._weight

    def pack(self) -> None:
        """Takes the weight as it is now, and lets go of the tensor."""
        if packs(self.weight):
            self._packed = _ONEDNN._reorder_linear_weight(self.weight, _ROWS)
            self._weight = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        out: Tensor = _ONEDNN._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def packs(weight: Tensor) -> bool:
    """Whether a weight like this is laid out anew."""
    if weight.device.type != "cpu" or not hasattr(_ONEDNN, "_linear_pointwise"):  # PyTorch without oneDNN
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and _ONEDNN._is_mkldnn_bf16_supported()
    )
