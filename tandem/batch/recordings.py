"""Recordings in a batch: lines that name one, or hold it, and the lines of their transcriptions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast

from tandem.batch import records
from tandem.errors import InvalidRequest
from tandem.transcription import Transcription, TranscriptionOptions, TranscriptionParams
from tandem.transcripts import plain

# Those of `tandem transcribe`.
_DEFAULTS: Final[Mapping[str, Any]] = {"semantics": "openai"}
_PARAMS: Final = frozenset(TranscriptionParams.model_fields)
_OF_ANSWERS: Final = frozenset({"text", "language", "duration", "mode", "segments", "error"})
_RENAMED: Final = "input_"  # a data set's own text is for comparison


def parameters(values: Mapping[str, Any]) -> TranscriptionOptions:
    """Parameters by name. Raises InvalidRequest, naming the one at fault."""
    asked = {**_DEFAULTS, **values}
    TranscriptionParams(**asked)
    return cast(TranscriptionOptions, asked)


def carried(values: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A line's members that are no part of its request, such as a data set's text, for its answer to have:
    under their names, or "input_text" and the like where answers have such a member themselves. What is
    a parameter's name but for one mistake is a misspelt parameter, and none of them."""
    kept = {name: value for name, value in values.items() if name not in (column, "id") and not _known(name)}
    return {_RENAMED * (name in _OF_ANSWERS) + name: value for name, value in kept.items()}


@cache
def _known(name: str) -> bool:
    return name in _PARAMS or records.misspelt(name, _PARAMS)


def request(values: Mapping[str, Any], column: str, defaults: Mapping[str, Any]) -> TranscriptionOptions:
    """What a line asks; what it sets goes before the defaults. Raises InvalidRequest, naming the field."""
    if type(values.get("id", 0)) not in (int, str):
        raise InvalidRequest("must be an integer or a string", field="id")
    return parameters(
        {**defaults, **{name: value for name, value in values.items() if name != column and _known(name)}}
    )


def answer(transcription: Transcription) -> dict[str, Any]:
    """The answer's part of a line."""
    return plain(transcription)


def is_answer(values: Mapping[str, Any]) -> bool:
    return "duration" in values and "segments" in values


def tokens(values: Mapping[str, Any]) -> int:
    """Those of its segments."""
    return sum(len(segment["tokens"]) for segment in values["segments"])
