"""What one rank keeps of its sequences on the device, by slot: page tables, lengths of encoder inputs,
each sequence's position, last tokens and source. A step brings only what changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tandem import kernels
from tandem.kernels import DecodeTables, RowGroups
from tandem.kernels.decode_rows import resolve
from tandem.kernels.values import LAST, POSITION, SOURCE
from tandem.workers.config import EngineConfig
from tandem.workers.device import send, send_ids
from tandem.workers.execution.packet import ANY_ID, BEAM, SINGLE, Ints, Packet, Rows, TargetTokens
from tandem.workers.execution.slot_spans import SlotSpans
from tandem.workers.models.batch import AttentionRows, DecoderBatch, Targets
from tandem.workers.scheduling.plan import ON_DEVICE


class DecodeState:
    """Takes in what a step brings, lays out where its rows read and write, and advances the sequences by
    what was chosen. `Runner` owns it."""

    def __init__(
        self, config: EngineConfig, device: torch.device, page_size: int, pages: int, *, drafts: bool,
        cross_planes: int, spans: bool,
    ) -> None:  # fmt: skip
        """
        Args:
            pages: how many the pool has; the page of this number is no sequence's.
            drafts: sequences draft from their sources.
            cross_planes: those of each cross-attention, see `KVPool`.
            spans: what a position reads of its encoder input depends on where it is, see `request.CrossSpan`.
        """
        self.device, self.page_size = device, page_size
        self._slots, self._drafts = config.max_num_seqs, drafts
        # The pages that a page is to a cross-attention: their numbers are so much above its own.
        self._cross_pages_above = np.arange(cross_planes) * (pages + 1)
        self._longest = config.max_decoder_length
        # An encoder input, or the decoder's prompt where there is none.
        source = max(config.max_encoder_length, config.max_decoder_length) if drafts else 0

        def table(positions: int, most: int) -> torch.Tensor:
            shape = self._slots + 1, min(self._pages(positions), most)
            rows = torch.zeros(shape, dtype=torch.int32, device=device)
            rows[self._slots] = pages
            return rows

        self.tables = DecodeTables(
            page_size=page_size,
            self_pages=table(config.max_decoder_length, pages),
            sequences=torch.zeros(self._slots + 1, SOURCE + source, dtype=torch.int64, device=device),
            cross_pages=table(config.max_encoder_length, pages * cross_planes),
            cross_lengths=torch.ones(self._slots + 1, dtype=torch.int32, device=device),
        )
        # `cross_lengths` on the host: sizes launches without a sync.
        self._cross_lengths = np.zeros(self._slots, dtype=np.int64)
        self._spans = SlotSpans(self._slots, device) if spans else None
        self.tables.cross_spans = None if self._spans is None else self._spans.last

    @property
    def positions(self) -> torch.Tensor:
        """int64 [slots + 1], on the device: the position of each drafting sequence's last token."""
        return self.tables.sequences[:, POSITION]

    # -- what a step brings

    def take(self, packet: Packet) -> None:
        """New pages, and the sources and spans of new sequences."""
        if len(new := packet.new_pages):
            slot, index, page = self._send(new.slot, new.index, new.page)
            self.tables.self_pages[slot, index] = page.int()
        if len(sources := packet.sources):
            _, cells = _ranges(sources.slot * self.tables.sequences.shape[1], sources.count)
            to, values = self._send(cells, packet.source_columns)
            self.tables.sequences.view(-1)[to] = values
        if self._spans is not None and len(packet.cross_spans):
            self._spans.take(packet.cross_spans, self._send)

    def take_inputs(self, packet: Packet, order: Sequence[int]) -> torch.Tensor:
        """Pages and lengths of the packet's admissions.

        order: the admissions' numbers, as their hidden states stand.
        Returns int64 [sum of lengths]: the pool's slots for K and V of each position, in this order.
        """
        admissions = packet.admissions
        starts = np.cumsum(admissions.pages) - admissions.pages
        offsets = np.arange(self.page_size)
        write_slots, table_rows, table_columns, table_pages = [], [], [], []
        for number in order:
            own = packet.admission_pages[starts[number] : starts[number] + admissions.pages[number]]
            count = self._pages(admissions.length[number])
            pages = (own[:, None] + self._cross_pages_above).ravel()[:count]
            write_slots.append(
                (pages[:, None] * self.page_size + offsets).ravel()[: admissions.length[number]]
            )
            table_rows.append(np.full(count, admissions.entry[number]))
            table_columns.append(np.arange(count))
            table_pages.append(pages)
        slots, row, column, page, entries, lengths = self._send(
            *map(np.concatenate, (write_slots, table_rows, table_columns, table_pages)),
            admissions.entry,
            admissions.length,
        )
        self.tables.cross_pages[row, column] = page.int()
        self.tables.cross_lengths[entries] = lengths.int()
        self._cross_lengths[admissions.entry] = admissions.length
        return slots

    def cross_input(self, entry: int) -> tuple[torch.Tensor, int]:
        """Pages, int32 [M], and length of the encoder input of a cross entry."""
        length = int(self._cross_lengths[entry])
        return self.tables.cross_pages[entry, : self._pages(length)], length

    def lacks_beams(self, packet: Packet) -> bool:
        """Whether the packet has the first beams that come."""
        return self.tables.beam_cells is None and bool((packet.rows.kind != SINGLE).any())

    def make_beams(self) -> None:
        shape = self._slots + 1, self._longest
        self.tables.beam_cells = torch.zeros(shape, dtype=torch.int32, device=self.device)

    # -- where rows read and write

    def rows(self, packet: Packet) -> Ints:
        """[4, N]: slot, position, cross entry and token of each position, for `kernels.gather_rows`."""
        row_of, positions = _positions(packet.rows)
        return np.stack([packet.rows.slot[row_of], positions, packet.rows.entry[row_of], packet.row_tokens])

    def gather_rows(self, rows: torch.Tensor, *, beams: bool) -> DecoderBatch:
        """The forward's input for these `rows`, each of which gives a token."""
        placed = kernels.gather_rows(rows, self.tables, beams=beams)
        each = RowGroups.each(rows.shape[1], self.device)
        attention = AttentionRows(
            start=0,
            stop=rows.shape[1],
            self_pages=placed.history,
            self_lengths=placed.lengths,
            self_groups=each,
            cross_pages=placed.cross_pages,
            cross_lengths=placed.cross_lengths,
            cross_groups=each,
            cross_begins=placed.cross_begins,
            beams=beams,
        )
        return DecoderBatch(
            token_ids=placed.token_ids,
            positions=placed.positions,
            write_slots=placed.write_slots,
            attention=[attention],
            # What a generated token reads is media of its own, or nothing.
            reads_media=None if self._spans is None else placed.cross_lengths,
        )

    def batch(self, packet: Packet) -> DecoderBatch:
        """The forward's input for any rows: their positions one after another, those of one-position rows
        first."""
        rows, targets = packet.rows, packet.targets
        counts, kinds = rows.count, rows.kind
        beams = int((kinds == BEAM).sum())
        singles = int((counts == 1).sum()) - beams
        row_of, positions = _positions(rows)
        ends, numbers = np.cumsum(counts), np.arange(len(positions))
        sampled = np.flatnonzero(numbers >= (ends - rows.samples)[row_of])
        token_ids, row_slots, row_positions, sample_rows, score_rows, target_ids = self._send(
            packet.row_tokens, rows.slot[row_of], positions, sampled, targets.position, targets.token
        )
        if (packet.row_tokens <= ON_DEVICE).any():
            sequences = self.tables.sequences
            token_ids, row_positions = resolve(row_slots, row_positions, token_ids, sequences)
        pages = self.tables.self_pages[row_slots, row_positions // self.page_size]
        write_slots = pages.long() * self.page_size + row_positions % self.page_size
        if (kinds != SINGLE).any():
            # Where the K and V of the beams' new positions go.
            assert self.tables.beam_cells is not None
            (at,) = self._send(np.flatnonzero((kinds != SINGLE)[row_of]))
            self.tables.beam_cells[row_slots[at], row_positions[at]] = write_slots[at].int()
        reads_media = None
        if self._spans is not None:
            parts = self._spans.parts(rows)
            (reads_media,) = self._send(np.repeat(parts.own, np.diff(parts.borders)))
        attention, start = [], 0
        for several, end_row in ((False, singles), (True, singles + beams), (False, len(counts))):
            if start < end_row:
                attention.append(self._attention_rows(rows[start:end_row], start, beams=several))
            start = end_row
        return DecoderBatch(
            token_ids=token_ids,
            positions=row_positions,
            write_slots=write_slots,
            attention=attention,
            sample_rows=sample_rows,
            targets=self._targets(targets, score_rows, target_ids) if len(targets) else None,
            reads_media=None if reads_media is None else reads_media.int(),
        )

    def _targets(self, targets: TargetTokens, rows: torch.Tensor, ids: torch.Tensor) -> Targets:
        below = self._send(targets.below)[0] if (targets.below < ANY_ID).any() else None
        return Targets(rows, ids, int(targets.top.max()), below)

    def _attention_rows(self, rows: Rows, start: int, *, beams: bool) -> AttentionRows:
        starts, counts, entries = rows.start, rows.count, rows.entry
        cu_rows = np.concatenate([[0], np.cumsum(counts)])
        parts: list[Ints] = []
        if self._spans is None:
            # Adjacent rows of one encoder input read its K/V together.
            first = np.flatnonzero(np.diff(entries, prepend=-1))
            cu_cross, group_entries = np.concatenate([cu_rows[first], cu_rows[-1:]]), entries[first]
            longest_cross = int(self._cross_lengths[entries].max())
        else:
            cu_cross, group_entries, *parts, _ = self._spans.parts(rows)
            longest_cross = max(1, int(parts[1].max()))
        slots_, lengths, cu_rows_, groups, cu_cross_, *parts_ = self._send(
            rows.slot, starts + counts, cu_rows, group_entries, cu_cross, *parts
        )
        if rows.uncertain.any():
            moved, starts_ = self._send(rows.uncertain, starts)
            lengths += torch.where(moved > 0, self.positions[slots_] - starts_, 0)
        longest = int((starts + counts + rows.uncertain).max())
        if beams:
            assert self.tables.beam_cells is not None
            history = self.tables.beam_cells[slots_, :longest]
        else:
            history = self.tables.self_pages[slots_, : self._pages(longest)]
        return AttentionRows(
            start=start,
            stop=start + int(cu_rows[-1]),
            self_pages=history,
            self_lengths=lengths.int(),
            self_groups=RowGroups(cu_rows_.int(), int(counts.max())),
            cross_pages=self.tables.cross_pages[groups, : self._pages(longest_cross)],
            cross_lengths=parts_[1].int() if parts_ else self.tables.cross_lengths[groups],
            cross_groups=RowGroups(cu_cross_.int(), int(np.diff(cu_cross).max())),
            cross_begins=parts_[0].int() if parts_ else None,
            beams=beams,
        )

    # -- what was chosen

    def advance(self, packet: Packet, choice: torch.Tensor) -> torch.Tensor | None:
        """Moves the sequences on by `Sampled.choice`. Returns what `Runner.finish` does."""
        rows, beams = packet.sampling, packet.beam_slots
        samples = rows.samples
        singles = int(samples.sum())
        sequences, outcomes = self.tables.sequences, None
        if singles and self._drafts:
            starts = np.where(rows.uncertain > 0, -1, rows.start + rows.count - samples)
            moves = np.stack([rows.slot, starts, samples, np.cumsum(samples) - samples])
            to = send(torch.from_numpy(moves), self.device)
            outcomes = kernels.match_prompt_tokens(choice[:singles], to, sequences)
        elif singles:
            sequences[self._send(rows.slot)[0], LAST] = choice[:singles]
        if len(beams):
            assert self.tables.beam_cells is not None
            (to,) = self._send(beams)
            tokens, parents = choice[singles:].chunk(2)
            sequences[to, LAST] = tokens
            longest = int((packet.rows.start + packet.rows.count).max())
            self.tables.beam_cells[to, :longest] = self.tables.beam_cells[parents, :longest]
        return outcomes

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _send(self, *arrays: Ints) -> Sequence[torch.Tensor]:
        """Integers to the device, in one copy."""
        together = send_ids(torch.from_numpy(np.concatenate(arrays)), self.device)
        parts: Sequence[torch.Tensor] = together.split([len(array) for array in arrays])
        return parts


def _positions(rows: Rows) -> tuple[Ints, Ints]:
    """For each position of the rows: its row's number, and the position. Where the device alone knows it:
    -1 less how far it is after the row's first, as `kernels.gather_rows` takes it."""
    row_of, positions = _ranges(rows.start, rows.count)
    ahead = rows.start[row_of] - positions - 1
    return row_of, np.where(rows.uncertain[row_of] > 0, ahead, positions)


def _ranges(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Concatenated ranges: for each element its range's index, and its value."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts - starts)[of]
