"""Deltas merge to the one that their steps together would have had."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.outputs import TokenLogprobs
from tandem.workers.request import Delta, Hypothesis

SCORES = [TokenLogprobs(number, -0.5 * number, []) for number in range(12)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.booleans())
def test_merged_is_what_one_step_would_have_said(sizes: list[int], wants_logprobs: bool) -> None:
    deltas, at = [], 0
    for number, size in enumerate(sizes):
        first, last = number == 0, number == len(sizes) - 1
        here = slice(at, at + size)
        deltas.append(
            Delta(
                "r",
                list(range(12))[here],
                SCORES[here] if wants_logprobs else None,
                "stop" if last else None,
                7 if last else None,
                queued_s=0.25 if first else None,
                prompt_logprobs=SCORES[:2] if first else None,
            )
        )
        at += size
    merged, *rest = deltas
    for delta in rest:
        merged = merged.merged(delta)
    logprobs = SCORES[: min(at, 12)] if wants_logprobs else None
    expected = Delta("r", list(range(min(at, 12))), logprobs, "stop", 7, None, 0.25, None, SCORES[:2])
    assert merged == expected
    assert merged.last


def test_an_end_keeps_what_came_before_it() -> None:
    error = RuntimeError("gone")
    ended = Delta("r", [5], queued_s=0.5).merged(Delta("r", [], error=error))  # type: ignore[arg-type]
    assert ended == Delta("r", [5], error=error, queued_s=0.5)  # type: ignore[arg-type]
    found = [Hypothesis([7, 1], -0.5, "stop", None)]
    assert Delta("r", []).merged(Delta("r", [], finish_reason="stop", hypotheses=found)).hypotheses == found
