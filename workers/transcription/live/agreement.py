"""What successive hypotheses about growing audio agree on: local agreement, after Liu et al. (2020) and
Macháček et al. (2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def agreed(
    earlier: Sequence[int], later: Sequence[int], decode: Callable[[Sequence[int]], str], *, spaced: bool
) -> int:
    """How many tokens two hypotheses, which go on from the same text, begin with alike: whole words only.

    Args:
        earlier, later: ids of text; the later one has heard more.
        decode: the text of ids.
        spaced: a word ends where the next token begins with a space. Else it ends with any whole character.

    What the later one ends with is a whole word only where the earlier one has ended there, too.
    """
    alike = 0
    for one, other in zip(earlier, later, strict=False):
        if one != other:
            break
        alike += 1
    if alike == len(earlier) == len(later):
        return alike
    while alike and not _ends_word(later, alike, decode, spaced):
        alike -= 1
    return alike


def _ends_word(ids: Sequence[int], count: int, decode: Callable[[Sequence[int]], str], spaced: bool) -> bool:
    text = decode(ids[:count])
    if text.endswith(_INCOMPLETE):
        return False
    return not spaced or decode(ids[: count + 1])[len(text) :][:1].isspace()
