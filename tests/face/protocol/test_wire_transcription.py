"""Transcriptions in messages and back: what is sent is what comes."""

from __future__ import annotations

from typing import Any

import pytest

from tandem import (
    InvalidRequest,
    ServerVad,
    Transcription,
    TranscriptionParams,
    TranscriptionSegment,
    TranscriptionWord,
)
from tandem.errors import renaming_fields
from tandem.inputs import Media
from tandem.protocol import wire_transcription as wire
from tandem.transcription import TranscriptionOptions
from tandem.v1 import inference_pb2 as pb

AUDIO = Media("audio", b"RIFF")


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (None, None),
        ("auto", ServerVad()),
        (ServerVad(), ServerVad()),
        (ServerVad(threshold=0.0, silence_duration_ms=0), ServerVad(threshold=0.0, silence_duration_ms=0)),
        ({"type": "server_vad", "prefix_padding_ms": 7}, ServerVad(prefix_padding_ms=7)),
    ],
)
def test_chunking_strategy(strategy: Any, expected: ServerVad | None) -> None:
    """Over the wire the one without fields is "auto"."""
    asked: TranscriptionOptions = {"chunking_strategy": strategy, "language": "en"}
    message = wire.transcribe_request(pb.TranscribeRequest, AUDIO, asked, {})
    params = wire.params_of(pb.TranscribeRequest.FromString(message.SerializeToString()))
    assert (params.vad, params.language) == (expected, "en")
    assert params.vad == TranscriptionParams(**asked).vad


def test_what_is_no_silence_is_refused_by_its_name() -> None:
    vad = pb.ServerVad(threshold=2.0)
    request = pb.TranscribeRequest(params=pb.TranscriptionParams(chunking_strategy=vad))
    with pytest.raises(InvalidRequest) as refused, renaming_fields(wire.FIELDS):
        wire.params_of(request)
    assert refused.value.field == "params.chunking_strategy.threshold"


@pytest.mark.parametrize("mode", ["sequential", "chunked"])
def test_the_answer_says_the_way(mode: Any) -> None:
    answer = Transcription("Hello.", "en", 2.0, [], encoder_tokens=1_500, generated_tokens=9, mode=mode)
    message = wire.transcribe_response("one", answer)
    assert wire.transcription_of(message.transcription) == answer


def test_words() -> None:
    """Those that were not asked for are not an empty list."""
    word = TranscriptionWord(" Bye,", 0.25, 0.5, 0.75)
    segments = [
        TranscriptionSegment(number, 30.0, 0.0, 1.5, " Bye, bye", [1, 2], 0.5, -0.5, 1.5, 0.25, words)
        for number, words in enumerate((None, [], [word, word]))
    ]
    whole = Transcription("Bye", "en", 2.0, segments, "chunked", 3, 4)
    message = pb.TranscribeResponse.FromString(wire.transcribe_response("id", whole).SerializeToString())
    assert wire.transcription_of(message.transcription) == whole
