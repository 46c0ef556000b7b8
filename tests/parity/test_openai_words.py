"""Words as `transcribe(word_timestamps=True)` of openai-whisper has them."""

from __future__ import annotations

import pytest
from openai_whisper import openai_model, openai_whisper
from real_whisper import real_whisper
from spoken import spoken
from whisper import RATE

from tandem import LLM


def test_real_weights() -> None:
    package, folder, samples = openai_whisper(), real_whisper("tiny.en"), spoken(34.0)
    expected = package.transcribe(
        openai_model(folder), samples, word_timestamps=True, temperature=0.0, fp16=False
    )["segments"]
    with LLM(str(folder), dtype="float32") as llm:
        answer = llm.transcribe((samples, RATE), timestamps="word", semantics="openai", temperature=(0.0,))
    assert [one.token_ids for one in answer.segments] == [one["tokens"] for one in expected]
    times = [(one.start_s, one.end_s, one.seek_s) for one in answer.segments]
    assert times == [
        pytest.approx((one["start"], one["end"], one["seek"] / 100), abs=1e-6) for one in expected
    ]
    words = [word for one in answer.segments for word in one.words or []]
    theirs = [word for one in expected for word in one["words"]]
    assert [word.word for word in words] == [word["word"] for word in theirs]
    assert [(word.start_s, word.end_s) for word in words] == [
        pytest.approx((word["start"], word["end"]), abs=1e-6) for word in theirs
    ]
    assert [word.probability for word in words] == pytest.approx(
        [word["probability"] for word in theirs], abs=1e-3
    )
    assert len(words) > 80
