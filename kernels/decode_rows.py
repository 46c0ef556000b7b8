"""What a decode step's rows read and write: from slots and positions to places in the pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tandem.kernels import cpu_ops


@dataclass
class DecodeTables:
    """The state of sequences that are being decoded, by slot, and of their encoder inputs, by cross entry."""

    page_size: int
    self_pages: Tensor  # int32 [slots, pages]
    last_tokens: Tensor  # int64 [slots]
    cross_pages: Tensor  # int32 [entries, pages]
    cross_lengths: Tensor  # int32 [entries]
    # int32 [slots, positions]: where a beam finds the K and V of its history, page * page_size + offset. To
    # go on from another beam's, this row is copied, K and V never. Made when the first beams come.
    beam_cells: Tensor | None = None


class DecodeRows(NamedTuple):
    """Of N rows, each of one position. What lies behind a row's lengths in its tables is any valid place."""

    token_ids: Tensor  # int64 [N]
    write_slots: Tensor  # int64 [N]: where the rows' K and V go, page * page_size + offset
    history: Tensor  # int32 [N, pages], or of beams [N, positions]: their cells
    lengths: Tensor  # int32 [N]: positions, this one included
    cross_pages: Tensor  # int32 [N, pages]
    cross_lengths: Tensor  # int32 [N]


def lay_out(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    """rows: int64 [4, N]: slot, position, cross entry, token, which below 0 is the slot's last one. Beams
    note where their position goes."""
    if cpu_ops.COMPILED and not rows.is_cuda:
        return DecodeRows(*cpu_ops.lay_out(rows, tables, beams=beams))
    slots, positions, entries, tokens = rows
    size = tables.page_size
    pages = tables.self_pages[slots, positions // size]
    write_slots = pages.long() * size + positions % size
    history = tables.self_pages
    if beams:
        assert tables.beam_cells is not None
        history = tables.beam_cells
        history[slots, positions] = write_slots.int()
    return DecodeRows(
        token_ids=torch.where(tokens < 0, tables.last_tokens[slots], tokens),
        write_slots=write_slots,
        history=history[slots],
        lengths=(positions + 1).int(),
        cross_pages=tables.cross_pages[entries],
        cross_lengths=tables.cross_lengths[entries],
    )
