"""Recordings of any length, held to `WhisperForConditionalGeneration.generate` at batch 1: tokens, times and
what the thresholds see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audio_files import wav
from real_whisper import real_whisper
from spoken import spoken
from transcripts import Transcripts, found, near
from transformers import (
    GenerationConfig,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    WhisperTimeStampLogitsProcessor,
)
from whisper import CLEAR, LANGUAGES, NO_TIMESTAMPS, RATE, SOT, TRANSCRIBE, make_whisper, sound

from tandem import LLM, InvalidRequest, TranscriptionParams
from tandem.inputs import Media
from tandem.workers.transcription.answers import WindowAnswers

SOUND = (sound(0), RATE)
BROKEN = wav(np.full(1_000, np.nan), RATE)  # which only decoding shows

SECONDS = (0.7, 3.3)  # a window takes one, turbo's two
PROMPT = "ba be bi bo"
PROMPT_IDS = [1, 2, 3, 4]
TOP_1 = {"top_k": 1}  # what is drawn is the likeliest, in both
# Name: Tandem's parameters, and transformers' where these have other names.
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "one window": ({"timestamps": None}, {}),
    "translated": ({"language": "fr", "task": "translate"}, {}),
    "conditioned": ({"condition_on_prev_tokens": True}, {}),
    "prompt": ({"prompt": PROMPT}, {}),
    "prompt, first": ({"prompt": PROMPT, "condition_on_prev_tokens": True}, {}),
    "prompt, all": (
        {"prompt": PROMPT, "condition_on_prev_tokens": True, "prompt_condition_type": "all-segments"}, {},
    ),
    "compressed": (
        {"temperature": (0.0, 0.4, 0.8), "compression_ratio_threshold": 0.7,
         "condition_on_prev_tokens": True},
        TOP_1,
    ),
    "unlikely": ({"temperature": (0.0, 0.4), "logprob_threshold": -0.25}, TOP_1),
    "silent": ({"logprob_threshold": -0.25, "no_speech_threshold": 1e-8, "prompt": PROMPT}, {}),
    "beams": ({"num_beams": 3}, {}),
    "beams, conditioned": (
        {"num_beams": 2, "condition_on_prev_tokens": True, "logprob_threshold": -9.0,
         "no_speech_threshold": 1.0, "length_penalty": 0.6},
        {},
    ),
    "tokens": ({"max_tokens": 9}, {"max_new_tokens": 9}),
}  # fmt: skip
CASES = [("base", name) for name in ASKED] + [
    (geometry, name)
    for geometry, names in {
        "english": ("plain", "prompt, first", "silent"),
        "turbo": ("plain", "conditioned", "beams"),
        "large": ("plain",),
    }.items()
    for name in names
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda geometry: make_whisper(tmp_path_factory.mktemp(geometry), geometry, times=True))


@pytest.fixture(scope="module")
def transcripts(model: Callable[[str], Path]) -> Callable[[str], Transcripts]:
    return cache(lambda geometry: Transcripts(model(geometry)))


@pytest.fixture(scope="module")
def ready(model: Callable[[str], Path]) -> Iterator[Callable[[str], LLM]]:
    with ExitStack() as stack:
        yield cache(lambda geometry: stack.enter_context(LLM(str(model(geometry)), dtype="float32")))


@pytest.mark.parametrize(("geometry", "name"), CASES)
def test_as_transformers(
    model: Callable[[str], Path],
    ready: Callable[[str], LLM],
    transcripts: Callable[[str], Transcripts],
    geometry: str,
    name: str,
) -> None:
    """Several recordings at once, each as transformers has it alone."""
    ours, others = ASKED[name]
    theirs = {**ours, **others}
    for field in ("timestamps", "max_tokens"):
        theirs.pop(field, None)
    if "prompt" in theirs:
        theirs["prompt"] = PROMPT_IDS
    timed = "timestamps" not in ours
    first = 10 * CASES.index((geometry, name))
    samples = [sound(first + at, length) for at, length in enumerate(SECONDS if timed else (0.7, 1.0))]
    with ExitStack() as stack:
        llm = ready(geometry)
        if others is TOP_1:
            options = {"dtype": "float32", "override_generation_config": TOP_1}
            llm = stack.enter_context(LLM(str(model(geometry)), **options))
        answers = llm.transcribe([(one, RATE) for one in samples], **ours)
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    compared = 0
    for one, answer in zip(samples, answers, strict=True):
        expected = transcripts(geometry).generate(one, return_timestamps=timed, **theirs)
        if expected.lead < CLEAR:
            continue
        compared += 1
        assert answer.text == expected.text
        assert found(answer) == (expected.segments if timed else [])
        for segment in answer.segments:
            assert not expected.avg_logprobs or min(
                abs(segment.avg_logprob - value) for value in expected.avg_logprobs
            ) < 1e-4  # fmt: skip
            assert not expected.no_speech_probs or min(
                abs(segment.no_speech_prob - value) for value in expected.no_speech_probs
            ) < 1e-6  # fmt: skip
    assert compared


def test_recordings_together_are_as_alone(model: Callable[[str], Path], ready: Callable[[str], LLM]) -> None:
    """With samples drawn at several temperatures, in too little memory for all of them."""
    recordings = [(sound(40 + at, 0.4 + 0.5 * at), RATE) for at in range(7)]
    asked: dict[str, Any] = {
        "temperature": (0.0, 0.6, 1.0), "logprob_threshold": -0.2, "best_of": 3, "seed": 5,
        "condition_on_prev_tokens": True, "semantics": "openai", "no_speech_threshold": 2.0,
    }  # fmt: skip
    with LLM(
        str(model("base")), dtype="float32", page_size=4, num_pages=32, max_num_seqs=6, check_invariants=True
    ) as llm:
        together = llm.transcribe(recordings, **asked)
        stats = llm.stats()
        assert stats.preemptions > 0
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    llm = ready("base")
    alone = [llm.transcribe(one, **asked) for one in recordings]
    again = llm.transcribe(recordings, **(asked | {"seed": 6}))
    assert [one.text for one in together] == [one.text for one in alone]
    assert [found(one) for one in together] == [found(one) for one in alone]
    temperatures = {segment.temperature for one in alone for segment in one.segments}
    assert temperatures >= {0.0, 1.0}
    assert [found(one) for one in again] != [found(one) for one in alone]


def test_tensor_parallel(model: Callable[[str], Path], transcripts: Callable[[str], Transcripts]) -> None:
    samples = [sound(seed, 2.2) for seed in range(3)]
    asked = {"prompt": PROMPT, "condition_on_prev_tokens": True}
    with LLM(str(model("base")), dtype="float32", tensor_parallel_size=2) as llm:
        answers = llm.transcribe([(one, RATE) for one in samples], **asked)  # type: ignore[arg-type]
    for one, answer in zip(samples, answers, strict=True):
        expected = transcripts("base").generate(
            one, return_timestamps=True, **(asked | {"prompt": PROMPT_IDS})
        )
        assert expected.lead < CLEAR or found(answer) == expected.segments


def test_a_window_is_encoded_once(ready: Callable[[str], LLM]) -> None:
    """Whatever is asked of it: its language, five temperatures, samples."""
    asked: dict[str, Any] = {
        "prompt": PROMPT, "temperature": (0.0, 0.2, 0.4, 0.6, 0.8), "logprob_threshold": 1.0, "best_of": 4,
    }  # fmt: skip
    llm = ready("base")
    before = llm.stats().encoded_tokens
    answer = llm.transcribe((sound(3, 4.0), RATE), **asked)
    windows = {segment.seek_s for segment in answer.segments}
    assert len(windows) > 3
    assert {segment.temperature for segment in answer.segments} == {0.8}
    assert llm.stats().encoded_tokens - before == 50 * len(windows)


@torch.no_grad()
def test_what_is_drawn_has_transformers_probability(
    ready: Callable[[str], LLM], transcripts: Callable[[str], Transcripts]
) -> None:
    """The mean log-probability of a sampled window, by transformers' processors and its `scores`."""
    samples, temperature = sound(7), 0.7
    asked: Any = {"temperature": temperature, "seed": 3, "language": "en", "max_tokens": 6}
    llm, params = ready("base"), TranscriptionParams(**asked)
    builder = llm._transcription_builder
    media = Media("audio", wav(samples, RATE))
    (request,) = builder.begin(media, "audio", builder.check(params), 3).start()
    answers = WindowAnswers([request])
    for delta in llm._engine.deltas([request]):
        (answer,) = answers.push(delta) or [None]
    assert answer is not None
    whole = transcripts("base")
    generation = whole.reference.config
    prefix = [SOT, LANGUAGES["en"], TRANSCRIBE]
    ids = answer.token_ids
    assert len(ids) > 3
    config = GenerationConfig(**generation)
    processors = [
        SuppressTokensAtBeginLogitsProcessor(generation["begin_suppress_tokens"], len(prefix)),
        SuppressTokensLogitsProcessor(generation["suppress_tokens"]),
        WhisperTimeStampLogitsProcessor(config, len(prefix)),
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(50),
    ]
    logits = whole.model(whole.features(samples), decoder_input_ids=torch.tensor([[*prefix, *ids]])).logits[0]
    scores = []
    for at in range(len(ids)):
        row = logits[None, len(prefix) - 1 + at]
        for processor in processors:
            row = processor(torch.tensor([[*prefix, *ids[:at]]]), row)
        scores.append(row[0])
    expected = whole.model._retrieve_avg_logprobs(scores, torch.tensor(ids), temperature)
    assert answer.sum_logprob / len(ids) == pytest.approx(float(expected), abs=1e-4)
    no_speech = float(logits[0].softmax(-1)[NO_TIMESTAMPS - 1])
    assert answer.no_speech_prob == pytest.approx(no_speech, rel=1e-3)


