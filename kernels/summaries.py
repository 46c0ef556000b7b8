"""Keys that each stand for a block of a sequence: the global tokens of LongT5 (Guo et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocks:
    """Packed sequences in blocks of `size` tokens, what is left at a sequence's end belonging to its last.
    A sequence shorter than a block has none.

    cu_seqlens: int32 [S + 1], the borders of the sequences' blocks, on the device of the tokens.
    segments: int64, the tokens of each block and of each sequence too short for one, in order.
    kept: int64, which segments are blocks.
    """

    size: int
    cu_seqlens: Tensor
    segments: Tensor
    kept: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, size: int) -> Blocks:
        """cu_seqlens: int32 [S + 1] of the sequences' borders."""
        segments: list[int] = []
        kept: list[int] = []
        borders = [0]
        for length in cu_seqlens.diff().tolist():
            count = length // size
            kept += range(len(segments), len(segments) + count)
            borders.append(borders[-1] + count)
            segments += [size] * (count - 1) + [length - size * max(0, count - 1)]
        device = cu_seqlens.device
        return cls(
            size,
            torch.tensor(borders, dtype=torch.int32, device=device),
            torch.tensor(segments, device=device),
            torch.tensor(kept, dtype=torch.int64, device=device),
        )

    def sums(self, x: Tensor) -> Tensor:
        """The sum of each block's rows, x [N, d] → [blocks, d], added in float32."""
        sums = torch.segment_reduce(x.float(), "sum", lengths=self.segments, axis=0)
        return sums[self.kept].to(x.dtype)


@dataclass(frozen=True)
class Summaries:
    """Keys and values of blocks, which all positions of their sequence see.

    k, v: [M, H, D]; cu_seqlens: int32 [S + 1], the sequences' borders among them; block: tokens in each;
    bias_table: float32 [H, 2R + 1], at ``clamp(summary - the query's own, -R, R) + R``.
    """

    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    block: int
    bias_table: Tensor

    def bias(self, queries: Tensor, length: int) -> Tensor:
        """Of these positions of a sequence of this length, int64 [n] → float32 [H, n, its summaries]."""
        count, reach = length // self.block, self.bias_table.shape[1] // 2
        own = (queries // self.block).clamp_(max=count - 1)
        distance = torch.arange(count) - own.unsqueeze(1)
        return self.bias_table[:, (distance.clamp_(-reach, reach) + reach).to(self.bias_table.device)]
