"""What only trained weights show, with the smallest published ones: silence, loops, times, prompts, drift."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from real_whisper import real_whisper
from spoken import spoken
from transcripts import Transcripts, found
from voices import voice
from whisper import CLEAR, RATE

from tandem import LLM
from tandem.transcription import TranscriptionOptions

PERIOD_S, TIMES = 7.5, 9  # of what is said again and again


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(str(real_whisper("tiny.en")), dtype="float32") as llm:
        yield llm


def words(text: str) -> list[str]:
    return "".join(letter.lower() for letter in text if letter.isalnum() or letter.isspace()).split()


def test_silence_and_noise(llm: LLM) -> None:
    """Nothing is made up of noise; where nothing at all is heard, what is said is marked, and in chunks
    nothing is."""
    noise = (0.02 * np.random.default_rng(0).standard_normal(10 * RATE)).astype(np.float32)
    assert llm.transcribe((noise, RATE), semantics="openai", best_of=1).text == ""
    zeros = np.zeros(30 * RATE, np.float32)
    answer = llm.transcribe((zeros, RATE), semantics="openai", best_of=1)
    assert all(one.no_speech_prob > 0.9 for one in answer.segments)
    assert llm.transcribe((zeros, RATE), semantics="openai", chunking_strategy="auto").text == ""


def test_a_loop_ends_by_fallback(llm: LLM) -> None:
    """Of these vowels the likeliest text says one sentence over and over. The speech next to it is what it is
    alone."""
    loop, speech = (voice(12, 1), RATE), (spoken(8.0), RATE)
    assert max(one.compression_ratio for one in llm.transcribe(loop).segments) > 2.4
    asked: TranscriptionOptions = {
        "temperature": (0.0, 0.6, 1.0), "compression_ratio_threshold": 1.7, "seed": 1,
    }  # fmt: skip
    ended, other = llm.transcribe([loop, speech], **asked)
    assert max(one.compression_ratio for one in ended.segments) < 2.4
    assert min(one.temperature for one in ended.segments) > 0
    assert {one.temperature for one in other.segments} == {0.0}
    assert found(other) == found(llm.transcribe(speech, **asked))


def test_the_same_words_with_and_without_times(llm: LLM) -> None:
    samples = (spoken(12.0), RATE)
    timed, plain = llm.transcribe(samples), llm.transcribe(samples, timestamps=None)
    assert words(timed.text) == words(plain.text)
    assert len(words(plain.text)) > 20


def test_a_prompt(llm: LLM) -> None:
    """It comes where transformers puts it. What segments a model makes after one is its own affair."""
    prompt, samples = "trains and gardens", spoken(24.0)
    ids = llm._request_builder.decoder_ids(f" {prompt}", "prompt", 99)
    expected = Transcripts(real_whisper("tiny.en")).generate(samples, prompt=ids, return_timestamps=True)
    answer = llm.transcribe((samples, RATE), prompt=prompt)
    assert expected.lead < CLEAR or found(answer) == expected.segments
    assert len(words(answer.text)) > 40


def test_times_do_not_drift(llm: LLM) -> None:
    """A sentence that is said again and again has its words as long after each other, whatever the window."""
    one, samples = spoken(5.9), np.zeros(TIMES * int(PERIOD_S * RATE), np.float32)
    for number in range(TIMES):
        samples[number * int(PERIOD_S * RATE) :][: len(one)] = one
    answer = llm.transcribe((samples, RATE), timestamps="word")
    said = [word for segment in answer.segments for word in segment.words or []]
    begins = [at for at, word in enumerate(said) if word.word.strip() == "Good"]
    assert len(begins) == TIMES
    first = [word.end_s for word in said[: begins[1]]]
    for number, at in enumerate(begins):
        ends = [word.end_s for word in said[at:][: len(first)]]
        late = np.median(np.array(ends) - first) - PERIOD_S * number
        assert late == pytest.approx(0, abs=0.2), number
