"""Chunks at once, with answers that are given: what is asked, in which order it is given out, how many there
are."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from given_answers import ended, said
from whisper import LANGUAGES, NO_TIMESTAMPS, SOT, TRANSCRIBE, make_whisper

from tandem import InvalidRequest
from tandem.transcription import TranscriptionParams
from tandem.workers.request import EngineRequest
from tandem.workers.requests.media.spectrogram import Spectrogram
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.asked import Asked
from tandem.workers.transcription.chunked import LIVE, ChunkedTranscriber
from tandem.workers.transcription.chunks import Chunk
from tandem.workers.transcription.window_requests import WindowRequests

TIME = NO_TIMESTAMPS + 1  # 0.00
BEFORE = SOT + 7
CHUNKS = [Chunk(10, 90, 80), Chunk(120, 200, 190), Chunk(250, 430, 420)]  # windows are of 100 frames


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> RequestBuilder:
    return RequestBuilder.load(make_whisper(tmp_path_factory.mktemp("base"), "base", times=True), "whisper")


def begun(builder: RequestBuilder, chunks: list[Chunk], **asked: Any) -> ChunkedTranscriber:
    params = TranscriptionParams(**{"chunking_strategy": "auto", "language": "en"} | asked)
    prompt = builder.decoder_ids(params.prompt, "prompt", 9) if params.prompt else []
    how = Asked.of(params, builder.info, tuple(prompt))
    names = map(str, count())

    def windows() -> WindowRequests:
        return WindowRequests(how, builder.info, builder.max_decoder_tokens, "key", lambda: next(names))

    recording = Spectrogram(torch.arange(80.0 * 4_500).reshape(80, 4_500), 45.0, -1.25)
    return ChunkedTranscriber(how, recording, chunks, windows, builder.vocabulary, seed=7)


def answer(transcriber: ChunkedTranscriber, request: EngineRequest, ids: list[int]) -> list[EngineRequest]:
    return transcriber.push(ended(request, said(ids)))


def test_chunks_are_asked_for_at_once_and_given_out_in_order(builder: RequestBuilder) -> None:
    transcriber = begun(builder, CHUNKS)
    first, second, third = transcriber.start()
    parts = [(10, 90), (120, 200), (250, 350)]
    for request, (start, stop) in zip((first, second, third), parts, strict=True):
        assert request.prefix_ids == (SOT, LANGUAGES["en"], TRANSCRIBE)
        features = request.encoder.features
        assert features is not None
        assert features.shape == (1, 80, 100)
        assert features[0, 0, : stop - start].tolist() == list(range(start, stop))
        assert (features[0, :, stop - start :] == -1.25).all()  # silence
    assert len({one.encoder.key for one in (first, second, third)}) == 3
    # The third is longer than a window: what follows its last whole segment is decoded anew.
    (fourth,) = answer(transcriber, third, [TIME, 6, TIME + 40, TIME + 40, 7])
    assert fourth.encoder.features is not None
    assert fourth.encoder.features[0, 0, 0] == 330
    assert fourth.prefix_ids == third.prefix_ids
    assert answer(transcriber, second, [TIME + 5, 4, TIME + 9, TIME + 9, 5, TIME + 49]) == []
    assert (transcriber.segments, transcriber.seek_s) == ([], 0.1)
    assert transcriber.transcription().text == ""
    assert answer(transcriber, first, [TIME, 1, TIME + 30]) == []
    assert [one.token_ids[1] for one in transcriber.segments] == [1, 4, 5, 6]
    assert (transcriber.seek_s, transcriber.done) == (pytest.approx(3.3), False)
    assert answer(transcriber, fourth, [TIME, 7, TIME + 50]) == []
    assert (transcriber.seek_s, transcriber.done) == (45.0, True)
    made = transcriber.transcription()
    assert (made.mode, made.language, made.duration_s) == ("chunked", "en", 45.0)
    assert made.text == builder.detokenize([1, 4, 5, 6, 7])
    times = [(one.id, one.seek_s, one.start_s, one.end_s) for one in made.segments]
    assert times == [
        (0, 0.1, pytest.approx(0.1), pytest.approx(0.7)),
        (1, 1.2, pytest.approx(1.3), pytest.approx(1.38)),
        # Times after a chunk's end are its end.
        (2, 1.2, pytest.approx(1.38), pytest.approx(2.0)),
        (3, 2.5, pytest.approx(2.5), pytest.approx(3.3)),
        (4, pytest.approx(3.3), pytest.approx(3.3), pytest.approx(4.3)),
    ]


def test_silence_at_a_chunk_s_end_is_no_window(builder: RequestBuilder) -> None:
    """A time that comes twice says that the next window begins there."""
    transcriber = begun(builder, [Chunk(0, 90, 70)])
    (request,) = transcriber.start()
    assert answer(transcriber, request, [TIME, 1, TIME + 36, TIME + 36]) == []
    assert transcriber.done
    transcriber = begun(builder, [Chunk(0, 90, 74)])
    (request,) = transcriber.start()
    assert len(answer(transcriber, request, [TIME, 1, TIME + 36, TIME + 36])) == 1


@pytest.mark.parametrize("prompt", [None, "ba be"])
def test_the_language_is_detected_once(builder: RequestBuilder, prompt: str | None) -> None:
    """After the start token alone, and with the first chunk's encoder input."""
    transcriber = begun(builder, CHUNKS, language=None, prompt=prompt)
    (detection,) = transcriber.start()
    assert (detection.prefix_ids, detection.decoding.max_tokens) == ((SOT,), 1)
    assert detection.keeps_input
    assert transcriber.transcription().language == ""
    requests = transcriber.push(ended(detection, said([LANGUAGES["de"]])))
    before = () if prompt is None else (BEFORE, 1, 2)
    assert [one.prefix_ids for one in requests] == [(*before, SOT, LANGUAGES["de"], TRANSCRIBE)] * 3
    assert detection.encoder.key == requests[0].encoder.key
    assert transcriber.transcription().language == "de"