REFUSED: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("base", SOUND, {"language": "xx"}, "language", "en"),
    ("base", SOUND, {"task": "sing"}, "task", "transcribe"),
    ("english", SOUND, {"language": "en"}, "language", "English-only"),
    ("base", SOUND, {"prompt": "ba <|en|>"}, "prompt", "no text"),
    ("base", SOUND, {"no_speech_threshold": 0.5}, "no_speech_threshold", "logprob_threshold"),
    ("base", SOUND, {"prompt_condition_type": "all-segments"}, "prompt_condition_type", "condition_on"),
    ("base", SOUND, {"timestamps": "word"}, "timestamps", "alignment_heads"),
    ("base", SOUND, {"timestamps": "letter"}, "timestamps", "'segment' or 'word'"),
    ("base", SOUND, {"temperature": ()}, "temperature", "of 0 to 100, or several, got \\(\\)"),
    ("base", SOUND, {"temperature": (0.0, -1.0)}, "temperature", "of 0 to 100"),
    ("base", SOUND, {"sing": 1}, "sing", "unknown"),
    ("base", b"RIFF", {}, "audio", "decoded"),
    ("base", [SOUND, "/no/such.wav"], {}, "audio.1", "cannot be read"),
    ("base", [SOUND, (np.full(3000, np.inf), RATE)], {}, "audio.1", "finite"),
    ("base", [SOUND, BROKEN, SOUND], {}, "audio.1", "no numbers"),
]


