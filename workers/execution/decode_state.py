"""What one rank knows of its sequences, on the device and in slots: page tables, lengths of encoder inputs,
where each sequence is and what it said last, its source. A step brings only what changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tandem import kernels
from tandem.kernels import DecodeTables, RowGroups
from tandem.kernels.decode_rows import resolve
from tandem.kernels.values import LAST, POSITION, SOURCE
from tandem.workers.config import EngineConfig
from tandem.workers.execution.packet import BEAM, SINGLE, Ints, Packet
from tandem.workers.models.batch import AttentionRows, DecoderBatch, Targets
from tandem.workers.scheduling.plan import ON_DEVICE


class DecodeState:
    """`Runner`'s. What a step brings, where its rows read and write, and how it leaves the sequences."""

    def __init__(
        self, config: EngineConfig, device: torch.device, page_size: int, pages: int, *, drafts: bool
    ) -> None:
        """pages: of the pool, whose next one is nobody's. drafts: sequences draft from their sources."""
        self.device, self.page_size = device, page_size
        self._slots, self._drafts = config.max_num_seqs, drafts
        self._longest = config.max_decoder_length
        # An encoder input, or the decoder's prompt where there is none.
        source = max(config.max_encoder_length, config.max_decoder_length) if drafts else 0

        def table(positions: int) -> torch.Tensor:
            rows = torch.zeros(
                self._slots + 1, min(self._pages(positions), pages), dtype=torch.int32, device=device
            )
            rows[self._slots] = pages
            return rows

        self.tables = DecodeTables(
            page_size=page_size,
            self_pages=table(config.max_decoder_length),
            sequences=torch.zeros(self._slots + 1, SOURCE + source, dtype=torch.int64, device=device),
            cross_pages=table(config.max_encoder_length),
            cross_lengths=torch.ones(self._slots + 1, dtype=torch.int32, device=device),
        )
        self._cross_lengths = np.zeros(self._slots, dtype=np.int64)  # the same: sizes launches without a sync

    @property
    def positions(self) -> torch.Tensor:
        """int64 [slots + 1]: of each sequence's last token, if it drafts, on the device."""
        return self.tables.sequences[:, POSITION]

    # -- what a step brings

    def take(self, packet: Packet) -> None:
        """Pages that rows write to from now on, and of new sequences what they may copy."""
        if len(packet.new_pages):
            slot, index, page = self._send(*packet.new_pages.T)
            self.tables.self_pages[slot, index] = page.int()
        if len(packet.sources):
            slots, columns = packet.sources.T
            _, cells = _ranges(slots * self.tables.sequences.shape[1], columns)
            to, values = self._send(cells, packet.source_columns)
            self.tables.sequences.view(-1)[to] = values

    def take_inputs(self, packet: Packet, order: Sequence[int]) -> torch.Tensor:
        """Pages and lengths of the packet's admissions. Returns where K and V of their positions go, int64,
        the admissions in this order."""
        starts = np.cumsum(packet.admissions[:, 2]) - packet.admissions[:, 2]
        offsets = np.arange(self.page_size)
        write_slots, table_rows, table_columns, table_pages = [], [], [], []
        for number in order:
            entry, length, count, _ = packet.admissions[number]
            pages = packet.admission_pages[starts[number] : starts[number] + count]
            write_slots.append((pages[:, None] * self.page_size + offsets).ravel()[:length])
            table_rows.append(np.full(count, entry))
            table_columns.append(np.arange(count))
            table_pages.append(pages)
        slots, row, column, page, entries, lengths = self._send(
            *map(np.concatenate, (write_slots, table_rows, table_columns, table_pages)),
            *packet.admissions[:, :2].T,
        )
        self.tables.cross_pages[row, column] = page.int()
        self.tables.cross_lengths[entries] = lengths.int()
        self._cross_lengths[packet.admissions[:, 0]] = packet.admissions[:, 1]
        return slots

    def lacks_beams(self, packet: Packet) -> bool:
        """Whether these are the first beams that come."""
        return self.tables.beam_cells is None and bool((packet.rows[:, 5] != SINGLE).any())

    def make_beams(self) -> None:
        shape = self._slots + 1, self._longest
        self.tables.beam_cells = torch.zeros(shape, dtype=torch.int32, device=self.device)

    # -- where its rows read and write

    def rows(self, packet: Packet) -> Ints:
        """[4, N]: slot, position, cross entry and token of each position, for `kernels.gather_rows`."""
        slots, _, _, entries, *_ = packet.rows.T
        row_of, positions = _positions(packet.rows)
        return np.stack([slots[row_of], positions, entries[row_of], packet.row_tokens])

    def gather_rows(self, rows: torch.Tensor, *, beams: bool) -> DecoderBatch:
        """The forward's input of such rows, each of which gives a token."""
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
            beams=beams,
        )
        return DecoderBatch(
            token_ids=placed.token_ids,
            positions=placed.positions,
            write_slots=placed.write_slots,
            attention=[attention],
        )

    def batch(self, packet: Packet) -> DecoderBatch:
        """Lays the rows out for the forward: positions one after another, those of one-position rows
        first."""
        slots, _, counts, _, samples, kinds, _ = packet.rows.T
        scored, targets, top = packet.targets.T
        beams = int((kinds == BEAM).sum())
        singles = int((counts == 1).sum()) - beams
        row_of, positions = _positions(packet.rows)
        ends, numbers = np.cumsum(counts), np.arange(len(positions))
        sampled = np.flatnonzero(numbers >= (ends - samples)[row_of])
        token_ids, row_slots, row_positions, sample_rows, score_rows, target_ids = self._send(
            packet.row_tokens, slots[row_of], positions, sampled, scored, targets
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
        attention, start = [], 0
        for several, end_row in ((False, singles), (True, singles + beams), (False, len(counts))):
            if start < end_row:
                attention.append(self._attention_rows(packet.rows[start:end_row], start, beams=several))
            start = end_row
        return DecoderBatch(
            token_ids=token_ids,
            positions=row_positions,
            write_slots=write_slots,
            attention=attention,
            sample_rows=sample_rows,
            targets=Targets(score_rows, target_ids, int(top.max())) if len(top) else None,
        )

    def _attention_rows(self, rows: Ints, start: int, *, beams: bool) -> AttentionRows:
        slots, starts, counts, entries, _, _, uncertain = rows.T
        # Adjacent rows of one encoder input read its K/V together.
        first = np.flatnonzero(np.diff(entries, prepend=-1))
        cu_rows = np.concatenate([[0], np.cumsum(counts)])
        cu_cross = np.concatenate([cu_rows[first], cu_rows[-1:]])
        slots_, lengths, cu_rows_, groups, cu_cross_ = self._send(
            slots, starts + counts, cu_rows, entries[first], cu_cross
        )
        if uncertain.any():
            moved, starts_ = self._send(uncertain, starts)
            lengths += torch.where(moved > 0, self.positions[slots_] - starts_, 0)
        longest = int((starts + counts + uncertain).max())
        longest_cross = int(self._cross_lengths[entries].max())
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
            cross_lengths=self.tables.cross_lengths[groups],
            cross_groups=RowGroups(cu_cross_.int(), int(np.diff(cu_cross).max())),
            beams=beams,
        )

    # -- how it leaves the sequences

    def advance(self, packet: Packet, choice: torch.Tensor) -> torch.Tensor | None:
        """By `Sampled.choice`. Returns what `Runner.finish` does."""
        slots, starts, counts, _, samples, _, uncertain = packet.sampling.T
        singles, beams = int(samples.sum()), packet.beam_slots
        sequences, seen = self.tables.sequences, None
        if singles and self._drafts:
            starts = np.where(uncertain > 0, -1, starts + counts - samples)
            moves = np.stack([slots, starts, samples, np.cumsum(samples) - samples])
            to = torch.from_numpy(moves).to(self.device, non_blocking=True)
            seen = kernels.match_prompt_tokens(choice[:singles], to, sequences)
        elif singles:
            sequences[self._send(slots)[0], LAST] = choice[:singles]
        if len(beams):
            assert self.tables.beam_cells is not None
            (to,) = self._send(beams)
            tokens, parents = choice[singles:].chunk(2)
            sequences[to, LAST] = tokens
            longest = int((packet.rows[:, 1] + packet.rows[:, 2]).max())
            self.tables.beam_cells[to, :longest] = self.tables.beam_cells[parents, :longest]
        return seen

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _send(self, *arrays: Ints) -> Sequence[torch.Tensor]:
        """Integers to the device, in one copy."""
        together = torch.from_numpy(np.concatenate(arrays)).to(self.device, non_blocking=True)
        parts: Sequence[torch.Tensor] = together.split([len(array) for array in arrays])
        return parts


def _positions(rows: Ints) -> tuple[Ints, Ints]:
    """Of all positions of a packet's rows: the number of the row, and the position; where the device alone
    knows it, how far behind the sequence's own, as `kernels.gather_rows` takes it."""
    _, starts, counts, _, _, _, uncertain = rows.T
    row_of, positions = _ranges(starts, counts)
    ahead = starts[row_of] - positions - 1
    return row_of, np.where(uncertain[row_of] > 0, ahead, positions)


def _ranges(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Of so many numbers from each start on: which start it is, and the number, of each."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts - starts)[of]
