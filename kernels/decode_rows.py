"""The decode step's table ops in PyTorch: from slots and positions to places in the pages, and the prompt
lookup that moves sequences on from step to step."""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.kernels.values import (
    BEFORE,
    LAST,
    LENGTH,
    LONGEST,
    PLACE,
    POSITION,
    RUN,
    SOURCE,
    DecodeRows,
    DecodeTables,
)


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    """What each row of a decode step reads and writes.

    rows: int64 [4, N]: slot, position, cross entry and token of each row; see `resolve`. beams: the rows are
    beams, whose cell of this position is noted in `tables.beam_cells`.
    """
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
    spans = None if tables.cross_spans is None else tables.cross_spans[slots]
    return DecodeRows(
        token_ids=tokens,
        positions=positions,
        write_slots=write_slots,
        history=history[slots],
        lengths=(positions + 1).int(),
        cross_pages=tables.cross_pages[entries],
        cross_lengths=tables.cross_lengths[entries] if spans is None else spans[:, 1],
        cross_begins=None if spans is None else spans[:, 0],
    )


def resolve(slots: Tensor, positions: Tensor, tokens: Tensor, sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and positions [N] of rows, some of which only the device knows.

    Token -1 is the sequence's last token, -2, -3, … the first, second, … draft token after it. Position -1 is
    that of the last token, -2, -3, … the first, second, … after it. A draft token that the sequence does not
    have is the last token.
    """
    if sequences.shape[1] == SOURCE:  # without sources there are no drafts, and every position is known
        return torch.where(tokens < 0, sequences[slots, LAST], tokens), positions
    ahead = -1 - tokens
    place = sequences[slots, PLACE] + ahead - 1
    drafted = (ahead > 0) & (sequences[slots, RUN] > 0) & (place < sequences[slots, LENGTH])
    own = sequences[slots, torch.where(drafted, SOURCE + place, LAST)]
    positions = torch.where(positions < 0, sequences[slots, POSITION] - 1 - positions, positions)
    return torch.where(tokens < 0, own, tokens), positions


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    """Prompt lookup: accepts the draft tokens that the model confirms, and finds the next ones in the source.

    A sequence's samples are the model's tokens after its last token and after each draft token of this step.
    The first sample holds, and each further one as long as the draft token before it was right. If all were
    right, the source goes on where it is. Otherwise the next draft tokens follow the sequence's last three
    tokens in the source, or its last two, or its last one: the longest match that something follows, and of
    several its last place.

    Args:
        tokens: int64 [samples], each sequence's one after another.
        rows: int64 [4, R]: slot; position of the token before the first sample, or -1, the sequence's own;
            how many samples; how many samples the rows before have. No slot twice.
        sequences: `DecodeTables.sequences`, changed in place.

    Returns:
        int64 [R, 3]: how many draft tokens were right, counting one for the last sample too; RUN; and how
        many tokens of the source are left to draft.
    """
    slots, starts, samples, firsts = rows
    of = sequences[slots]
    run, place, length, source = of[:, RUN], of[:, PLACE], of[:, LENGTH], of[:, SOURCE:]
    steps, numbers = (torch.arange(n, device=tokens.device) for n in (int(samples.max()), source.shape[1]))

    # Which draft tokens were right.
    sampled = tokens[(firsts[:, None] + steps).clamp(max=len(tokens) - 1)]
    at = place[:, None] + steps
    drafts = source.gather(1, at.clamp(max=len(numbers) - 1))
    drafted = (run[:, None] > 0) & (at < length[:, None]) & (steps < samples[:, None])
    right = (drafted & (sampled == drafts)).int().cumprod(1).sum(1)
    new = torch.minimum(right + 1, samples)

    # The sequence's last three tokens, the new ones included.
    tail = torch.cat([of[:, [BEFORE, LAST]], sampled], dim=1)
    ends = [tail.gather(1, (new + 1 - back)[:, None]) for back in range(LONGEST)]

    # How many tokens of the end stand before each place of the source that something follows.
    unbroken, matched = numbers < length[:, None] - 1, torch.zeros_like(source)
    for back, token in enumerate(ends):
        unbroken = unbroken & (numbers >= back) & (source.roll(back, 1) == token)
        matched += unbroken
    best = (matched * len(numbers) + numbers).amax(1)  # the longest match, and of several its last place
    goes_on = (right == samples) & (place + right < length)
    run = torch.where(goes_on, run + right, best // len(numbers))
    place = torch.where(goes_on, place + right, best % len(numbers) + 1)

    position = torch.where(starts < 0, of[:, POSITION], starts) + new
    state = torch.stack([position, run, place], dim=1)
    sequences[slots, : SOURCE - 1] = torch.cat([*ends, state], dim=1)
    return torch.stack([right, run, torch.where(run > 0, length - place, 0)], dim=1)
