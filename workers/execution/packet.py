"""A step as integers: what rank 0 tells the other ranks, and all that any rank's runner reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Final, Self, get_type_hints

import numpy as np
import numpy.typing as npt

from tandem.workers.request import EncoderInput, MediaKey
from tandem.workers.scheduling.plan import Admission, StepPlan

Ints = npt.NDArray[np.int64]

CLOSE = [0]  # in place of a step: no more will come
ENCODE = -1  # in place of a step's first number: encoder inputs are to be encoded, see `EncodePacket`
# In place of a handle: the ranks encode the tokens themselves, in this step or alongside earlier ones.
ENCODE_HERE, ENCODED_ASYNC = -1, -2
SINGLE, FIRST_BEAM, BEAM = range(3)  # kinds of row: FIRST_BEAM computes the prefix for all beams
NO_TOP = -1  # the token's own log-probability alone
ANY_ID = 2**31 - 1  # above every id; numbers travel to the device in 32 bits
_NOTHING: Final = np.empty(0, dtype=np.int64)
_NOWHERE = (0, 0, 0)  # a new sequence's: nothing is known to follow, see `kernels.decode_rows`


class Table:
    """int64 [items, columns]. A subclass names the columns, in order, by its annotations; each is a view."""

    __slots__ = ("values",)
    columns: ClassVar[tuple[str, ...]]

    _no_items: ClassVar[Ints]

    def __init_subclass__(cls) -> None:
        cls.columns = tuple(cls.__annotations__)
        for number, name in enumerate(cls.columns):
            setattr(cls, name, property(partial(_column, number)))
        cls._no_items = np.empty((0, len(cls.columns)), dtype=np.int64)

    def __init__(self, values: Ints) -> None:
        self.values = values

    @classmethod
    def of(cls, items: Sequence[tuple[int, ...]]) -> Self:
        """The table of items, each its columns in order."""
        if not items:  # most tables of most steps
            return cls(cls._no_items)
        return cls(np.array(items, dtype=np.int64).reshape(-1, len(cls.columns)))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: slice | npt.NDArray[np.bool_]) -> Self:
        """The table of some of the items."""
        return type(self)(self.values[chosen])


def _column(number: int, table: Table) -> Ints:
    return table.values[:, number]


class Admissions(Table):
    """Encoder inputs whose cross-attention K/V this step computes."""

    entry: Ints  # row of the device's table of cross pages
    length: Ints  # encoder positions
    pages: Ints  # how many
    handle: Ints  # the hidden states', or ENCODE_HERE or ENCODED_ASYNC


class NewPages(Table):
    """Pages that rows write to from this step on."""

    slot: Ints
    index: Ints  # in the slot's table
    page: Ints


class Rows(Table):
    """Consecutive positions of one sequence, see `scheduling.plan.Row`. Each beam has a row."""

    slot: Ints
    start: Ints  # first position, at least
    count: Ints  # positions
    entry: Ints  # the cross entry they read
    samples: Ints  # so many of the last positions' logits give a token
    kind: Ints  # SINGLE, FIRST_BEAM or BEAM
    uncertain: Ints  # so many positions later at most


class TargetTokens(Table):
    """Tokens to be scored."""

    position: Ints  # the one that the token follows, among all of the step's
    token: Ints
    top: Ints  # how many likeliest alternatives are wanted besides, or NO_TOP
    below: Ints  # it is scored among the ids below; ANY_ID: among all


class Alignments(Table):
    """Rows of sequences that are aligned with their encoder inputs, see `request.Alignment`."""

    row: Ints  # its number among the rows
    last: Ints  # 1: no more rows follow
    compared_from: Ints
    first: Ints
    stop: Ints
    input_length: Ints
    cropped: Ints  # 0 or 1
    filter_width: Ints
    heads: Ints  # how many


class Overlapped(Table):
    """Encoder inputs to be encoded alongside this step and the next ones."""

    entry: Ints
    length: Ints


class CrossSpans(Table):
    """What new sequences' positions read of their encoder inputs, see `request.CrossSpan`."""

    slot: Ints  # a beam's own
    start: Ints
    begin: Ints
    end: Ints
    own: Ints  # 0 or 1


