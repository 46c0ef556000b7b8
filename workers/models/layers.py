"""The layers. Each knows its weights and how it is sharded; model code above never mentions a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tandem import kernels
from tandem.errors import ModelLoadError
from tandem.kernels import Int8Linear, Linear
from tandem.workers.config import Quantization
from tandem.workers.distributed import Group
from tandem.workers.models.spec import NormKind, StackSpec


@dataclass(frozen=True)
class WeightSlot:
    """A place for a weight of the checkpoint, or for this rank's slice of it, in a layer's tensor."""

    name: str  # ours; see families/
    into: torch.Tensor  # a view of the layer's tensor
    shape: tuple[int, ...]  # the whole weight's in the checkpoint
    dim: int | None = None  # sharded along this dimension; None: every rank holds all of it
    start: int = 0  # first index of this rank's slice along `dim`
    plus: float = 0.0  # added to what the checkpoint holds, see spec.NormKind
    filled: bool = False  # `into` holds what an absent weight is; else that is zero


class HasWeights(Protocol):
    def slots(self) -> Iterator[WeightSlot]: ...


def weights_of(*parts: HasWeights | None) -> Iterator[WeightSlot]:
    """The slots of all parts that are there."""
    for part in parts:
        if part is not None:
            yield from part.slots()


class Placement:
    """Where and how a model's tensors are made."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, group: Group, quantization: Quantization | None = None
    ) -> None:
        self.device, self.dtype, self.group = device, dtype, group
        self.quantization: Quantization | None = quantization
        self.linear_kind = Linear if quantization is None else Int8Linear
        self._linears: list[Linear] = []

    def empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, device=self.device, dtype=self.dtype)

    def linear(self, inputs: int, outputs: int, bias: bool) -> Linear:
        """A projection whose weights are to be loaded."""
        made = self.linear_kind(self.empty(outputs, inputs), self.empty(outputs) if bias else None)
        self._linears.append(made)
        return made

    def pack(self) -> None:
        """All weights are loaded: lets the projections made here lay them out as they like."""
        for linear in self._linears:
            linear.pack()
        self._linears.clear()

    def saved(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Each projection's weight, and the bytes that `pack` will save of it."""
        for linear in self._linears:
            yield linear.weight, linear.weight.nbytes - linear.packed_bytes

    def share(self, total: int, what: str) -> int:
        """`total` split evenly over the ranks."""
        if total % self.group.size:
            raise ModelLoadError(
                f"{what} = {total} is not divisible by tensor_parallel_size = {self.group.size}",
                field="tensor_parallel_size",
            )
        return total // self.group.size


class Norm:
    """RMSNorm or LayerNorm of the last dimension; the same on every rank."""

    def __init__(self, name: str, width: int, kind: NormKind, eps: float, place: Placement) -> None:
        self.name, self.eps, self.dtype = name, eps, place.dtype
        self.plus = 1.0 if kind == "rms_plus_one" else 0.0
        # Half precision would round most of a small weight away next to the 1.
        dtype = torch.float32 if self.plus else place.dtype
        self.weight = torch.empty(width, device=place.device, dtype=dtype)
        self.bias = place.empty(width) if kind == "layer" else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.bias is None:
            return kernels.rms_norm(x, self.weight, self.eps).to(self.dtype)
        return kernels.layer_norm(x, self.weight, self.bias, self.eps)

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, heads, width], each head by itself."""
        return self(x.reshape(-1, x.shape[-1])).view(x.shape)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of the sum, and the sum."""
        if self.bias is None:
            x, total = kernels.add_rms_norm(x, residual, self.weight, self.eps)
            return x.to(self.dtype), total
        return kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.weight, tuple(self.weight.shape), plus=self.plus)
        if self.bias is not None:
            yield WeightSlot(f"{self.name}.bias", self.bias, tuple(self.bias.shape))


def stack_norm(name: str, stack: StackSpec, place: Placement) -> Norm:
    """The stack's kind of norm, of rows [N, d_model]."""
    return Norm(name, stack.d_model, stack.norm, stack.norm_eps, place)


def output_norm(name: str, stack: StackSpec, place: Placement) -> Norm | None:
    """The norm of a sublayer's output, where the stack has one."""
    return stack_norm(f"{name}.output_norm", stack, place) if stack.output_norm else None


def head_norm(name: str, stack: StackSpec, place: Placement, *, cross: bool = False) -> Norm | None:
    """The norm of each head's queries or keys, of cross-attention's or of others, where the stack has one."""
    has = stack.cross_qk_norm if cross and stack.cross_qk_norm is not None else stack.qk_norm
    return Norm(name, stack.head_dim, stack.norm, stack.norm_eps, place) if has else None


class Gate:
    """``tanh(weight) x``, by which a branch joins the sum."""

    def __init__(self, name: str, place: Placement) -> None:
        self.name, self._weight = name, place.empty(1)
        self.factor = 0.0  # set by `prepare`

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.scale(x, self.factor)

    def prepare(self) -> None:
        """The weight is loaded."""
        self.factor = float(self._weight.tanh())

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self._weight, (1,))


class Replicated:
    """A projection that every rank computes whole: [N, outputs]."""

    def __init__(self, name: str, inputs: int, outputs: int, place: Placement, *, bias: bool = True) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self.linear = place.linear(inputs, outputs, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.linear.weight, (self.outputs, self.inputs))
        if self.linear.bias is not None:
            yield WeightSlot(f"{self.name}.bias", self.linear.bias, (self.outputs,))


