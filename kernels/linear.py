"""Matrix products with constant weights, which are laid out once for the CPU."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.dispatch import backend

# What torch.compile's own CPU code calls.
_ONEDNN: Final = torch.ops.mkldnn
# The number of rows oneDNN chooses the layout for. Its choice for many rows is as fast for one row as its
# choice for one row, which is slow for many.
_ROWS: Final = 256
# Rows that a feed-forward computes at once on a CPU. What is between its projections is several times as
# wide as they are: so many rows of it stay in the cache, and in memory that the allocator keeps.
_PIECE: Final = 256


class Linear:
    """``x @ weight.T + bias``: x [N, inputs] → [N, outputs], in x's dtype, which is the weight's.

    `pack` lays the weight out as the CPU's products read it. In float32 with AVX-512 the product is
    `cpu.ops.float_linear`, as fast as oneDNN for many rows and 4 times as fast for one. Otherwise it is
    oneDNN's, from 1 to 128 rows 2 to 4 times as fast as `F.linear`, which reads the plain layout (MKL on
    AMD's Zen 5).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight: Tensor | None = weight
        self._packed: Tensor | None = None
        self.outputs = len(weight)
        self._own = _is_own(weight)
        self.bias = bias  # [outputs]

    @property
    def weight(self) -> Tensor:
        """[outputs, inputs], to be filled before `pack`."""
        assert self._weight is not None, "packed"
        return self._weight

    def pack(self) -> None:
        """Lays out the weight as it is now, and releases the plain tensor."""
        if self._own:
            self._packed = cpu_ops.float_pack(self.weight)
        elif packs(self.weight):
            self._packed = _ONEDNN._reorder_linear_weight(self.weight, _ROWS)
        else:
            return
        self._weight = None

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weight once it is packed."""
        return cpu_ops.float_bytes(self.weight) if self._own else self.weight.nbytes

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """out: contiguous [N, outputs], which the result goes into."""
        if self._packed is None:
            return self._plain(x, out)
        if self._own:
            return cpu_ops.float_linear(x, self._packed, self.outputs, self.bias, out)
        result: Tensor = _ONEDNN._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result if out is None else out.copy_(result)

    def _plain(self, x: Tensor, out: Tensor | None) -> Tensor:
        if out is None:
            return F.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)


class Int8Linear(Linear):
    """A product in 8-bit integers, on the CPU and from float32 to float32: `quantize(x) @
    quantize(weight).T`.

    The weight is quantized once by output, x at every call by row. Integer sums are exact, so a row's result
    does not depend on the other rows.
    """

    def pack(self) -> None:
        if cpu_ops.COMPILED:
            self._packed, self._scales = cpu_ops.int8_pack(self.weight)
        else:
            self._packed, self._scales = quantize(self.weight)
            self._packed = self._packed.t()
        self._weight = None

    @property
    def packed_bytes(self) -> int:
        return self.weight.numel() + 4 * self.weight.shape[0]

    @property
    def compiled(self) -> cpu_ops.Int8Weight | None:
        """The packed weight for the extension's ops; None where that is missing."""
        if not cpu_ops.COMPILED:
            return None
        assert self._packed is not None
        return cpu_ops.Int8Weight(self._packed, self._scales, self.bias)

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        assert self._packed is not None
        if cpu_ops.COMPILED:
            return cpu_ops.int8_linear(x, self._packed, self._scales, self.bias, out)
        values, scales = quantize(x)
        # oneDNN's product takes no empty operand.
        sums = torch._int_mm(values, self._packed) if len(x) else x.new_empty(0, self.outputs)
        result = sums.float() * (scales.unsqueeze(1) * self._scales)
        if self.bias is not None:
            result += self.bias
        return result if out is None else out.copy_(result)


def feed_forward(x: Tensor, up: Linear, down: Linear, activation: str, *, gated: bool = False) -> Tensor:
    """``down(activate(up(x)))`` of an encoder's rows on a CPU, [N, d] → [N, D]; what is between the products
    stays in the cache."""
    out = x.new_empty(len(x), down.outputs)
    if (weights := _one_pass(up, down)) is not None:
        return cpu_ops.int8_feed_forward(x, *weights, activation, gated=gated, norm=None, out=out, add=False)
    pieces = max(1, len(x) // _PIECE)
    for piece, its in zip(x.tensor_split(pieces), out.tensor_split(pieces), strict=True):
        down(backend(piece).activate(up(piece), activation, gated=gated), its)
    return out


def add_feed_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, up: Linear, down: Linear, activation: str
) -> None:
    """Adds ``down(activate(up(layer_norm(x))))`` to x, contiguous rows [N, d] of an encoder."""
    if (weights := _one_pass(up, down)) is None:
        ops = backend(x, weight, bias)
        x.add_(down(ops.activate(up(ops.layer_norm(x, weight, bias, eps)), activation)))
    else:
        norm = cpu_ops.LayerNorm(weight, bias, eps)
        cpu_ops.int8_feed_forward(x, *weights, activation, gated=False, norm=norm, out=x, add=True)


def _one_pass(up: Linear, down: Linear) -> tuple[cpu_ops.Int8Weight, cpu_ops.Int8Weight] | None:
    """The weights of a feed-forward that `cpu.ops.int8_feed_forward` computes; None: it does not."""
    if not (isinstance(up, Int8Linear) and isinstance(down, Int8Linear)):
        return None
    first, second = up.compiled, down.compiled
    return None if first is None or second is None else (first, second)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, d] → int8 [N, d] and scales, float32 [N], whose product is nearly x; each row's largest
    magnitude is 127."""
    most = x.abs().amax(1) if x.numel() else x.new_zeros(len(x))
    inverse = torch.where(most > 0, 127.0 / most, 0.0)
    return (x * inverse.unsqueeze(1)).round().to(torch.int8), most / 127.0


def _is_own(weight: Tensor) -> bool:
    """Whether the extension multiplies by a weight like this: `cpu.ops.float_linear`."""
    return cpu_ops.COMPILED and cpu_ops.AVX512 and weight.is_cpu and weight.dtype == torch.float32


def packs(weight: Tensor) -> bool:
    """Whether oneDNN lays out a weight like this."""
    if weight.device.type != "cpu" or not hasattr(_ONEDNN, "_linear_pointwise"):  # PyTorch without oneDNN
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and _ONEDNN._is_mkldnn_bf16_supported()
    )
