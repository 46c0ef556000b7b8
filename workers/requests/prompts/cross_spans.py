"""What the positions of a decoder prompt with images read of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from tandem.workers.request import CrossSpan


def cross_spans(
    prompt: Sequence[int], token_id: int, own: Sequence[int], positions: int
) -> tuple[CrossSpan, ...]:
    """The spans of a prompt in which `token_id` stands for each item of media.

    A position reads the item that comes last at or before it; items whose tokens are adjacent are read
    together. Positions before the first item read all there is, padding included, as in transformers: it
    unmasks rows that would see nothing.

    own: each item's encoder positions, without its padding. The items lie one after another, and then their
        padding.
    positions: of the encoder input, padding included.
    """
    at = [position for position, one in enumerate(prompt) if one == token_id]
    if not at:
        return (CrossSpan(0, 0, 0, own=False),)
    borders = [0, *accumulate(own)]
    spans = [CrossSpan(0, 0, positions, own=False)] if at[0] else []
    first = 0  # of the items that are read together
    for number, position in enumerate(at):
        if number and at[number - 1] != position - 1:
            first = number
        spans.append(CrossSpan(position, borders[first], borders[number + 1], own=True))
    return tuple(spans)
