"""The loop of windows with answers that are given: where it goes, what it asks, what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from given_answers import ended, said
from whisper import LANGUAGES, NO_TIMESTAMPS, SOT, TRANSCRIBE, make_whisper

from tandem.transcription import Transcription, TranscriptionOptions, TranscriptionParams
from tandem.workers.request import EngineRequest
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.answers import WindowAnswer
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.transcriber import SequentialTranscriber, Transcriber
from tandem.workers.transcription.window_requests import WindowRequests

TIME = NO_TIMESTAMPS + 1  # 0.00
BEFORE = SOT + 7
PROMPT = "ba be"
Said = tuple[list[int], float, float]  # tokens, their log-probability, no speech


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> RequestBuilder:
    return RequestBuilder.load(make_whisper(tmp_path_factory.mktemp("base"), "base", times=True), "whisper")


def begun(builder: RequestBuilder, frames: int, **asked: Any) -> Transcriber:
    params = TranscriptionParams(**asked)
    prompt = builder.decoder_ids(params.prompt, "prompt", 9) if params.prompt else []
    how = Asked.of(params, builder.info, tuple(prompt))
    names = iter(map(str, range(99)))
    windows = WindowRequests(how, builder.info, builder.max_decoder_tokens, "key", lambda: next(names))
    recording = Spectrogram(torch.zeros(80, frames), frames / 100)
    return SequentialTranscriber(how, recording, windows, builder.vocabulary, seed=1)


def run(transcriber: Transcriber, answers: list[WindowAnswer]) -> tuple[Transcription, list[EngineRequest]]:
    """The transcription, and the first request that was asked for each answer."""
    asked, left = [], iter(answers)
    requests = transcriber.start()
    while not transcriber.done:
        asked.append(requests[0])
        each, requests = requests, []
        for request in each:
            requests += transcriber.push(ended(request, next(left)))
    assert not list(left)
    return transcriber.transcription(), asked


def test_openai_whisper_ends_where_the_recording_ends(builder: RequestBuilder) -> None:
    """Windows without speech and segments without text are left out; the first sets the language."""
    transcriber = begun(builder, 250, semantics="openai")
    answer, asked = run(
        transcriber,
        [
            # Language and task, then a segment, one without text, and the beginning of the next.
            said([LANGUAGES["fr"], TRANSCRIBE, TIME, 1, TIME + 20, TIME + 20, TIME + 30, TIME + 30, 2]),
            said([TIME, 3, TIME + 9], -2.0, silent=0.9),
            said([TIME, 4, TIME + 40, TIME + 40, 5, TIME + 45]),
        ],
    )
    assert (answer.language, answer.text, answer.duration_s) == ("fr", "ba bo bu", 2.5)
    times = [(one.seek_s, one.start_s, one.end_s, one.token_ids) for one in answer.segments]
    assert times == [
        (0.0, 0.0, pytest.approx(0.4), [TIME, 1, TIME + 20]),
        (1.6, 1.6, pytest.approx(2.4), [TIME, 4, TIME + 40]),
        (1.6, pytest.approx(2.4), pytest.approx(2.5), [TIME + 40, 5, TIME + 45]),
    ]
    assert transcriber.seek_s == 2.5
    first, *later = asked
    assert first.prefix_ids == (SOT,)
    languages, task = first.decoding.opening_ids
    assert (set(languages), task) == (set(LANGUAGES.values()), (TRANSCRIBE,))
    history = (BEFORE, TIME, 1, TIME + 20)
    assert [one.prefix_ids for one in later] == [(*history, SOT, LANGUAGES["fr"], TRANSCRIBE)] * 2
    assert [one.decoding.probe for one in later] == [(4, NO_TIMESTAMPS - 1)] * 2
    assert first.encoder.features is not None
    assert later[1].encoder.features is not None
    assert first.encoder.features.shape == later[1].encoder.features.shape == (1, 80, 100)
    assert len({one.encoder.key for one in asked}) == 3


def test_openai_whisper_tries_again_and_takes_the_best(builder: RequestBuilder) -> None:
    """Hot answers are no history; the ladder goes on from one temperature."""
    unlikely = [said([TIME, 1, TIME + 9], -2.0)]
    samples = [said([TIME, number, TIME + 9], mean) for number, mean in enumerate((-0.8, -0.5, -0.9), 5)]
    answer, asked = run(
        begun(builder, 150, semantics="openai", temperature=0.4, best_of=3, language="en", prompt=PROMPT),
        [*unlikely * 3, *samples, *[said([TIME, 2, TIME + 9])] * 3],
    )
    assert [(one.temperature, one.token_ids[1]) for one in answer.segments] == [(0.6, 6), (0.4, 2)]
    assert [one.decoding.temperature for one in asked] == [0.4, 0.6, 0.4]
    assert [one.decoding.top_k for one in asked] == [0] * 3
    assert [one.prefix_ids[:-3] for one in asked] == [(BEFORE, 1, 2), (BEFORE, 1, 2), ()]
    assert len({one.encoder.key for one in asked}) == 2
    seeds = [one.decoding.seed for one in asked]
    assert len(set(seeds)) == 3


def test_the_language_follows_the_start_token_alone(builder: RequestBuilder) -> None:
    """So it is asked for before a window that begins with a prompt, of the same encoder input."""
    _, (first, second) = run(
        begun(builder, 100, prompt=PROMPT), [said([LANGUAGES["de"]]), said([TIME, 1, TIME + 9])]
    )
    assert (first.prefix_ids, first.decoding.max_tokens) == ((SOT,), 1)
    assert second.prefix_ids == (BEFORE, 1, 2, SOT, LANGUAGES["de"], TRANSCRIBE)
    assert first.encoder.key == second.encoder.key
    assert first.keeps_input


def test_the_last_temperature_s_answer_is_kept(builder: RequestBuilder) -> None:
    bad = [said([TIME, number, TIME + 9], -3.0) for number in (1, 2)]
    asked: TranscriptionOptions = {"temperature": (0.0, 0.9), "logprob_threshold": -1.0, "language": "en"}
    answer, _ = run(begun(builder, 100, **asked), bad)
    assert [(one.token_ids[1], one.temperature) for one in answer.segments] == [(2, 0.9)]
    assert answer.segments[0].avg_logprob == pytest.approx(-3.0)


def test_a_window_that_gets_nowhere_is_passed(builder: RequestBuilder) -> None:
    """Without the rules of times a model may say what would never end."""
    answer, asked = run(begun(builder, 100, timestamps=None, language="en"), [said([TIME, TIME, 1])])
    assert len(asked) == 1
    assert answer.segments == []
    assert asked[0].decoding.timestamps is None
    assert asked[0].prefix_ids[-1] == NO_TIMESTAMPS


@pytest.mark.parametrize(
    ("semantics", "temperature", "expected"),
    [
        ("transformers", None, (0.0,)),
        ("transformers", 0.4, (0.4,)),
        ("transformers", (0.0, 1.5), (0.0, 1.5)),
        ("openai", None, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ("openai", 0, (0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ("openai", 0.5, (0.5, 0.7, 0.9)),
        ("openai", 1.0, (1.0,)),
        ("openai", 1.3, (1.3,)),
        ("openai", [0.0], (0.0,)),
    ],
)
def test_temperatures(semantics: Any, temperature: Any, expected: tuple[float, ...]) -> None:
    params = TranscriptionParams(semantics=semantics, temperature=temperature)
    assert params.temperatures == pytest.approx(expected)


def test_options_are_the_parameters() -> None:
    assert TranscriptionOptions.__annotations__.keys() == TranscriptionParams.model_fields.keys()
