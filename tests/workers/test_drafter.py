"""What a drafter guesses, and when it holds its tongue."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import decoding

from tandem.workers import drafter
from tandem.workers.drafter import Drafter, drafter_of
from tandem.workers.need import Need
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest

TEXT = (10, 11, 12, 13, 14, 15, 16, 17, 18, 19)


def drafted(one: Drafter, most: int = 7, **options: Any) -> list[int]:
    return one.draft(most, **{"rows": 1, "behind": 0, "costs": 0, "stops": (), **options})


def after(source: tuple[int, ...], *tokens: int) -> Drafter:
    one = Drafter(source, (0,))
    for token in tokens:
        one.push(token)
    return one


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafter, "CHANCES", (1.0, 1.0, 1.0))


def test_two_tokens_of_the_source_are_followed_by_its_next() -> None:
    assert drafted(after(TEXT, 5, 12)) == []
    assert drafted(after(TEXT, 12, 13))[0] == 14


def test_a_long_copy_is_drafted_far_ahead() -> None:
    one = after(TEXT * 4, *TEXT * 2)
    assert drafted(one) == list(TEXT[:7])
    assert drafted(one, most=3) == list(TEXT[:3])
    assert drafted(one, most=0) == []


@pytest.mark.usefixtures("sure")
def test_nothing_is_drafted_beyond_the_source_or_a_stop() -> None:
    assert drafted(after(TEXT, 16, 17)) == [18, 19]
    assert drafted(after(TEXT, 18, 19)) == []
    assert drafted(after(TEXT, 12, 13), stops={16}) == [14, 15]
    assert drafted(after(TEXT, 12, 13), stops={14}) == []


@pytest.mark.usefixtures("sure")
def test_tokens_on_their_way_are_guessed_as_well() -> None:
    one = after(TEXT, 12, 13)
    assert drafted(one, most=3, behind=1) == [15, 16, 17]
    assert drafted(one, behind=1, stops={14}) == []
    assert drafted(one, most=2, costs=1) == [14, 15]
    assert drafted(one, most=1, costs=1) == []


def test_a_copy_goes_on_behind_what_was_replaced_or_left_out() -> None:
    one = after(TEXT * 2, *TEXT, 10, 77, 12, 13)
    assert drafted(one)[:2] == [14, 15]
    one = after(TEXT * 2, *TEXT, 10, 15, 16)
    assert drafted(one)[:2] == [17, 18]


@pytest.mark.usefixtures("sure")
def test_the_longest_match_counts_and_the_last_of_equals() -> None:
    source = (1, 2, 3, 40, 9, 2, 3, 50, 3, 60, 2, 3, 70)
    assert drafted(after(source, 1, 2, 3), most=1) == [40]
    assert drafted(after(source, 9, 2, 3), most=1) == [50]
    assert drafted(after(source, 8, 2, 3), most=1) == [70]
    assert drafted(after(source, 50, 3), most=1) == [60]


def test_wrong_guesses_silence_it_and_right_ones_give_it_back_its_voice() -> None:
    """Both are seen without drafting."""
    rng = random.Random(0)
    source = tuple(rng.choices(range(5), k=200))  # every pair of tokens is in it
    one = after(source, *rng.choices(range(5), k=100))
    lengths = []
    for token in rng.choices(range(5), k=50):
        one.push(token)
        lengths.append(len(drafted(one)))
    assert sum(lengths) < 25
    for token in source[:40]:
        one.push(token)
    assert len(drafted(one)) == 7


def test_among_many_rows_a_guess_must_be_likelier() -> None:
    one = after(TEXT * 2, *TEXT)
    lengths = [len(drafted(one, rows=rows)) for rows in (1, 8, 32, 1000)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


@given(
    st.lists(st.integers(0, 4), max_size=30),
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.integers(0, 9),
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(0, 2),
    st.sets(st.integers(0, 4), max_size=2),
)
def test_a_draft_is_a_piece_of_the_source_behind_what_was_said(
    source: list[int], tokens: list[int], most: int, rows: int, behind: int, costs: int, stops: set[int]
) -> None:
    one = after(tuple(source), *tokens)
    draft = one.draft(most, rows, behind=behind, costs=costs, stops=stops)
    assert len(draft) <= most
    assert not stops & set(draft)
    assert not draft or len(draft) > costs
    places = [
        at
        for at in range(1, len(source) + 1)
        if source[at - 1] == tokens[-1] and source[at + behind : at + behind + len(draft)] == draft
    ]
    assert not draft or places


@pytest.mark.parametrize(
    ("options", "drafts"),
    [
        ({}, True),
        ({"min_tokens": 3, "forced_bos_id": 7, "suppress_ids": (9,), "logit_bias": ((5, 1.0),)}, True),
        ({"logprobs": 2, "prompt_logprobs": 1}, True),
        ({"temperature": 0.5}, False),
        ({"beams": BeamSearch(2, 1, 1.0, early_stopping=False)}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"bad_words": ((5,),)}, False),
    ],
)
def test_who_drafts(options: dict[str, Any], drafts: bool) -> None:
    request = EngineRequest("a", EncoderInput("k", TEXT), (0,), decoding(**options))
    assert (drafter_of(request, (0,)) is not None) == drafts
    assert drafts == (not Need.of(request) & Need.HISTORY and not options.keys() & {"temperature", "beams"})


def test_what_is_scored_is_not_drafted() -> None:
    request = EngineRequest("a", EncoderInput("k", TEXT), (0,), decoding(max_tokens=3), target_ids=(1, 2, 3))
    assert drafter_of(request, (0,)) is None


@pytest.mark.usefixtures("sure")
def test_without_an_encoder_the_prompt_is_the_source() -> None:
    request = EngineRequest("a", EncoderInput("", ()), (*TEXT, 12), decoding())
    one = drafter_of(request, request.prefix_ids)
    assert one is not None
    assert drafted(one)[:2] == [13, 14]
