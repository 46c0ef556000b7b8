"""Which answers are good enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transcribing import ASKED
from transformers import WhisperForConditionalGeneration

from tandem.workers.transcription.fallback import Attempt, Verdict, ids_ratio, judged, text_ratio

GOOD = Attempt([1], 0.0, avg_logprob=-0.2, ids_ratio=1.0, text_ratio=1.0, no_speech_prob=0.1)


@pytest.mark.parametrize("vocab_size", [150, 51_865, 70_000])
def test_compression_of_ids_is_transformers(vocab_size: int) -> None:
    kind: Any = WhisperForConditionalGeneration
    for ids in ([5], [5, 6] * 30, list(range(100))):
        expected = kind._retrieve_compression_ratio(torch.tensor(ids), vocab_size)
        assert ids_ratio(ids, vocab_size) == expected


def test_compression_of_text() -> None:
    assert text_ratio("") == 0
    assert text_ratio("so " * 100) > 2.4 > text_ratio("A quick brown fox jumps over the lazy dog.")


@pytest.mark.parametrize("openai", [False, True])
@pytest.mark.parametrize(
    ("changes", "again", "silent", "silent_openai"),
    [
        ({}, False, False, False),
        ({"ids_ratio": 2.0, "text_ratio": 2.0}, True, False, False),
        ({"avg_logprob": -1.5}, True, False, False),
        ({"no_speech_prob": 0.7}, False, False, False),  # what it says is likely
        ({"no_speech_prob": 0.7, "avg_logprob": -1.5}, False, True, True),
        (
            {"no_speech_prob": 0.7, "avg_logprob": -1.5, "ids_ratio": 2.0, "text_ratio": 2.0},
            False,
            True,
            True,
        ),
        ({"no_speech_prob": 0.7, "avg_logprob": -1.0}, False, False, True),  # neither above nor below
    ],
)
def test_verdicts(
    changes: dict[str, float], again: bool, silent: bool, silent_openai: bool, openai: bool
) -> None:
    asked = replace(
        ASKED, openai=openai, compression_ratio_threshold=1.5, logprob_threshold=-1.0, no_speech_threshold=0.6
    )
    verdict = judged(GOOD._replace(**changes), asked)
    assert verdict == Verdict(again, silent_openai if openai else silent)


def test_gates_that_are_off() -> None:
    bad = GOOD._replace(avg_logprob=-9.0, ids_ratio=9.0, text_ratio=9.0, no_speech_prob=0.99)
    assert judged(bad, ASKED) == Verdict(again=False, silent=False)
    # Without a threshold of log-probabilities only openai-whisper leaves a silent window out.
    asked = replace(ASKED, no_speech_threshold=0.6)
    assert judged(bad, replace(asked, openai=True)) == Verdict(again=False, silent=True)


def test_each_scale_is_its_own() -> None:
    asked = replace(ASKED, compression_ratio_threshold=1.5)
    assert judged(GOOD._replace(ids_ratio=2.0), asked).again
    assert not judged(GOOD._replace(text_ratio=2.0), asked).again
    assert judged(GOOD._replace(text_ratio=2.0), replace(asked, openai=True)).again