class MediaItems(Table):
    """Items of media, in the order of the encoder positions that hold their rows: see `request.MediaKey`."""

    high: Ints
    low: Ints

    @property
    def keys(self) -> list[MediaKey]:
        return [(high, low) for high, low in self.values.tolist()]


class Sources(Table):
    """What new sequences draft from: the first columns of their rows in `DecodeTables.sequences`."""

    slot: Ints
    count: Ints  # columns


@dataclass(slots=True)
class Packet:
    """One step's tables, an item each. The vectors that follow a table hold its items' values, one item after
    another."""

    admissions: Admissions  # by length: the encoder runs neighbours of equal length together
    admission_pages: Ints
    admission_tokens: Ints  # the inputs' that are to be encoded here
    admission_media: MediaItems  # of these inputs
    new_pages: NewPages
    rows: Rows
    row_tokens: Ints  # ON_DEVICE is the slot's last sampled one, below it are draft tokens
    beam_slots: Ints  # those of all beams that get a token, a request's together
    targets: TargetTokens
    alignments: Alignments
    alignment_heads: Ints  # layer and head of each
    overlapped: Overlapped  # by length
    overlapped_tokens: Ints
    overlapped_media: MediaItems
    cross_spans: CrossSpans  # a slot's together
    sources: Sources
    source_columns: Ints

    @classmethod
    def of(cls, plan: StepPlan) -> Packet:
        admissions: list[tuple[int, ...]] = []
        admission_pages: list[int] = []
        admission_tokens: list[int] = []
        admission_media: list[MediaKey] = []
        for admission in by_length(plan.admissions):
            entry, encoder = admission.entry, admission.request.encoder
            here = ENCODED_ASYNC if admission.overlapped else ENCODE_HERE
            handle = here if encoder.hidden is None else encoder.hidden.handle
            admissions.append((entry.index, entry.length, len(entry.pages), handle))
            admission_pages += entry.pages
            if handle == ENCODE_HERE:
                admission_tokens += encoder.token_ids
                admission_media += encoder.item_keys
        overlapped = by_length(plan.overlapped)
        rows: list[tuple[int, ...]] = []
        row_tokens: list[int] = []
        beam_slots: list[int] = []
        targets: list[tuple[int, ...]] = []
        alignments: list[tuple[int, ...]] = []
        alignment_heads: list[int] = []
        position = 0
        for row in plan.rows:
            sequence = row.sequence
            entry_index = sequence.cross.index if sequence.cross else 0
            kind = SINGLE if sequence.width == 1 else FIRST_BEAM if row.width == 1 else BEAM
            for slot in sequence.slots[: row.width]:
                rows.append((slot, row.start, row.count, entry_index, row.samples, kind, row.uncertain))
                row_tokens += row.token_ids
            if row.target_ids:
                first = position + max(0, sequence.scored_from - row.start)
                decoding = sequence.request.decoding
                top = NO_TOP if decoding.prompt_logprobs is None else decoding.prompt_logprobs
                below = ANY_ID if decoding.score_below is None else decoding.score_below
                targets += [(first + at, token_id, top, below) for at, token_id in enumerate(row.target_ids)]
            if not row.samples and (how := sequence.request.decoding.alignment) is not None:
                last = row.start + row.count == len(sequence.tokens)
                alignments.append(
                    (
                        len(rows) - 1, last, how.compared_from, how.first, how.stop, how.input_length,
                        how.cropped, how.filter_width, len(how.heads),
                    )
                )  # fmt: skip
                alignment_heads += chain.from_iterable(how.heads)
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
            admissions=Admissions.of(admissions),
            admission_pages=_vector(admission_pages),
            admission_tokens=_vector(admission_tokens),
            admission_media=MediaItems.of(admission_media),
            new_pages=NewPages.of(plan.new_pages),
            rows=Rows.of(rows),
            row_tokens=_vector(row_tokens),
            beam_slots=_vector(beam_slots),
            targets=TargetTokens.of(targets),
            alignments=Alignments.of(alignments),
            alignment_heads=_vector(alignment_heads),
            overlapped=Overlapped.of([(one.entry.index, one.entry.length) for one in overlapped]),
            overlapped_tokens=_vector(
                [token_id for one in overlapped for token_id in one.request.encoder.token_ids]
            ),
            overlapped_media=MediaItems.of(
                [key for one in overlapped for key in one.request.encoder.item_keys]
            ),
            cross_spans=CrossSpans.of(
                [
                    (slot, *span)
                    for sequence in plan.started
                    for slot in sequence.slots
                    for span in sequence.request.cross_spans
                ]
            ),
            sources=Sources.of(sources),
            source_columns=_vector(source_columns),
        )

    @property
    def sampling(self) -> Rows:
        """The rows that sample a token, beams excluded."""
        return self.rows[(self.rows.kind == SINGLE) & (self.rows.samples > 0)]

    @property
    def choices(self) -> int:
        """Numbers in `Sampled.choice`: a token for each sample, and a beam's parent as well."""
        return int(self.sampling.samples.sum()) + 2 * len(self.beam_slots)

    def to_ints(self) -> Ints:
        """One vector: how many items each part has, then the parts, item by item."""
        parts = [getattr(self, name) for name in _PARTS]
        flat = (part.values.ravel() if isinstance(part, Table) else part for part in parts)
        return np.concatenate([np.array([len(part) for part in parts]), *flat])

    @classmethod
    def from_ints(cls, values: Ints) -> Packet:
        parts: dict[str, Any] = {}
        at = len(_PARTS)
        for (name, table), count in zip(_PARTS.items(), values[:at].tolist(), strict=True):
            width = 1 if table is None else len(table.columns)
            part = values[at : at + count * width]
            parts[name] = part if table is None else table(part.reshape(-1, width))
            at += count * width
        return cls(**parts)


