"""Executes steps on one rank. The decode state lives on the device, in slots: page tables, lengths of
encoder inputs, where each sequence is and what it said last, its source. A step brings only what changed.

The last slot, cross entry and page are no sequence's. Rows that fill up a batch use them: one position each,
which sees itself and one position of an encoder input.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tandem import kernels
from tandem.kernels import DecodeTables, RowGroups
from tandem.kernels.decode_rows import LAST, POSITION, SOURCE, resolve
from tandem.workers.checkpoint import Checkpoint, read_json
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.kv_pool import KVPool
from tandem.workers.layers import Placement
from tandem.workers.model import (
    AttentionRows,
    DecoderBatch,
    EncoderStack,
    Targets,
    TargetScores,
    load_decoder,
    load_encoder,
)
from tandem.workers.packet import BEAM, ENCODE_HERE, ENCODED_BESIDE, FIRST_BEAM, SINGLE, Ints, Packet
from tandem.workers.side_stream import SideStream, Work
from tandem.workers.step_graphs import StepGraphs
from tandem.workers.step_plan import ON_DEVICE

_LOG = logging.getLogger(__name__)

GRAPH_ROWS = 256  # of more, drafts among them, a step takes longer than to launch it kernel by kernel

Hidden = Callable[[int], torch.Tensor]  # handle → hidden states [length, d_model], on any device


class Runner:
    """One rank's model, pages and decode state."""

    def __init__(self, config: EngineConfig, group: Group) -> None:
        self.config, self.group = config, group
        folder = Path(config.model)
        self.device = config.torch_device(group.rank)
        self.dtype = config.torch_dtype(self.device)
        place = Placement(self.device, self.dtype, group, config.quantization)
        checkpoint = Checkpoint(folder, read_json(folder, "config.json"))
        self.spec = checkpoint.spec
        encodes = config.with_encoder and self.spec.encoder is not None
        self.encoder = load_encoder(checkpoint, place) if encodes else None
        self.decoder = load_decoder(checkpoint, place)
        self._side = SideStream(self.device)
        self._encoding: Work | None = None  # inputs encoded beside the steps
        self._encoding_parts: dict[int, slice] = {}  # cross entry → its rows in their hidden states

        stack = self.spec.decoder
        self.page_size = config.positions_per_page(self.device)
        # Rank 0 hands out page ids for all ranks, whose memory may differ.
        self.num_pages = group.least(config.pages(stack, self.device))
        self.pool = KVPool(
            stack.layers, self.num_pages + 1, stack.shared_heads // group.size, self.page_size,
            stack.head_dim, self.device, config.kv_dtype(self.device),
        )  # fmt: skip
        slots = config.max_num_seqs
        self.draft_tokens = config.draft_tokens if self.spec.copies else 0
        # An encoder input, or the decoder's prompt where there is none.
        longest = max(config.max_encoder_length, config.max_decoder_length)
        source = longest if self.draft_tokens else 0

        def table(positions: int) -> torch.Tensor:
            pages = min(-(-positions // self.page_size), self.num_pages)
            rows = torch.zeros(slots + 1, pages, dtype=torch.int32, device=self.device)
            rows[slots] = self.num_pages
            return rows

        self._tables = DecodeTables(
            page_size=self.page_size,
            self_pages=table(config.max_decoder_length),
            sequences=torch.zeros(slots + 1, SOURCE + source, dtype=torch.int64, device=self.device),
            cross_pages=table(config.max_encoder_length),
            cross_lengths=torch.ones(slots + 1, dtype=torch.int32, device=self.device),
        )
        self._host_cross_lengths = np.zeros(slots, dtype=np.int64)  # the same: sizes launches without a sync
        # Decode steps that are launched at once, by kind of row; for beams, made when the first ones come.
        self._steps: dict[int, Callable[[Ints], torch.Tensor | None]] = {}
        self._make_step(SINGLE)

    @torch.inference_mode()
    def execute(self, packet: Packet, hidden: Hidden) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Runs a step up to its logits and scores, see `DecoderStack`.

        `finish` completes it. `hidden` gives the hidden states of admissions encoded elsewhere.
        """
        if len(packet.new_pages):
            slot, index, page = self._send(*packet.new_pages.T)
            self._tables.self_pages[slot, index] = page.int()
        if len(packet.sources):
            self._take_sources(packet)
        if len(packet.admissions):
            self._admit(packet, hidden)
        if not len(packet.rows):
            return None, None
        kind = self._decoding(packet)
        if kind is None:
            return self.decoder(self._batch(packet), self.pool)
        slots, _, _, entries, *_ = packet.rows.T
        row_of, positions = _positions(packet.rows)
        rows = np.stack([slots[row_of], positions, entries[row_of], packet.row_tokens])
        if kind in self._steps:
            return self._steps[kind](rows), None
        return self._decode(torch.from_numpy(rows).to(self.device, non_blocking=True), kind), None

    @torch.inference_mode()
    def finish(self, packet: Packet, choice: torch.Tensor | None) -> torch.Tensor | None:
        """Makes `Sampled.choice` known to all ranks, and moves the sequences on by it. Rank 0 gives it.

        Returns what `Seen` has of each sequence without beams; None where there are none, or nobody drafts.
        """
        sampling = packet.rows[(packet.rows[:, 5] == SINGLE) & (packet.rows[:, 4] > 0)]
        slots, starts, counts, _, samples, _, uncertain = sampling.T
        singles, beams = int(samples.sum()), packet.beam_slots
        if not singles + len(beams):
            return None
        if choice is None:
            choice = torch.empty(singles + 2 * len(beams), dtype=torch.int64, device=self.device)
        self.group.broadcast(choice)
        sequences, seen = self._tables.sequences, None
        if singles and self.draft_tokens:
            starts = np.where(uncertain > 0, -1, starts + counts - samples)
            moves = np.stack([slots, starts, samples, np.cumsum(samples) - samples])
            to = torch.from_numpy(moves).to(self.device, non_blocking=True)
            seen = kernels.follow_source(choice[:singles], to, sequences)
        elif singles:
            sequences[self._send(slots)[0], LAST] = choice[:singles]
        if len(beams):
            assert self._tables.beam_cells is not None
            (to,) = self._send(beams)
            tokens, parents = choice[singles:].chunk(2)
            sequences[to, LAST] = tokens
            longest = int((packet.rows[:, 1] + packet.rows[:, 2]).max())
            self._tables.beam_cells[to, :longest] = self._tables.beam_cells[parents, :longest]
        return seen

    @property
    def positions(self) -> torch.Tensor:
        """int64 [slots + 1]: of each sequence's last token, if it drafts, on the device."""
        return self._tables.sequences[:, POSITION]

    @property
    def encoded(self) -> bool:
        """Whether what `encode_beside` began is done."""
        return self._encoding is None or self._encoding.done

    @torch.inference_mode()
    def encode_beside(self, packet: Packet) -> None:
        """Begins to encode what later steps admit. To be called when all else of the step is launched: the
        device is at it while the host launches this."""
        if not len(packet.beside):
            return
        assert self.encoder is not None, "this engine was told not to load the encoder"
        encoder, (entries, lengths) = self.encoder, packet.beside.T
        self._encoding = self._side.begin(lambda: encode_packed(encoder, packet.beside_tokens, lengths))
        ends = np.cumsum(lengths)
        self._encoding_parts = {
            int(entry): slice(end - length, end)
            for entry, length, end in zip(entries, lengths, ends, strict=True)
        }

    def _take_sources(self, packet: Packet) -> None:
        """What new sequences may copy, and the end of what they have said."""
        slots, columns = packet.sources.T
        _, cells = _ranges(slots * self._tables.sequences.shape[1], columns)
        to, values = self._send(cells, packet.source_columns)
        self._tables.sequences.view(-1)[to] = values

    def _admit(self, packet: Packet, hidden: Hidden) -> None:
        """Computes the cross-attention K/V of new encoder inputs into their pages."""
        states, order = [], []
        here = packet.admissions[:, 3] == ENCODE_HERE
        if here.any():
            assert self.encoder is not None, "this engine was told not to load the encoder"
            inputs = self.encoder, packet.admission_tokens, packet.admissions[here, 1]
            # K and V are not written there: who had the pages before may be read by the step under way.
            states.append(self._side.begin(lambda: encode_packed(*inputs)).wait())
            order += list(np.flatnonzero(here))
        beside = packet.admissions[:, 3] == ENCODED_BESIDE
        if beside.any():
            assert self._encoding is not None
            encoded, self._encoding = self._encoding.wait(), None
            states += [encoded[self._encoding_parts[entry]] for entry in packet.admissions[beside, 0]]
            order += list(np.flatnonzero(beside))
        for number in np.flatnonzero(~here & ~beside):
            found = hidden(int(packet.admissions[number, 3]))
            states.append(found.to(self.device, self.dtype, non_blocking=True))
            order.append(number)
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
        self._tables.cross_pages[row, column] = page.int()
        self._tables.cross_lengths[entries] = lengths.int()
        self._host_cross_lengths[packet.admissions[:, 0]] = packet.admissions[:, 1]
        self.decoder.admit(states[0] if len(states) == 1 else torch.cat(states), slots, self.pool)

    def _decoding(self, packet: Packet) -> int | None:
        """The kind of all rows, where behind each of their positions a token is wanted: each position, of a
        draft as well, then is a row by itself.

        Unless steps are launched at once, only of rows of one position that read an encoder input of their
        own: others read K and V together. Launched at once they cannot, for how many do would have to be
        known beforehand; but as such rows lie next to each other, what one reads is in the cache for others.
        """
        _, _, counts, entries, samples, kinds, _ = packet.rows.T
        kind = int(kinds[0])
        alike = ((counts == samples) & (kinds == kind)).all()
        if not alike or kind == FIRST_BEAM or len(packet.targets):
            return None
        if kind in self._steps:
            return kind if counts.sum() <= self._most(kind) else None
        apart = self.spec.encoder is None or (entries[1:] != entries[:-1]).all()
        return kind if apart and (counts == 1).all() else None

    def _most(self, kind: int) -> int:
        """Rows of a step that is launched at once: a draft's are rows, too."""
        slots, guesses = self.config.max_num_seqs, self.draft_tokens if kind == SINGLE else 0
        most = min(slots * (1 + guesses), self.config.max_batched_tokens)
        return min(most, max(slots, GRAPH_ROWS)) if self.config.uses_graphs(self.device) else most

    def _make_step(self, kind: int) -> None:
        """`_decode` of this kind of rows as one launch, where there is a way."""
        forward, most = partial(self._decode, kind=kind), self._most(kind)
        if self.config.uses_graphs(self.device):
            last = self.config.max_num_seqs
            self._steps[kind] = StepGraphs(forward, [last, 0, last, 0], most, self.device)
        elif self.device.type == "cpu" and self.group.size == 1:
            try:
                self._steps[kind] = kernels.CPUProgram(forward, 4, most)
            except kernels.NotRecordable as reason:
                _LOG.debug("decode steps go op by op: %s", reason)

    @torch.inference_mode()
    def _decode(self, rows: torch.Tensor, kind: int) -> torch.Tensor | None:
        """Logits behind each of these rows, which are int64 [4, N]: slot, position, cross entry, token."""
        placed = kernels.lay_out(rows, self._tables, beams=kind == BEAM)
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
            beams=kind == BEAM,
        )
        batch = DecoderBatch(
            token_ids=placed.token_ids,
            positions=placed.positions,
            write_slots=placed.write_slots,
            attention=[attention],
        )
        return self.decoder(batch, self.pool)[0]

    def _batch(self, packet: Packet) -> DecoderBatch:
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
            sequences = self._tables.sequences
            token_ids, row_positions = resolve(row_slots, row_positions, token_ids, sequences)
        pages = self._tables.self_pages[row_slots, row_positions // self.page_size]
        write_slots = pages.long() * self.page_size + row_positions % self.page_size
        if (kinds != SINGLE).any():
            self._note_cells(kinds[row_of], row_slots, row_positions, write_slots)
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

    def _note_cells(
        self, kinds: Ints, slots: torch.Tensor, positions: torch.Tensor, cells: torch.Tensor
    ) -> None:
        """Remembers where the K and V of the beams' new positions go. All arguments are by position."""
        if self._tables.beam_cells is None:
            shape = (self.config.max_num_seqs + 1, self.config.max_decoder_length)
            self._tables.beam_cells = torch.zeros(shape, dtype=torch.int32, device=self.device)
            self._make_step(BEAM)
        (at,) = self._send(np.flatnonzero(kinds != SINGLE))
        self._tables.beam_cells[slots[at], positions[at]] = cells[at].int()

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
        longest_cross = int(self._host_cross_lengths[entries].max())
        if beams:
            assert self._tables.beam_cells is not None
            history = self._tables.beam_cells[slots_, :longest]
        else:
            history = self._tables.self_pages[slots_, : self._pages(longest)]
        return AttentionRows(
            start=start,
            stop=start + int(cu_rows[-1]),
            self_pages=history,
            self_lengths=lengths.int(),
            self_groups=RowGroups(cu_rows_.int(), int(counts.max())),
            cross_pages=self._tables.cross_pages[groups, : self._pages(longest_cross)],
            cross_lengths=self._tables.cross_lengths[groups],
            cross_groups=RowGroups(cu_cross_.int(), int(np.diff(cu_cross).max())),
            beams=beams,
        )

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _send(self, *arrays: Ints) -> Sequence[torch.Tensor]:
        """Integers to the device, in one copy."""
        together = torch.from_numpy(np.concatenate(arrays)).to(self.device, non_blocking=True)
        parts: Sequence[torch.Tensor] = together.split([len(array) for array in arrays])
        return parts


def _positions(rows: Ints) -> tuple[Ints, Ints]:
    """Of all positions of a packet's rows: the number of the row, and the position; where the device alone
    knows it, how far behind the sequence's own, as `kernels.lay_out` takes it."""
    _, starts, counts, _, _, _, uncertain = rows.T
    row_of, positions = _ranges(starts, counts)
    ahead = starts[row_of] - positions - 1
    return row_of, np.where(uncertain[row_of] > 0, ahead, positions)


def _ranges(starts: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Of so many numbers from each start on: which start it is, and the number, of each."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) - (np.cumsum(counts) - counts - starts)[of]


def encode_packed(encoder: EncoderStack, token_ids: Ints, lengths: Ints) -> torch.Tensor:
    """Packed inputs, one after another → packed hidden states [sum(lengths), d_model]."""
    device = encoder.embedding.tokens.weight.device
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    ids, borders = (torch.from_numpy(one).to(device, non_blocking=True) for one in (token_ids, cu_seqlens))
    return encoder(ids, borders, int(lengths.max()))
