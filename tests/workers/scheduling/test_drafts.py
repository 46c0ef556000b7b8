"""How much a drafter drafts, and when it holds its tongue. (tests/kernels/test_decode_rows.py: what.)"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import decoding

from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.scheduling import drafts
from tandem.workers.scheduling.drafts import Drafter
from tandem.workers.scheduling.plan import DraftOutcome
from tandem.workers.scheduling.processor_flags import ProcessorFlags

TEXT = (10, 11, 12, 13, 14, 15, 16, 17, 18, 19)


def drafted(one: Drafter, most: int = 7, least: float = 0.0, after: int = 0) -> int:
    return one.draft(most, least, after=after)


def seeing(*seen: DraftOutcome, tokens: int = 1) -> Drafter:
    one = Drafter(TEXT)
    for what in seen:
        one.observe(what, tokens)
    return one


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "CHANCES", (1.0, 1.0, 1.0))


def test_two_tokens_of_the_source_are_followed_by_its_next() -> None:
    assert drafted(Drafter(TEXT)) == 0
    assert drafted(seeing(DraftOutcome(0, 0, 0))) == 0
    assert drafted(seeing(DraftOutcome(0, 1, 9))) == 0
    assert drafted(seeing(DraftOutcome(0, 2, 8))) > 0


@pytest.mark.usefixtures("sure")
def test_no_more_than_there_is() -> None:
    assert drafted(seeing(DraftOutcome(0, 2, 20))) == 7
    assert drafted(seeing(DraftOutcome(0, 2, 20)), most=3) == 3
    assert drafted(seeing(DraftOutcome(0, 2, 2))) == 2
    assert [drafted(seeing(DraftOutcome(0, 2, 20)), most=most) for most in (0, -1, -9)] == [0, 0, 0]


@pytest.mark.usefixtures("sure")
def test_tokens_on_their_way_are_guessed_as_well() -> None:
    one = seeing(DraftOutcome(0, 2, 5))
    assert [drafted(one, after=after) for after in range(7)] == [5, 4, 3, 2, 1, 0, 0]
    assert drafted(one, most=2, after=2) == 2


def test_the_longer_the_match_the_likelier_the_guess() -> None:
    assert drafted(seeing(DraftOutcome(0, 3, 20))) > drafted(seeing(DraftOutcome(0, 2, 20))) > 0
    assert drafted(seeing(DraftOutcome(0, 30, 20))) == drafted(seeing(DraftOutcome(0, 3, 20)))


def test_a_long_copy_is_drafted_far_ahead() -> None:
    one = Drafter(TEXT)
    for run in range(1, 20):
        one.observe(DraftOutcome(min(1, run - 1), run, 20), 1)
    assert drafted(one) == 7


def test_experience_is_of_the_guesses_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "CHANCES", (0.5, 0.5, 0.5))
    monkeypatch.setattr(drafts, "RATE", 1.0)
    for before, what, tokens, chances in (
        (DraftOutcome(0, 0, 0), DraftOutcome(0, 1, 9), 1, [0.5, 0.5, 0.5]),  # there was none
        (DraftOutcome(0, 1, 9), DraftOutcome(1, 2, 8), 1, [1, 0.5, 0.5]),  # not drafted, and right
        (DraftOutcome(0, 1, 9), DraftOutcome(0, 0, 0), 1, [0, 0.5, 0.5]),
        (DraftOutcome(0, 1, 9), DraftOutcome(2, 0, 0), 4, [1, 1, 0]),
        (DraftOutcome(0, 2, 9), DraftOutcome(4, 6, 5), 4, [0.5, 1, 1]),
        (DraftOutcome(0, 1, 2), DraftOutcome(2, 0, 0), 4, [1, 1, 0.5]),  # the source ended
    ):
        one = Drafter(TEXT)
        one.observe(before, 1)
        one.observe(what, tokens)
        assert one._chances == chances


def test_wrong_guesses_silence_it_and_right_ones_give_it_back_its_voice() -> None:
    """Both are seen without drafting."""
    rng = random.Random(0)
    one, lengths = seeing(DraftOutcome(0, 3, 100)), []
    for _ in range(60):
        one.observe(DraftOutcome(int(rng.random() < 0.2), rng.choice((1, 2, 3)), 100), 1)
        lengths.append(drafted(one))
    assert sum(lengths[10:]) < 25
    for _ in range(40):
        one.observe(DraftOutcome(1, 3, 100), 1)
    assert drafted(one) == 7


def test_among_many_rows_a_guess_must_be_likelier() -> None:
    one = seeing(*[DraftOutcome(1, 3, 100)] * 20)
    lengths = [drafted(one, least=least) for least in (0, 0.5, 0.98, 1.0)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == 0


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5), st.integers(0, 9), st.integers(1, 8))),
    st.integers(-2, 9),
    st.floats(0, 1),
    st.integers(0, 8),
)
def test_chances_stay_chances(
    seen: list[tuple[int, int, int, int]], most: int, least: float, after: int
) -> None:
    one, left = Drafter(TEXT), 0
    for right, run, left, tokens in seen:
        one.observe(DraftOutcome(min(right, tokens), run, left), tokens)
    assert all(0 <= chance <= 1 for chance in one._chances)
    assert 0 <= drafted(one, most, least, after) <= max(0, min(most, left - after))


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
    assert bool(Drafter.of(request).source) == drafts
    assert drafts == (
        not ProcessorFlags.of(request) & ProcessorFlags.HISTORY
        and not options.keys() & {"temperature", "beams"}
    )


def test_what_is_scored_is_not_drafted() -> None:
    request = EngineRequest("a", EncoderInput("k", TEXT), (0,), decoding(max_tokens=3), target_ids=(1, 2, 3))
    assert Drafter.of(request).source == ()


@pytest.mark.parametrize(
    ("encoder", "prefix", "stops", "source"),
    [
        (TEXT, (0,), {1}, TEXT),
        (TEXT, (0,), {1, 19}, TEXT[:-1]),  # both end with it
        (TEXT, (0,), {12}, TEXT),
        ((), (*TEXT, 12), {1}, (*TEXT, 12)),  # without an encoder the prompt is the source
        ((1,), (0,), {1}, ()),
    ],
)
def test_the_source(
    encoder: tuple[int, ...], prefix: tuple[int, ...], stops: set[int], source: tuple[int, ...]
) -> None:
    request = EngineRequest("a", EncoderInput("k", encoder), prefix, decoding(stop_ids=frozenset(stops)))
    assert Drafter.of(request).source == source
