"""What a layer is a list of: residual branches, each with its norm, its weights and one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import torch

from tandem import kernels
from tandem.workers.models.batch import DecoderBatch
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import (
    ColumnParallel,
    Gate,
    Norm,
    Placement,
    RowParallel,
    WeightSlot,
    output_norm,
    stack_norm,
    weights_of,
)
from tandem.workers.models.spec import Rotary, StackSpec

_MANY: Final = 512  # rows, from which on a CPU computes a feed-forward in pieces that stay in the cache

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of the rows' angles, [N, dimensions / 2]
Rotations = Mapping[Rotary | None, Rotation]  # one for each kind of rotary positions in the stack


@dataclass(slots=True)
class EncoderPass:
    """What the sublayers of one encoder forward read besides their rows."""

    cu_seqlens: torch.Tensor  # int32 [inputs + 1]: the packed inputs' borders
    longest: int  # positions of the longest input
    blocks: kernels.Blocks | None  # set where the stack has a summary_block
    rotations: Rotations


@dataclass(slots=True)
class DecoderPass:
    """What the sublayers of one decoder forward read besides their rows, and the pages they write."""

    batch: DecoderBatch
    pool: KVPool
    rotations: Rotations


PassT = TypeVar("PassT")
PassT_contra = TypeVar("PassT_contra", contravariant=True)


class Sublayer(Protocol[PassT_contra]):
    """One residual branch. The stack normalizes its input, adds its output to the sum so far, and fuses the
    sum with the norm that follows."""

    norm: Norm  # its input's; that of the sum after it where `StackSpec.post_norm`

    def __call__(self, x: torch.Tensor, step: PassT_contra, /) -> torch.Tensor:
        """Rows [N, d_model] → what is added to the sum, [N, d_model]."""
        ...

    def slots(self) -> Iterator[WeightSlot]: ...


class FeedForward:
    """Two projections and the activation between them, gated or not."""

    def __init__(
        self, name: str, stack: StackSpec, place: Placement, norm: Norm | None = None, *, gated: bool = False
    ) -> None:
        """norm: that of the attention that reads the same input, see `Parallel`; None: its own. gated: its
        output has a gate, and rows that read no media do without it."""
        parts = ["gate", "up"] if stack.gated else ["up"]
        self.norm = stack_norm(f"{name}.norm", stack, place) if norm is None else norm
        self._own_norm = self.norm if norm is None else None
        self.up = ColumnParallel(
            [f"{name}.{part}" for part in parts], [stack.d_ff] * len(parts), stack.d_model, "d_ff", place,
            bias=stack.bias,
        )  # fmt: skip
        self.down = RowParallel(f"{name}.down", stack.d_ff, stack.d_model, "d_ff", place, bias=stack.bias)
        self.output_norm = output_norm(name, stack, place)
        self.gated, self.activation = stack.gated, stack.activation
        self.gate = Gate(f"{name}.output_gate", place) if gated else None

    def __call__(self, x: torch.Tensor, step: object = None) -> torch.Tensor:
        # An encoder's rows are many. A decoder's step is recorded with all its rows.
        if x.is_cpu and isinstance(step, EncoderPass) and len(x) >= _MANY:
            x = self.down.summed(
                kernels.feed_forward(x, self.up.linear, self.down.linear, self.activation, gated=self.gated)
            )
        else:
            x = self.down(kernels.activate(self.up(x), self.activation, gated=self.gated))
        if self.output_norm is not None:
            x = self.output_norm(x)
        if self.gate is not None:
            x = self.gate(x)
            if isinstance(step, DecoderPass) and step.batch.reads_media is not None:
                x = kernels.keep_rows(x, step.batch.reads_media)
        return x

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self._own_norm, self.up, self.down, self.output_norm, self.gate)


class Parallel(Generic[PassT]):
    """An attention and a feed-forward that read the same norm's output, as one sublayer."""

    def __init__(self, attention: Sublayer[PassT], feed_forward: FeedForward) -> None:
        self.norm, self.attention, self.feed_forward = attention.norm, attention, feed_forward

    def __call__(self, x: torch.Tensor, step: PassT) -> torch.Tensor:
        return self.attention(x, step) + self.feed_forward(x, step)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.attention, self.feed_forward)
