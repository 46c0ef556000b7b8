"""What a decode step's rows read and write, from slots and positions to places in the pages, and how
sequences go on from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# The columns of `DecodeTables.sequences`.
LAST, BEFORE, EARLIER = 0, 1, 2  # the last three tokens, -1 where there are fewer
POSITION = 3  # of the last token, which the next row computes
RUN = 4  # so many tokens at its end stand in its source, too; 0: nothing is known to follow
PLACE = 5  # in the source, behind those
LENGTH = 6  # of the source; 0: nothing is copied
SOURCE = 7  # from here on the source

LONGEST = 3  # tokens at the end of a sequence that are looked for in its source


@dataclass
class DecodeTables:
    """The state of sequences that are being decoded, by slot, and of their encoder inputs, by cross entry."""

    page_size: int
    self_pages: Tensor  # int32 [slots, pages]
    sequences: Tensor  # int64 [slots, SOURCE + most tokens of a source], see the columns
    cross_pages: Tensor  # int32 [entries, pages]
    cross_lengths: Tensor  # int32 [entries]
    # int32 [slots, positions]: where a beam finds the K and V of its history, page * page_size + offset. To
    # go on from another beam's, this row is copied, K and V never. Made when the first beams come.
    beam_cells: Tensor | None = None


class DecodeRows(NamedTuple):
    """Of N rows, each of one position. What lies behind a row's lengths in its tables is any valid place."""

    token_ids: Tensor  # int64 [N]
    positions: Tensor  # int64 [N]
    write_slots: Tensor  # int64 [N]: where the rows' K and V go, page * page_size + offset
    history: Tensor  # int32 [N, pages], or of beams [N, positions]: their cells
    lengths: Tensor  # int32 [N]: positions, this one included
    cross_pages: Tensor  # int32 [N, pages]
    cross_lengths: Tensor  # int32 [N]


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    """rows: int64 [4, N]: slot, position, cross entry, token; see `resolve`. Beams note where their position
    goes."""
    slots, positions, entries, tokens = rows
    tokens, positions = resolve(slots, positions, tokens, tables.sequences)
    size = tables.page_size
    pages = tables.self_pages[slots, positions // size]
    write_slots = pages.long() * size + positions % size
    history = tables.self_pages
    if beams:
        assert tables.beam_cells is not None
        history = tables.beam_cells
        history[slots, positions] = write_slots.int()
    return DecodeRows(
        token_ids=tokens,
        positions=positions,
        write_slots=write_slots,
        history=history[slots],
        lengths=(positions + 1).int(),
        cross_pages=tables.cross_pages[entries],
        cross_lengths=tables.cross_lengths[entries],
    )


def resolve(slots: Tensor, positions: Tensor, tokens: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and positions [N] of rows, of which the caller does not know all.

    A token below 0 is the sequence's last one, -1, or a guess at the one so far behind it, -2 and on; a
    position below 0 that of the last token, -1, or so far behind it. Where nothing is known to follow, a
    guess is the last token.
    """
    if sequences.shape[1] == SOURCE:  # nothing is guessed: every position is known
        return torch.where(tokens < 0, sequences[slots, LAST], tokens), positions
    ahead = -1 - tokens
    place = sequences[slots, PLACE] + ahead - 1
    guessed = (ahead > 0) & (sequences[slots, RUN] > 0) & (place < sequences[slots, LENGTH])
    own = sequences[slots, torch.where(guessed, SOURCE + place, LAST)]
    positions = torch.where(positions < 0, sequences[slots, POSITION] - 1 - positions, positions)
    return torch.where(tokens < 0, own, tokens), positions


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    """Moves sequences on by the tokens that the model said, and finds out what may follow.

    A sequence's samples are what the model says behind its last token and behind each guess of this step.
    The first holds, and each other one as long as the guess before it was right. The sequence goes on behind
    those; and in its source behind the guesses if all were right, else behind the longest end of the sequence
    there is in it, of at most LONGEST tokens, where it stands last, if anything follows.

    Args:
        tokens: int64 [samples], of each row those of its sequence.
        rows: int64 [4, R]: slot, position of the token before the first sample, or -1: the sequence's own;
            how many samples; how many samples the rows before have. No slot twice.
        sequences: `DecodeTables.sequences`, changed.

    Returns:
        int64 [R, 3]: how many guesses were right, counting one at the last sample, too; RUN; and how many
        tokens of the source are left for guesses.
    """
    slots, starts, samples, firsts = rows
    of = sequences[slots]
    run, place, length, source = of[:, RUN], of[:, PLACE], of[:, LENGTH], of[:, SOURCE:]
    steps, numbers = (torch.arange(n, device=tokens.device) for n in (int(samples.max()), source.shape[1]))

    # Which guesses were right.
    said = tokens[(firsts[:, None] + steps).clamp(max=len(tokens) - 1)]
    at = place[:, None] + steps
    guesses = source.gather(1, at.clamp(max=len(numbers) - 1))
    guessed = (run[:, None] > 0) & (at < length[:, None]) & (steps < samples[:, None])
    right = (guessed & (said == guesses)).int().cumprod(1).sum(1)
    new = torch.minimum(right + 1, samples)

    # The last three of the sequence's tokens and what it said.
    tail = torch.cat([of[:, [BEFORE, LAST]], said], dim=1)
    ends = [tail.gather(1, (new + 1 - back)[:, None]) for back in range(LONGEST)]

    # Where the source goes on: how many tokens before each place that something follows are those of the end.
    unbroken, matched = numbers < length[:, None] - 1, torch.zeros_like(source)
    for back, token in enumerate(ends):
        unbroken = unbroken & (numbers >= back) & (source.roll(back, 1) == token)
        matched += unbroken
    best = (matched * len(numbers) + numbers).amax(1)  # the longest, and of those the last
    goes_on = (right == samples) & (place + right < length)
    run = torch.where(goes_on, run + right, best // len(numbers))
    place = torch.where(goes_on, place + right, best % len(numbers) + 1)

    position = torch.where(starts < 0, of[:, POSITION], starts) + new
    state = torch.stack([position, run, place], dim=1)
    sequences[slots, : SOURCE - 1] = torch.cat([*ends, state], dim=1)
    return torch.stack([right, run, torch.where(run > 0, length - place, 0)], dim=1)
