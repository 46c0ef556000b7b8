"""Transcriptions over gRPC: what is sent is what comes."""

from __future__ import annotations

from tandem import Transcription, TranscriptionSegment, TranscriptionWord
from tandem.protocol.wire_transcription import transcribe_response, transcription_of
from tandem.v1 import inference_pb2 as pb


def test_words() -> None:
    """Those that were not asked for are not an empty list."""
    word = TranscriptionWord(" Bye,", 0.25, 0.5, 0.75)
    segments = [
        TranscriptionSegment(number, 30.0, 0.0, 1.5, " Bye, bye", [1, 2], 0.5, -0.5, 1.5, 0.25, words)
        for number, words in enumerate((None, [], [word, word]))
    ]
    whole = Transcription("Bye", "en", 2.0, segments, "chunked", 3, 4)
    message = pb.TranscribeResponse.FromString(transcribe_response("id", whole).SerializeToString())
    assert transcription_of(message.transcription) == whole
