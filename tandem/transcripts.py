"""Transcriptions as files: text, subtitles, and OpenAI's JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, get_args

from tandem.errors import InvalidRequest
from tandem.transcription import Transcription, TranscriptionSegment, TranscriptionWord

TranscriptFormat = Literal["txt", "srt", "vtt", "json", "jsonl"]
FORMATS: Final[tuple[TranscriptFormat, ...]] = get_args(TranscriptFormat)
_FRAMES_A_SECOND: Final = 100  # in which OpenAI counts where windows begin


def written(transcription: Transcription, kind: TranscriptFormat) -> str:
    """The content of a file: a line a segment where it is text, a JSON object a segment where it is jsonl.

    Raises InvalidRequest for subtitles of a transcription without times."""
    return _WRITERS[kind](transcription)


def txt(transcription: Transcription) -> str:
    """A line a segment; the whole text in one line where there are no segments."""
    lines = [segment.text.strip() for segment in transcription.segments] or [transcription.text]
    return "".join(f"{line}\n" for line in lines)


def srt(transcription: Transcription) -> str:
    """SubRip. Raises InvalidRequest where there are no times."""
    return "".join(
        f"{number}\n{_clock(one.start_s, ',')} --> {_clock(one.end_s, ',')}\n{_cue(one.text)}\n\n"
        for number, one in enumerate(_timed(transcription), 1)
    )


def vtt(transcription: Transcription) -> str:
    """WebVTT, each word with its time where words were asked for. Raises InvalidRequest where there are no
    times."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(one.start_s, '.')} --> {_clock(one.end_s, '.')}\n{_timed_words(one)}\n\n"
        for one in _timed(transcription)
    )


def _timed_words(segment: TranscriptionSegment) -> str:
    """A cue's text. The times within it grow, and are within the cue's, as WebVTT wants it."""
    if not segment.words:
        return _cue(segment.text)
    parts: list[str] = []
    last_s = segment.start_s
    for one in segment.words:
        if last_s < one.start_s < segment.end_s:
            parts.append(f"<{_clock(one.start_s, '.')}>")
            last_s = one.start_s
        parts.append(f"<c>{one.word if parts else one.word.lstrip()}</c>")
    return _cue("".join(parts))


def verbose(transcription: Transcription, *, task: str, language: str) -> dict[str, Any]:
    """OpenAI's `verbose_json`, with words where they were asked for.

    language: as OpenAI writes it, in English and small letters.
    """
    words = [word for segment in transcription.segments for word in segment.words or ()]
    asked = any(segment.words is not None for segment in transcription.segments)
    return {
        "task": task,
        "language": language,
        "duration": transcription.duration_s,
        "text": transcription.text,
        "mode": transcription.mode,
        "segments": [verbose_segment(segment) for segment in transcription.segments],
        **({"words": [_verbose_word(word) for word in words]} if asked else {}),
    }


def plain(transcription: Transcription) -> dict[str, Any]:
    """A transcription's own members. Its segments are OpenAI's, with the words that were asked for, as
    openai-whisper writes them."""
    return {
        "text": transcription.text,
        "language": transcription.language,
        "duration": transcription.duration_s,
        "mode": transcription.mode,
        "segments": [_plain_segment(segment) for segment in transcription.segments],
    }


def _plain_segment(segment: TranscriptionSegment) -> dict[str, Any]:
    if segment.words is None:
        return verbose_segment(segment)
    words = [
        {"word": one.word, "start": one.start_s, "end": one.end_s, "probability": one.probability}
        for one in segment.words
    ]
    return verbose_segment(segment) | {"words": words}


def _verbose_word(word: TranscriptionWord) -> dict[str, Any]:
    return {"word": word.word.strip(), "start": word.start_s, "end": word.end_s}


def verbose_segment(segment: TranscriptionSegment) -> dict[str, Any]:
    """A segment of OpenAI's `verbose_json`."""
    return {
        "id": segment.id,
        "seek": round(segment.seek_s * _FRAMES_A_SECOND),
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": segment.token_ids,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _json(transcription: Transcription) -> str:
    return _line(plain(transcription))


def _jsonl(transcription: Transcription) -> str:
    return "".join(_line(_plain_segment(segment)) for segment in transcription.segments)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _timed(transcription: Transcription) -> Iterable[TranscriptionSegment]:
    if transcription.text and not transcription.segments:
        raise InvalidRequest("subtitles need times", field="timestamps")
    return transcription.segments


def _cue(text: str) -> str:
    """A cue's text: neither a blank line nor an arrow may stand in it."""
    return "\n".join(filter(str.strip, text.strip().splitlines())).replace("-->", "->")


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and, after the point, milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


_WRITERS: Final[dict[TranscriptFormat, Callable[[Transcription], str]]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": _json,
    "jsonl": _jsonl,
}
