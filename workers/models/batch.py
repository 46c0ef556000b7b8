"""What a step gives the decoder: its rows, where they attend and write, and which tokens are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tandem.kernels import RowGroups


@dataclass(slots=True)
class AttentionRows:
    """Rows start:stop of a decoder batch, all of which attend in the same way: one row a sequence
    (decode), or several (prefill)."""

    start: int
    stop: int
    self_pages: torch.Tensor  # int32 [sequences, pages]; of beams [sequences, positions]: their cells
    self_lengths: torch.Tensor  # int32 [sequences]: positions written so far, these rows' included
    self_groups: RowGroups
    cross_pages: torch.Tensor  # int32 [encoder inputs, pages]
    cross_lengths: torch.Tensor  # int32 [encoder inputs]
    cross_groups: RowGroups  # rows by the encoder input, or the part of it, that they read
    # int32 [encoder inputs]: where the rows' parts of the inputs begin, see `request.CrossSpan`; None: at 0
    cross_begins: torch.Tensor | None = None
    beams: bool = False  # one row each, whose history lies in its ancestors' pages


class Targets(NamedTuple):
    """Tokens to be scored."""

    rows: torch.Tensor  # int64: the row that each token follows
    ids: torch.Tensor  # int64
    top: int  # how many of the likeliest tokens to report; below 0 not even the token's rank is
    below: torch.Tensor | None = None  # int64: each is scored among the ids below; None: all among all


@dataclass(slots=True)
class RecordedRows:
    """Rows start:stop of a decoder batch, whose queries of cross-attention are kept."""

    start: int
    stop: int
    queries: dict[int, list[torch.Tensor]]  # by plane, those that are wanted: [rows, heads, head_dim] a step

    def record(self, plane: int, q: torch.Tensor) -> None:
        """q: [rows of the batch, heads, head_dim]."""
        if (parts := self.queries.get(plane)) is not None:
            parts.append(q[self.start : self.stop])


@dataclass(slots=True)
class DecoderBatch:
    """One mixed step: every row is one position of one sequence."""

    token_ids: torch.Tensor  # int64 [rows]
    positions: torch.Tensor  # int64 [rows]: each row's in its sequence
    write_slots: torch.Tensor  # int64 [rows]: where each row's K and V go, page * page_size + offset
    attention: list[AttentionRows]  # cover all rows, in order
    sample_rows: torch.Tensor | None = None  # int64: the rows whose logits are wanted; None: all
    targets: Targets | None = None
    recorded: Sequence[RecordedRows] = ()
    # int32 [rows]: 0 for rows that read no media of their own, see `request.CrossSpan`; None: there are none
    reads_media: torch.Tensor | None = None
