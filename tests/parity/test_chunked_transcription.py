"""Recordings cut at silences: each chunk's answer held to transformers' of the same slice of the whole
recording's spectrogram, followed by silence, and the words to those of one window after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_whisper import real_whisper
from spoken import SENTENCES, spoken
from transcripts import Transcripts, near
from voices import voices
from whisper import CLEAR, RATE, make_whisper

from tandem import LLM, InvalidRequest, ServerVad
from tandem.workers.requests.media.voice_activity import VoiceActivity
from tandem.workers.transcription.chunks import Chunk, chunks

PROMPT = "ba be bi bo"
PROMPT_IDS = [1, 2, 3, 4]
VAD = ServerVad(prefix_padding_ms=100, silence_duration_ms=130)
# The second and third share a window of one second; the last but one goes on for three.
SPANS = [(0.6, 1.1), (2.1, 2.3), (2.5, 2.7), (3.6, 4.1), (5.0, 5.4), (6.4, 9.4), (10.1, 10.6)]
SOUND = voices(SPANS, 12.0)
# Name: Tandem's parameters, and transformers' where these have other names.
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "prompt": ({"prompt": PROMPT}, {"prompt": PROMPT_IDS}),
    "beams": ({"num_beams": 3}, {}),
    "compressed": (
        {"temperature": (0.0, 0.4, 0.8), "compression_ratio_threshold": 0.7}, {"top_k": 1},
    ),
    "silent": ({"logprob_threshold": -0.25, "no_speech_threshold": 1e-8}, {}),
    "tokens": ({"max_tokens": 9}, {"max_new_tokens": 9}),
}  # fmt: skip
Found = list[tuple[float, float, list[int]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("base"), "base", times=True)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def transcripts(folder: Path) -> Transcripts:
    return Transcripts(folder)


def cut(samples: np.ndarray[Any, np.dtype[np.float32]], vad: ServerVad = VAD) -> list[Chunk]:
    voice = VoiceActivity()
    for _ in voice.listen([samples]):
        pass
    return chunks(voice.probabilities, max(100, len(samples) // 160), 100, vad)


def shown(segments: Any, stop_s: float) -> Found:
    return [
        # A chunk may end within a time's step.
        (pytest.approx(min(start, stop_s), abs=0.011), pytest.approx(min(end, stop_s), abs=0.011), ids)
        for start, end, ids in segments
    ]


@pytest.mark.parametrize("name", ASKED)
def test_each_chunk_is_transformers_of_its_slice(
    folder: Path, llm: LLM, transcripts: Transcripts, name: str
) -> None:
    ours, others = ASKED[name]
    theirs = {key: value for key, value in ours.items() if key not in ("max_tokens",)} | others
    asked: Any = {"chunking_strategy": VAD, "language": "en", **ours}
    if "top_k" in others:  # what is drawn is the likeliest, in both
        with LLM(str(folder), dtype="float32", override_generation_config=others) as of_one:
            answer = of_one.transcribe((SOUND, RATE), **asked)
    else:
        answer = llm.transcribe((SOUND, RATE), **asked)
    made = cut(SOUND)
    assert 5 <= len(made) < len(SPANS)
    assert sum(one.stop - one.start > 100 for one in made) == 1
    features = transcripts.features(SOUND)
    silence = torch.full((1, 80, 100), float(features.max()) - 2.0)  # 80 dB below the loudest
    compared = 0
    left = [(one.seek_s, (one.start_s, one.end_s, one.token_ids)) for one in answer.segments]
    for chunk in made:
        start_s, stop_s = chunk.start / 100, chunk.stop / 100
        found = [one for seek_s, one in left if start_s - 1e-6 <= seek_s < stop_s - 1e-6]
        left = left[len(found) :]
        part = torch.cat([features[..., chunk.start : chunk.stop], silence], dim=-1)
        expected = transcripts.generate(SOUND, part, return_timestamps=True, language="en", **theirs)
        if expected.lead < CLEAR:
            continue
        compared += 1
        segments = [(start_s + start, start_s + end, ids) for start, end, ids in expected.segments]
        assert shown(segments, stop_s)[: len(found)] == found
        # transformers goes on in the silence.
        assert all(start >= chunk.speech_stop / 100 - 1e-6 for start, _, _ in segments[len(found) :])
    assert not left
    assert compared > 2
    assert answer.mode == "chunked"
    assert [one.id for one in answer.segments] == list(range(len(answer.segments)))


def test_all_windows_share_a_batch(llm: LLM) -> None:
    """One pass of the encoder a window, and no more steps than the longest chunk needs."""
    asked: Any = {"chunking_strategy": VAD, "max_tokens": 9, "timestamps": None}
    spans = [(0.6 + 1.4 * at, 1.3 + 1.4 * at) for at in range(8)]
    samples = voices(spans, 12.0)
    assert len(cut(samples)) == 8
    before = llm.stats()
    answer = llm.transcribe((samples, RATE), **asked)
    after = llm.stats()
    assert answer.text
    assert answer.segments == []
    assert after.encoded_tokens - before.encoded_tokens == 8 * 50
    assert after.steps - before.steps <= 9 + 6  # the language's, and those in flight


def test_recordings_and_both_ways_together(llm: LLM) -> None:
    """Each as it is alone, with samples drawn; a silent one among them."""
    silence = np.zeros(3 * RATE, np.float32)
    recordings = [(SOUND, RATE), (silence, RATE), (SOUND[: 5 * RATE], RATE), (SOUND[RATE:], RATE)]
    asked: Any = {
        "chunking_strategy": VAD, "temperature": (0.0, 0.8), "logprob_threshold": -0.2, "best_of": 2,
        "seed": 3,
    }  # fmt: skip
    alone = [llm.transcribe(one, **asked) for one in recordings]
    together = llm.transcribe(recordings, **asked)
    assert [asdict(one) for one in together] == [near(one) for one in alone]
    assert {segment.temperature for one in alone for segment in one.segments} == {0.0, 0.8}
    assert [one.language in ("en", "fr", "de") for one in alone] == [True, False, True, True]
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


def test_silence_asks_the_engine_for_nothing(llm: LLM) -> None:
    """Zeros, noise, and less than one frame."""
    noise = 0.1 * np.random.default_rng(2).standard_normal(4 * RATE).astype(np.float32)
    before = llm.stats()
    for samples in (np.zeros(4 * RATE, np.float32), noise, np.zeros(7, np.float32)):
        for semantics in ("transformers", "openai"):
            asked: Any = {"chunking_strategy": "auto", "semantics": semantics}
            answer = llm.transcribe((samples, RATE), **asked)
            assert (answer.text, answer.segments, answer.language) == ("", [], "")
            assert answer.duration_s == pytest.approx(len(samples) / RATE)
            assert llm.transcribe((samples, RATE), language="de", **asked).language == "de"
    assert llm.stats() == before


def test_the_sequential_way_says_so(llm: LLM) -> None:
    assert llm.transcribe((SOUND, RATE)).mode == "sequential"


def test_refused(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.transcribe((SOUND, RATE), chunking_strategy="auto", condition_on_prev_tokens=True)
    assert refused.value.field == "condition_on_prev_tokens"
    processor: Any = llm._request_builder.processor
    monkeypatch.setattr(processor._extractor, "sampling_rate", 8_000)
    with pytest.raises(InvalidRequest, match="16000 samples a second") as refused:
        llm.transcribe((SOUND, RATE), chunking_strategy="auto")
    assert refused.value.field == "chunking_strategy"


def test_real_weights() -> None:
    """No sentence is lost. But for a word in twenty, what is said is heard as well as in one window after
    another: in other windows the model mistakes other words of this voice."""
    folder = real_whisper("tiny.en")
    samples = spoken(38.0)
    with LLM(str(folder), dtype="float32") as llm:
        before = llm.stats()
        chunked = llm.transcribe((samples, RATE), chunking_strategy="auto")
        after = llm.stats()
        sequential = llm.transcribe((samples, RATE))
    script = _words(" ".join(SENTENCES))
    most = _errors(_words(sequential.text), script) + len(script) // 20
    assert _errors(_words(chunked.text), script) <= most < len(script) // 5
    times = [at for one in chunked.segments for at in (one.start_s, one.end_s)]
    assert times == sorted(times)
    assert after.encoded_tokens - before.encoded_tokens == 1_500 * len(
        {one.seek_s for one in chunked.segments}
    )


def _words(text: str) -> list[str]:
    return "".join(letter.lower() for letter in text if letter.isalnum() or letter.isspace()).split()


def _errors(words: list[str], script: list[str]) -> int:
    same = SequenceMatcher(None, words, script, autojunk=False).get_matching_blocks()
    return max(len(words), len(script)) - sum(block.size for block in same)
