"""The values that ops take and return: rows and sequences, keys and values in pages, the state of
decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor


class Scores(NamedTuple):
    """How an attention scores a key: ``softcap tanh(scale (q . k) / softcap) + bias``.

    bias_table: float32, the bias by distance: [H, 2R + 1] of an encoder, at
        ``clamp(key - query, -R, R) + R``; causal [H, R + 1], at ``min(query - key, R)``. None: no bias.
    softcap: None: scores are not capped (Gemma 2, 2024).
    integers: an encoder's attention may multiply integers of 16 bits where the CPU multiplies these faster.
    """

    scale: float
    bias_table: Tensor | None = None
    softcap: float | None = None
    integers: bool = False


class TimeIds(NamedTuple):
    """The tokens by which a model of speech says when something is said: see `request.TimestampRules`."""

    first: int  # this id and all above it are times
    text_end: int  # ids below it are text
    without: int  # says that no times follow


class PagedKV(NamedTuple):
    """A layer's keys and values in pages of P positions, and where those of S sequences lie.

    k, v: [pages, G, P, D]. H / G heads of the queries share one of the G heads.
    table: int32 [S, M], each sequence's pages in order; for beams each key's cell, page * P + offset. Entries
        past a sequence's length are any valid page or cell.
    lengths: int32 [S], each sequence's keys, those of the step's own rows included.
    begins: int32 [S], for cross-attention alone: the first key that each sequence's rows see, below its
        length, or 0 where that is 0. None: they see all.
    """

    k: Tensor
    v: Tensor
    table: Tensor
    lengths: Tensor
    begins: Tensor | None = None


@dataclass(frozen=True)
class RowGroups:
    """Query rows grouped by the sequence whose keys they read.

    The rows of a sequence are adjacent: sequence ``s`` owns rows ``cu_rows[s]:cu_rows[s + 1]``. One row is a
    plain decode step; several are a prefill, the beams of a request, or draft tokens to verify.

    cu_rows: int32 [S + 1], on the device of the queries, from 0 to N.
    max_rows: the most rows any sequence owns, known on the host so that launching needs no sync.
    """

    cu_rows: Tensor
    max_rows: int

    @classmethod
    def each(cls, rows: int, device: torch.device) -> RowGroups:
        """Every row is a sequence of its own."""
        return cls(_numbers(max(10, rows.bit_length()), device)[: rows + 1], 1)


@lru_cache(maxsize=64)
def _numbers(bits: int, device: torch.device) -> Tensor:
    return torch.arange(2**bits + 1, dtype=torch.int32, device=device)


@dataclass(frozen=True)
class Blocks:
    """Packed sequences in blocks of `size` tokens; the last block of a sequence takes the remaining tokens
    too. A sequence shorter than a block has none.

    cu_seqlens: int32 [S + 1], the borders of the sequences' blocks, on the device of the tokens.
    segments: int64, the tokens of each block and of each sequence too short for one, in order.
    kept: int64, which segments are blocks.
    """

    size: int
    cu_seqlens: Tensor
    segments: Tensor
    kept: Tensor

    @classmethod
    def of(cls, lengths: Iterable[int], size: int, send: Callable[[Tensor], Tensor]) -> Blocks:
        """lengths: each sequence's tokens. send: brings what the host made of them to the tokens' device."""
        segments: list[int] = []
        kept: list[int] = []
        borders = [0]
        for length in lengths:
            count = length // size
            kept += range(len(segments), len(segments) + count)
            borders.append(borders[-1] + count)
            segments += [size] * (count - 1) + [length - size * max(0, count - 1)]
        return cls(
            size,
            send(torch.tensor(borders, dtype=torch.int32)),
            send(torch.tensor(segments)),
            send(torch.tensor(kept, dtype=torch.int64)),
        )

    def sums(self, x: Tensor) -> Tensor:
        """The sum of each block's rows, x [N, d] → [blocks, d], added in float32."""
        # The host made the segments. To check them would make it wait for the device, in every layer.
        sums = torch.segment_reduce(x.float(), "sum", lengths=self.segments, axis=0, unsafe=True)
        return sums[self.kept].to(x.dtype)


@dataclass(frozen=True)
class Summaries:
    """Keys and values that each stand for a block, and that all positions of their sequence see: the global
    tokens of LongT5 (Guo et al., 2022).

    k, v: [M, G, D]; cu_seqlens: int32 [S + 1], the sequences' borders among them; block: tokens in each;
    bias_table: float32 [H, 2R + 1], at ``clamp(summary - the query's own, -R, R) + R``.
    """

    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    block: int
    bias_table: Tensor

    def bias(self, queries: Tensor, length: int) -> Tensor:
        """The bias of a sequence's summaries at its positions `queries`, int64 [n] → float32 [H, n,
        summaries].

        length: the sequence's tokens.
        """
        count, reach = length // self.block, self.bias_table.shape[1] // 2
        own = (queries // self.block).clamp_(max=count - 1)
        distance = torch.arange(count) - own.unsqueeze(1)
        return self.bias_table[:, (distance.clamp_(-reach, reach) + reach).to(self.bias_table.device)]


# The columns of `DecodeTables.sequences`.
LAST: Final = 0  # the sequence's last three tokens, -1 where there are fewer
BEFORE: Final = 1
EARLIER: Final = 2
POSITION: Final = 3  # of the last token, which the next row computes
RUN: Final = 4  # tokens at the sequence's end that match its source; 0: no draft tokens
PLACE: Final = 5  # where the source goes on after that match
LENGTH: Final = 6  # of the source; 0: nothing is copied
SOURCE: Final = 7  # the first column of the source

LONGEST: Final = 3  # tokens at the end of a sequence that are looked up in its source


@dataclass
class DecodeTables:
    """The state of the sequences being decoded, by slot, and of their encoder inputs, by cross entry."""

    page_size: int
    self_pages: Tensor  # int32 [slots, pages]
    sequences: Tensor  # int64 [slots, SOURCE + most tokens of a source], see the columns
    cross_pages: Tensor  # int32 [entries, pages]
    cross_lengths: Tensor  # int32 [entries]
    # int32 [slots, positions]: the cell of each key of a beam's history, page * page_size + offset. A beam
    # that continues another copies this row, never K and V. Made when the first beams come.
    beam_cells: Tensor | None = None
    # int32 [slots, 2]: the positions of its entry, from and to, that the slot's generated tokens see. None:
    # all.
    cross_spans: Tensor | None = None


class DecodeRows(NamedTuple):
    """What N rows of one position each read and write. Table entries past a row's length are any valid
    place."""

    token_ids: Tensor  # int64 [N]
    positions: Tensor  # int64 [N]
    write_slots: Tensor  # int64 [N]: where the row's K and V go, page * page_size + offset
    history: Tensor  # int32 [N, pages]; for beams [N, positions], cells
    lengths: Tensor  # int32 [N]: positions of the sequence, this one included
    cross_pages: Tensor  # int32 [N, pages]
    cross_lengths: Tensor  # int32 [N]; with spans the span's end
    cross_begins: Tensor | None  # int32 [N]: the span's begin; None without spans