@dataclass(slots=True)
class EncodePacket:
    """Encoder inputs that all ranks encode between two steps, for their hidden states alone."""

    lengths: Ints
    token_ids: Ints  # all inputs', one after another
    media: MediaItems  # all inputs'

    @classmethod
    def of(cls, inputs: Sequence[EncoderInput]) -> EncodePacket:
        token_ids = [token_id for one in inputs for token_id in one.token_ids]
        media = MediaItems.of([key for one in inputs for key in one.item_keys])
        return cls(_vector([len(one.token_ids) for one in inputs]), _vector(token_ids), media)

    def to_ints(self) -> Ints:
        """One vector: ENCODE, how many inputs and items of media there are, then the lengths, the items' keys
        and the tokens."""
        counts = [ENCODE, len(self.lengths), len(self.media)]
        return np.concatenate([counts, self.lengths, self.media.values.ravel(), self.token_ids])

    @classmethod
    def from_ints(cls, values: Ints) -> EncodePacket:
        _, inputs, items = values[:3].tolist()
        lengths, media, token_ids = np.split(values[3:], [inputs, inputs + 2 * items])
        return cls(lengths, token_ids, MediaItems(media.reshape(-1, 2)))


# The packet's fields, in order, each with its kind of table; None: a vector.
_PARTS: dict[str, type[Table] | None] = {
    name: kind if hasattr(kind, "columns") else None for name, kind in get_type_hints(Packet).items()
}


def by_length(admissions: Iterable[Admission]) -> list[Admission]:
    """The order of encoder inputs in a packet: the encoder runs neighbours of equal length together."""
    return sorted(admissions, key=lambda admission: admission.entry.length)


def _vector(items: list[int]) -> Ints:
    return np.array(items, dtype=np.int64) if items else _NOTHING
