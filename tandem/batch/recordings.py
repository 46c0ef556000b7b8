"""Recordings in a batch: lines that name one, or hold it, and the lines of their transcriptions."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from tandem.batch import records
from tandem.errors import InvalidRequest
from tandem.media import file_bytes
from tandem.transcription import Transcription, TranscriptionOptions, TranscriptionParams
from tandem.transcripts import plain

COLUMN: Final = "audio"  # the column of lines that stand for files
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


def place(values: Mapping[str, Any], column: str) -> dict[str, str]:
    """The line's member that says where its recording is, for its answer to have; none where nothing does."""
    value = values.get(column)
    path = value.get("path") if isinstance(value, Mapping) else value
    return {column: path} if isinstance(path, str) else {}


def read(values: Mapping[str, Any], column: str, folder: Path) -> bytes:
    """A line's recording: a path, from `folder` on where it is relative, or an object with the file as
    "bytes", in base64, or with its "path", as data sets have them. Raises InvalidRequest."""
    value = values.get(column)
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if isinstance(data, str):
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"is no base64: {error}", field=f"{column}.bytes") from None
    if isinstance(path, str):
        return file_bytes(folder / path, column)
    raise InvalidRequest('must be a path, or have "bytes" or a "path"', field=column)


def answer(transcription: Transcription) -> dict[str, Any]:
    """The answer's part of a line."""
    return plain(transcription)


def is_answer(values: Mapping[str, Any]) -> bool:
    return "duration" in values and "segments" in values


def tokens(values: Mapping[str, Any]) -> int:
    """Those of its segments."""
    return sum(len(segment["tokens"]) for segment in values["segments"])


def encoded(value: Any) -> Any:
    """A table's value as JSON has it: bytes, by themselves or as a member of an object, in base64."""
    if isinstance(value, bytes):
        return {"bytes": _text(value)}
    if isinstance(value, dict):
        return {name: _text(one) if isinstance(one, bytes) else one for name, one in value.items()}
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