@pytest.mark.parametrize("semantics", ["transformers", "openai"])
def test_chunks_know_nothing_of_each_other(builder: RequestBuilder, semantics: str) -> None:
    """Neither what was said before nor how long a window's decoder started from."""
    one = Chunk(0, 80, 70)
    transcriber = begun(builder, [one] * (LIVE + 1), semantics=semantics, prompt="ba be")
    requests = transcriber.start()
    (last,) = answer(transcriber, requests[0], [TIME, 1, TIME + 30])
    assert {one.prefix_ids for one in (*requests, last)} == {(BEFORE, 1, 2, *requests[0].prefix_ids[3:])}
    assert {one.decoding.max_tokens for one in requests} == {last.decoding.max_tokens}
    with pytest.raises(InvalidRequest) as refused:
        begun(builder, [], semantics=semantics, condition_on_prev_tokens=True)
    assert refused.value.field == "condition_on_prev_tokens"
    assert begun(builder, [], semantics=semantics, condition_on_prev_tokens=False).start() == []


def test_so_many_chunks_are_under_way(builder: RequestBuilder) -> None:
    chunks = [Chunk(at * 100, at * 100 + 80, at * 100 + 70) for at in range(LIVE + 8)]
    transcriber = begun(builder, chunks)
    live = transcriber.start()
    seen = len(live)
    while live:
        assert len(live) <= LIVE
        assert len(live) == LIVE or seen == len(chunks)
        more = answer(transcriber, live.pop(), [TIME, 1, TIME + 30])  # the last first
        seen += len(more)
        live += more
    assert transcriber.done
    assert [one.seek_s for one in transcriber.segments] == [float(at) for at in range(len(chunks))]


def test_each_chunk_falls_back_by_itself(builder: RequestBuilder) -> None:
    """With samples of its own, which are the same whatever comes first."""
    asked: Any = {"temperature": (0.0, 0.8), "logprob_threshold": -1.0, "best_of": 2}
    seeds = []
    for order in ((0, 1), (1, 0)):
        transcriber = begun(builder, CHUNKS[:2], **asked)
        requests = transcriber.start()
        again = [transcriber.push(ended(requests[at], said([TIME, at + 1, TIME + 9], -2.0))) for at in order]
        assert [len(one) for one in again] == [2, 2]
        found = {at: [one.decoding.seed for one in each] for at, each in zip(order, again, strict=True)}
        seeds.append(found)
        for at, each in zip(order, again, strict=True):
            for mean, one in zip((-0.9, -0.5), each, strict=True):
                transcriber.push(ended(one, said([TIME, at + 3, TIME + 9], mean)))
        assert transcriber.done
        assert [(one.token_ids[1], one.temperature) for one in transcriber.segments] == [(3, 0.8), (4, 0.8)]
    assert seeds[0] == seeds[1]
    assert len({seed for each in seeds[0].values() for seed in each}) == 4


def test_silence_asks_for_nothing(builder: RequestBuilder) -> None:
    for language, expected in ((None, ""), ("fr", "fr")):
        transcriber = begun(builder, [], language=language)
        assert transcriber.start() == []
        assert (transcriber.done, transcriber.seek_s) == (True, 45.0)
        made = transcriber.transcription()
        assert (made.text, made.segments, made.language) == ("", [], expected)


def test_without_times(builder: RequestBuilder) -> None:
    """Only a chunk that is longer than a window needs them."""
    transcriber = begun(builder, CHUNKS, timestamps=None)
    prefixes = [one.prefix_ids[3:] for one in transcriber.start()]
    assert prefixes == [(NO_TIMESTAMPS,), (NO_TIMESTAMPS,), ()]
