"""A step as integers: what rank 0 tells the other ranks, and all that any rank's runner reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tandem.workers.scheduling.plan import Admission, StepPlan

Ints = npt.NDArray[np.int64]

CLOSE = [0]  # in place of a step: no more will come
# In place of a handle: the ranks encode the tokens themselves, in this step or beside earlier ones.
ENCODE_HERE, ENCODED_ASYNC = -1, -2
SINGLE, FIRST_BEAM, BEAM = range(3)  # kinds of row: FIRST_BEAM computes the prefix for all beams
NO_TOP = -1  # the token's own log-probability alone
_NOWHERE = (0, 0, 0)  # nothing is known to follow, from the position on
_WIDTHS = (4, 1, 1, 3, 7, 1, 1, 3, 2, 1, 2, 1)  # of the tables, in order


@dataclass(slots=True)
class Packet:
    """One step's tables, one row an item."""

    admissions: Ints  # [A, 4]: cross entry, length, pages, handle or ENCODE_HERE or ENCODED_ASYNC
    admission_pages: Ints  # the admissions' pages, one after another
    admission_tokens: Ints  # the tokens of those to be encoded here
    new_pages: Ints  # [U, 3]: slot, index in its table, page
    # [R, 7]: slot, first position, count, cross entry, samples, kind, and how much later it may begin.
    rows: Ints
    row_tokens: Ints  # the rows' tokens; ON_DEVICE is the slot's last sampled one, below it are guesses
    beam_slots: Ints  # of all beams that get a token, those of a request together
    # [T, 3]: a position among the step's, the token behind it that is to be scored, how many likeliest ones
    # are wanted beside it, or NO_TOP.
    targets: Ints
    overlapped: (
        Ints  # [B, 2]: cross entry and length of inputs to be encoded beside this step and the next ones
    )
    overlapped_tokens: Ints  # theirs, one after another
    sources: Ints  # [S, 2]: slot, and how many columns of `DecodeTables.sequences` are set, from the first on
    source_columns: Ints  # what they are set to, one after another

    @classmethod
    def of(cls, plan: StepPlan) -> Packet:
        admissions: list[tuple[int, ...]] = []
        pages: list[int] = []
        encoded: list[int] = []
        for admission in _by_length(plan.admissions):
            entry, encoder = admission.entry, admission.request.encoder
            here = ENCODED_ASYNC if admission.overlapped else ENCODE_HERE
            handle = here if encoder.hidden is None else encoder.hidden.handle
            admissions.append((entry.index, entry.length, len(entry.pages), handle))
            pages += entry.pages
            if handle == ENCODE_HERE:
                encoded += encoder.token_ids
        overlapped = _by_length(plan.overlapped)
        rows: list[tuple[int, ...]] = []
        tokens: list[int] = []
        beam_slots: list[int] = []
        targets: list[tuple[int, int, int]] = []
        position = 0
        for row in plan.rows:
            sequence = row.sequence
            entry_index = sequence.cross.index if sequence.cross else 0
            kind = SINGLE if sequence.width == 1 else FIRST_BEAM if row.width == 1 else BEAM
            for slot in sequence.slots[: row.width]:
                rows.append((slot, row.start, row.count, entry_index, row.samples, kind, row.uncertain))
                tokens += row.token_ids
            if row.target_ids:
                first = position + max(0, sequence.scored_from - row.start)
                asked = sequence.request.decoding.prompt_logprobs
                top = NO_TOP if asked is None else asked
                targets += [(first + at, token_id, top) for at, token_id in enumerate(row.target_ids)]
            position += row.count * row.width
            if kind != SINGLE and row.samples:
                beam_slots += sequence.slots
        sources: list[tuple[int, ...]] = []
        source_columns: list[int] = []
        for sequence in plan.started:
            if sequence.drafter is not None:
                source = sequence.drafter.source
                ends = (*sequence.tokens[:-4:-1], -1, -1)[:3]
                columns = (*ends, *_NOWHERE, len(source), *source)
                sources.append((sequence.slots[0], len(columns)))
                source_columns += columns
        return cls(
            _table(admissions, 4), _table(pages), _table(encoded), _table(plan.new_pages, 3), _table(rows, 7),
            _table(tokens), _table(beam_slots), _table(targets, 3),
            _table([(one.entry.index, one.entry.length) for one in overlapped], 2),
            _table([token_id for one in overlapped for token_id in one.request.encoder.token_ids]),
            _table(sources, 2), _table(source_columns),
        )  # fmt: skip

    @property
    def sampling(self) -> Ints:
        """Of the rows those without beams that give tokens."""
        rows: Ints = self.rows[(self.rows[:, 5] == SINGLE) & (self.rows[:, 4] > 0)]
        return rows

    @property
    def choices(self) -> int:
        """Numbers in `Sampled.choice`: a token for each sample, and of a beam its parent as well."""
        return int(self.sampling[:, 4].sum()) + 2 * len(self.beam_slots)

    def to_ints(self) -> Ints:
        parts = (
            self.admissions, self.admission_pages, self.admission_tokens, self.new_pages, self.rows,
            self.row_tokens, self.beam_slots, self.targets, self.overlapped, self.overlapped_tokens,
            self.sources, self.source_columns,
        )  # fmt: skip
        return np.concatenate([np.array([len(part) for part in parts]), *(part.ravel() for part in parts)])

    @classmethod
    def from_ints(cls, values: Ints) -> Packet:
        parts, at = [], len(_WIDTHS)
        for count, width in zip(values[:at], _WIDTHS, strict=True):
            part = values[at : at + count * width]
            parts.append(part.reshape(-1, width) if width > 1 else part)
            at += count * width
        return cls(*parts)


def _by_length(admissions: list[Admission]) -> list[Admission]:
    """The encoder runs neighbours of equal length together."""
    return sorted(admissions, key=lambda admission: admission.entry.length)


def _table(items: object, width: int = 1) -> Ints:
    table = np.array(items, dtype=np.int64)
    return table.reshape(-1, width) if width > 1 else table
