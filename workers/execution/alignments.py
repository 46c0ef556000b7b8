"""Sequences that are aligned with their encoder inputs: the queries of their rows, until the last row comes,
and how much these attend to each encoder position."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch

from tandem import kernels
from tandem.kernels import Scores
from tandem.workers.distributed import Group
from tandem.workers.execution.decode_state import DecodeState
from tandem.workers.execution.packet import Packet
from tandem.workers.models.batch import RecordedRows
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.spec import ModelSpec

# Heads whose attention is held at a time: it takes tokens times encoder positions each.
_HEADS_AT_ONCE: Final = 16

Queries = dict[int, list[torch.Tensor]]  # by plane: [rows, heads, head_dim] of each step


class _Aligned(NamedTuple):
    """A row of an aligned sequence: the columns of `packet.Alignments`, and the heads."""

    row: int
    last: int
    compared_from: int
    first: int
    stop: int
    input_length: int
    cropped: int
    filter_width: int
    heads: list[list[int]]  # layer and head of each


class Alignments:
    """`Runner` owns it. A sequence's rows come in order, in one step or in several, the first at position 0:
    also where it was preempted."""

    def __init__(self, spec: ModelSpec, group: Group) -> None:
        stack = spec.decoder
        self._spec, self._group = spec, group
        self._scores = Scores(stack.attention_scale, None, stack.softcap)
        heads = stack.heads // group.size
        self._own = range(group.rank * heads, (group.rank + 1) * heads)
        self._readers = stack.heads // stack.shared_heads
        self._queries: dict[int, Queries] = {}  # by slot

    def begin(self, packet: Packet) -> list[RecordedRows]:
        """The rows of this step whose queries are to be recorded."""
        if self._queries:  # sequences that ended early left them: others have their slots
            for slot in packet.rows.slot[packet.rows.start == 0].tolist():
                self._queries.pop(slot, None)
        if not len(packet.alignments):
            return []
        ends, recorded = np.cumsum(packet.rows.count), []
        for aligned in _aligned(packet):
            slot, start, count = packet.rows.values[aligned.row, :3].tolist()
            planes = {self._spec.plane(layer, "cross") for layer, head in aligned.heads if head in self._own}
            queries = self._queries.setdefault(slot, {plane: [] for plane in planes})
            skipped = min(count, max(0, aligned.compared_from - start))
            stop = int(ends[aligned.row])
            recorded.append(RecordedRows(stop - count + skipped, stop, queries))
        return recorded

    def finish(self, packet: Packet, state: DecodeState, pool: KVPool) -> list[torch.Tensor]:
        """For each sequence whose last row this step has, float32 [positions, encoder positions]: how much
        each attends to each, the mean over the heads. To be called on all ranks."""
        found = []
        for aligned in _aligned(packet):
            if aligned.last:
                row = packet.rows.values[aligned.row]
                queries = self._queries.pop(int(row[0]))
                found.append(self._attention(aligned, queries, *state.cross_input(int(row[3])), pool))
        return found

    def _attention(
        self, aligned: _Aligned, queries: Queries, pages: torch.Tensor, length: int, pool: KVPool
    ) -> torch.Tensor:
        """pages, length: the encoder input's."""
        columns = min(aligned.input_length, length)
        shape = aligned.stop - aligned.first, columns
        total = torch.zeros(shape, device=pages.device)
        if not total.numel():
            return total
        rows = slice(aligned.first - aligned.compared_from, aligned.stop - aligned.compared_from)
        by_plane = {plane: torch.cat(parts) for plane, parts in queries.items()}
        heads = [
            (self._spec.plane(layer, "cross"), head - self._own.start)
            for layer, head in aligned.heads
            if head in self._own
        ]
        for start in range(0, len(heads), _HEADS_AT_ONCE):
            some = heads[start : start + _HEADS_AT_ONCE]
            q = torch.stack([by_plane[plane][:, head] for plane, head in some])
            heads_keys = ((pool.cross(plane)[0], head // self._readers) for plane, head in some)
            keys = (of_plane[:, head].index_select(0, pages) for of_plane, head in heads_keys)
            k = torch.stack([of_head.flatten(0, 1)[:length] for of_head in keys])
            total += kernels.alignment_scores(
                q, k, self._scores, columns, aligned.filter_width, cropped=bool(aligned.cropped)
            )[rows]
        return self._group.all_reduce(total) / len(aligned.heads)


def _aligned(packet: Packet) -> list[_Aligned]:
    heads = packet.alignment_heads.reshape(-1, 2).tolist()
    found, at = [], 0
    for *columns, count in packet.alignments.values.tolist():
        found.append(_Aligned._make([*columns, heads[at : at + count]]))
        at += count
    return found
