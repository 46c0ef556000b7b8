"""Transcriptions as files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tandem import InvalidRequest, Transcription, TranscriptionSegment, TranscriptionWord
from tandem.transcripts import FORMATS, verbose, written


def segment(number: int, start_s: float, end_s: float, text: str) -> TranscriptionSegment:
    return TranscriptionSegment(number, 30.0, start_s, end_s, text, [1, 2], 0.2, -0.5, 1.5, 0.1)


SPOKEN = Transcription(
    "Hello --> you. Bye",
    "en",
    3726.5,
    [segment(0, 0.0, 1.5, " Hello --> you."), segment(1, 3725.02, 3726.4999, " Bye")],
    "sequential",
    0,
    0,
)
UNTIMED = Transcription("Hello.", "en", 2.0, [], "sequential", 0, 0)
SILENT = Transcription("", "en", 2.0, [], "sequential", 0, 0)


def test_subtitles() -> None:
    assert written(SPOKEN, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello -> you.\n\n2\n01:02:05,020 --> 01:02:06,500\nBye\n\n"
    )
    assert written(SPOKEN, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello -> you.\n\n01:02:05.020 --> 01:02:06.500\nBye\n\n"
    )
    assert [written(SILENT, kind) for kind in ("srt", "vtt")] == ["", "WEBVTT\n\n"]
    for kind in ("srt", "vtt"):
        with pytest.raises(InvalidRequest) as refused:
            written(UNTIMED, kind)
        assert refused.value.field == "timestamps"


def test_a_blank_line_would_end_a_cue() -> None:
    one = Transcription("a\n\nb", "en", 1.0, [segment(0, 0.0, 1.0, "a\n \nb")], "sequential", 0, 0)
    assert written(one, "srt") == "1\n00:00:00,000 --> 00:00:01,000\na\nb\n\n"


def test_text_and_json() -> None:
    assert written(SPOKEN, "txt") == "Hello --> you.\nBye\n"
    assert written(UNTIMED, "txt") == "Hello.\n"
    whole = json.loads(written(SPOKEN, "json"))
    assert (whole["text"], whole["language"], whole["duration"]) == (SPOKEN.text, "en", 3726.5)
    lines = [json.loads(line) for line in written(SPOKEN, "jsonl").splitlines()]
    assert lines == whole["segments"] == verbose(SPOKEN, task="transcribe", language="english")["segments"]
    assert lines[0] == {
        "id": 0, "seek": 3000, "start": 0.0, "end": 1.5, "text": " Hello --> you.", "tokens": [1, 2],
        "temperature": 0.2, "avg_logprob": -0.5, "compression_ratio": 1.5, "no_speech_prob": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_ends_a_line(kind: str) -> None:
    assert written(SPOKEN, kind).endswith("\n")  # type: ignore[arg-type]


def test_words() -> None:
    """Of all segments together, without the spaces that set them off."""
    words = [TranscriptionWord(" Hello", 0.1, 0.5, 0.9), TranscriptionWord(" you.", 0.5, 1.5, 0.9)]
    timed = replace(SPOKEN, segments=[replace(one, words=[*words]) for one in SPOKEN.segments])
    found = verbose(timed, task="transcribe", language="english")["words"]
    first = [{"word": "Hello", "start": 0.1, "end": 0.5}, {"word": "you.", "start": 0.5, "end": 1.5}]
    assert found == [*first, *first]
    assert "words" not in verbose(SPOKEN, task="transcribe", language="english")


def test_words_in_every_format_that_has_them() -> None:
    words = [
        TranscriptionWord(" Hello", 0.0, 0.5, 0.9), TranscriptionWord(" -->", 0.5, 0.8, 0.5),
        TranscriptionWord(" you.", 0.8, 1.5, 0.25), TranscriptionWord(" late", 1.5, 1.5, 0.1),
    ]  # fmt: skip
    one = Transcription("Hello", "en", 2.0, [replace(SPOKEN.segments[0], words=words)], "sequential", 0, 0)
    [line] = map(json.loads, written(one, "jsonl").splitlines())
    assert line["words"][0] == {"word": " Hello", "start": 0.0, "end": 0.5, "probability": 0.9}
    assert len(line["words"]) == 4
    assert json.loads(written(one, "json"))["segments"] == [line]
    assert written(one, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n<c>Hello</c><00:00:00.500><c> -></c>"
        "<00:00:00.800><c> you.</c><c> late</c>\n\n"
    )
    for kind in ("txt", "srt"):
        without = replace(one, segments=[replace(one.segments[0], words=None)])
        assert written(one, kind) == written(without, kind)  # type: ignore[arg-type]
    none = replace(one, segments=[replace(one.segments[0], words=[])])
    assert written(none, "vtt") == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello -> you.\n\n"
