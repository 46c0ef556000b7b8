"""What hypotheses agree on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.workers.transcription.live.agreement import agreed

PIECES = [" the", " cat", " s", "at", " on", "!", "�"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[one] for one in ids)


@pytest.mark.parametrize(
    ("earlier", "later", "count"),
    [
        ([], [0, 1], 0),
        ([0, 1], [0, 4], 1),
        ([0, 2], [0, 2, 3, 4], 1),  # " s" may go on, and does
        ([0, 2, 3], [0, 2, 3, 4], 3),
        ([0, 1], [0, 1], 2),  # both end there
        ([0, 1], [0, 1, 5], 1),
        ([0, 1, 4], [0, 1, 5], 1),
        ([4], [0], 0),
        ([0, 6], [0, 6, 1], 0),  # half a character
    ],
)
def test_whole_words(earlier: list[int], later: list[int], count: int) -> None:
    assert agreed(earlier, later, decode, spaced=True) == count


def test_without_spaces_any_whole_character_is_a_word() -> None:
    assert agreed([0, 2], [0, 2, 3], decode, spaced=False) == 2
    assert agreed([0, 6], [0, 6, 1], decode, spaced=False) == 1


@given(st.lists(st.integers(0, 6)), st.lists(st.integers(0, 6)), st.booleans())
def test_it_is_a_beginning_of_both(earlier: list[int], later: list[int], spaced: bool) -> None:
    count = agreed(earlier, later, decode, spaced=spaced)
    assert earlier[:count] == later[:count]
    assert len(earlier[:count]) == count