@pytest.mark.parametrize(("geometry", "audio", "asked", "field", "why"), REFUSED)
def test_what_cannot_be_is_refused_by_name(
    ready: Callable[[str], LLM], geometry: str, audio: Any, asked: dict[str, Any], field: str, why: str
) -> None:
    llm = ready(geometry)
    with pytest.raises(InvalidRequest, match=why) as refused:
        llm.transcribe(audio, **asked)
    assert refused.value.field == field
    assert llm.transcribe(SOUND, max_tokens=3).segments  # it goes on
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


def test_one_for_one_and_a_list_for_a_list(ready: Callable[[str], LLM], tmp_path: Path) -> None:
    """Samples, bytes and paths; an empty list; no timestamps."""
    path = tmp_path / "sound.wav"
    path.write_bytes(wav(sound(0), RATE))
    llm = ready("base")
    answer = llm.transcribe(SOUND)
    assert answer.language in LANGUAGES
    assert answer.duration_s == pytest.approx(0.7)
    answers = llm.transcribe([SOUND, path.read_bytes(), str(path), path])
    assert [asdict(one) for one in answers] == [near(answer)] * 4
    assert llm.transcribe([]) == []
    assert llm.transcribe(SOUND, timestamps=None).segments == []
    long = llm.transcribe((sound(1, 2.5), RATE))
    assert long.text
    assert llm.transcribe((sound(1, 2.5), RATE), timestamps=None) == replace(long, segments=[])


def test_real_weights() -> None:
    folder = real_whisper("tiny.en")
    samples = spoken(34.0)
    with LLM(str(folder), dtype="float32") as llm:
        answer = llm.transcribe((samples, RATE), condition_on_prev_tokens=True)
    expected = Transcripts(folder).generate(samples, return_timestamps=True, condition_on_prev_tokens=True)
    assert expected.lead < CLEAR or found(answer) == expected.segments
    assert answer.text.startswith("Good morning")
    assert answer.segments[-1].end_s == pytest.approx(34.0, abs=2.0)