class ColumnParallel:
    """Several projections of one input as one GEMM, each split by its output.

    `names` are the parts in order; part i has `widths[i]` outputs over all ranks. The result is the
    parts' shares side by side: [N, sum(widths) / size].
    """

    def __init__(
        self,
        names: Sequence[str],
        widths: Sequence[int],
        inputs: int,
        what: str,
        place: Placement,
        unit: int = 1,  # outputs that stay on one rank: a head's
        bias: bool = False,
    ) -> None:
        self.names, self.widths, self.inputs = names, widths, inputs
        self.shares = [place.share(width // unit, what) * unit for width in widths]
        self.rank = place.group.rank
        self.linear = place.linear(inputs, sum(self.shares), bias)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """out: contiguous, which the result goes into."""
        return self.linear(x, out)

    def slots(self) -> Iterator[WeightSlot]:
        parts = self.linear.weight.split(self.shares)
        for name, part, width, share in zip(self.names, parts, self.widths, self.shares, strict=True):
            yield WeightSlot(name, part, (width, self.inputs), dim=0, start=self.rank * share)
        if self.linear.bias is not None:
            parts = self.linear.bias.split(self.shares)
            for name, part, width, share in zip(self.names, parts, self.widths, self.shares, strict=True):
                yield WeightSlot(f"{name}.bias", part, (width,), dim=0, start=self.rank * share)


class RowParallel:
    """A projection split by its input; the ranks' partial results are summed: [N, outputs]. The bias,
    which every rank has, counts once."""

    def __init__(
        self,
        name: str,
        inputs: int,
        outputs: int,
        what: str,
        place: Placement,
        unit: int = 1,
        bias: bool = False,
    ) -> None:
        self.name, self.inputs, self.outputs, self.group = name, inputs, outputs, place.group
        self.share = place.share(inputs // unit, what) * unit
        self.linear = place.linear(self.share, outputs, bias and place.group.size == 1)
        self.bias = place.empty(outputs) if bias and place.group.size > 1 else None

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """out: contiguous, which the result goes into."""
        return self.summed(self.linear(x, out))

    def summed(self, share: torch.Tensor) -> torch.Tensor:
        """The ranks' results together, from what `linear` gives, which may be overwritten."""
        total = self.group.all_reduce(share)
        return total if self.bias is None else total.add_(self.bias)

    def slots(self) -> Iterator[WeightSlot]:
        whole = (self.outputs, self.inputs)
        yield WeightSlot(self.name, self.linear.weight, whole, dim=1, start=self.group.rank * self.share)
        for bias in (self.linear.bias, self.bias):
            if bias is not None:
                yield WeightSlot(f"{self.name}.bias", bias, (self.outputs,))


class HeadTable:
    """A [rows, heads] table of which each rank keeps its own heads."""

    def __init__(self, name: str, rows: int, heads: int, place: Placement) -> None:
        self.name, self.heads, self.rank = name, heads, place.group.rank
        # float32: it is added to float32 scores.
        self.weight = torch.empty(rows, place.share(heads, "heads"), device=place.device)

    def slots(self) -> Iterator[WeightSlot]:
        rows, share = self.weight.shape
        yield WeightSlot(self.name, self.weight, (rows, self.heads), dim=1, start=self.rank * share)


class Vocabulary:
    """A [vocabulary, width] matrix, split by token; the last rank's share may be partly empty.

    Serves as embedding, as output projection, or as both where they are tied.
    """

    def __init__(self, name: str, size: int, width: int, place: Placement) -> None:
        self.name, self.size, self.group = name, size, place.group
        self.share = -(-size // place.group.size)
        self.start = place.group.rank * self.share
        self.weight = torch.zeros(self.share, width, device=place.device, dtype=place.dtype)
        self._linear_kind = place.linear_kind
        self._output: Linear | None = None

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [N] → [N, width]."""
        if self.group.size == 1:
            return kernels.embed(ids, self.weight)
        local = ids - self.start
        here = (local >= 0) & (local < self.share)
        rows = kernels.embed(local.clamp(0, self.share - 1), self.weight)
        return self.group.all_reduce(rows * here.unsqueeze(1))

    def prepare_logits(self, bias: VocabularyBias | None, *, embeds: bool) -> None:
        """Makes the loaded weights an output projection; `embeds`: they stay an embedding, too."""
        self._output = self._linear_kind(self.weight, None if bias is None else bias.weight)
        self._output.pack()
        if not embeds:
            self.weight = self.weight.new_empty(0, self.weight.shape[1])

    @property
    def packed_bytes(self) -> int:
        """Bytes of the output projection that `prepare_logits` makes."""
        return self._linear_kind(self.weight).packed_bytes

    def logits(self, x: torch.Tensor) -> torch.Tensor | None:
        """x [N, width] → float32 [N, size] on rank 0, None on the others."""
        assert self._output is not None
        gathered = self.group.gather_columns(self._output(x))
        return None if gathered is None else gathered[:, : self.size].float()

    def slots(self) -> Iterator[WeightSlot]:
        rows = max(0, min(self.share, self.size - self.start))
        width = self.weight.shape[1]
        yield WeightSlot(self.name, self.weight[:rows], (self.size, width), dim=0, start=self.start)


class VocabularyBias:
    """What is added to the logits, split as the output projection is."""

    def __init__(self, name: str, size: int, place: Placement) -> None:
        self.name, self.size = name, size
        share = -(-size // place.group.size)
        self.start = place.group.rank * share
        self.weight = torch.zeros(share, device=place.device, dtype=place.dtype)

    def slots(self) -> Iterator[WeightSlot]:
        rows = max(0, min(len(self.weight), self.size - self.start))
        yield WeightSlot(self.name, self.weight[:rows], (self.size,), dim=0, start=self.start)
