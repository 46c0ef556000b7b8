"""The form of OpenAI's audio endpoints: which fields there are, and what they mean here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from tandem.cluster.ingress.http.forms import Fields, FormFile
from tandem.errors import InvalidRequest
from tandem.inputs import CALL_OPTIONS, CallOptions, Media
from tandem.transcription import TranscriptionParams

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]
_FORMATS: Final[tuple[ResponseFormat, ...]] = get_args(ResponseFormat)
_GRANULARITIES: Final = ("segment", "word")
# Fields of OpenAI's that this server cannot do, and why.
_REFUSED: Final = {
    "known_speaker_names": "speakers are not told apart",
    "known_speaker_references": "speakers are not told apart",
}
# Fields of TranscriptionParams that the form says in OpenAI's words, or that are the endpoint's.
_OPENAI_S: Final = ("timestamps", "task", "logprobs")

# What the validator calls the fields, in the words of the form.
FIELDS: Final = {
    "timestamps": "timestamp_granularities[]",
    "logprobs": "include[]",
    "request_id": "x-request-id",
}


@dataclass(frozen=True, slots=True)
class AudioForm:
    """A request to transcribe or to translate, read."""

    media: Media
    params: TranscriptionParams
    options: CallOptions
    format: ResponseFormat
    granularities: tuple[str, ...]  # "segment", "word"
    stream: bool

    @classmethod
    def read(cls, fields: Fields, task: str, request_id: str | None) -> AudioForm:
        """A form's fields; `task` is the endpoint's. Raises InvalidRequest, naming the field."""
        values = {name.removesuffix("[]"): value for name, value in fields.values.items()}
        for name in _REFUSED.keys() & values.keys():
            raise InvalidRequest(_REFUSED[name], field=name)
        shape = _format(values.pop("response_format", "json"))
        stream = _flag(values.pop("stream", "false"), "stream")
        if stream and shape in ("srt", "vtt"):
            raise InvalidRequest(f"{shape} is not streamed", field="response_format")
        granularities = _listed(values.pop("timestamp_granularities", None), "timestamp_granularities[]")
        for one in granularities:
            if one not in _GRANULARITIES:
                raise InvalidRequest(
                    f"must be of {', '.join(_GRANULARITIES)}, got {one!r:.40}",
                    field="timestamp_granularities[]",
                )
        if granularities and shape != "verbose_json":
            raise InvalidRequest("needs response_format=verbose_json", field="timestamp_granularities[]")
        included = _listed(values.pop("include", None), "include[]")
        for one in included:
            if one != "logprobs" or shape != "json":
                raise InvalidRequest(
                    f"logprobs go with response_format=json, got {one!r:.40}", field="include[]"
                )
        media = _file(values.pop("file", None))
        options: dict[str, Any] = {
            name: values.pop(name) if name == "model" else _number(values.pop(name), name)
            for name in ("model", "priority", "timeout_s")
            if name in values
        }
        chunking = _chunking(values)
        asked: dict[str, Any] = {"semantics": "openai", "task": task, "chunking_strategy": chunking}
        asked["logprobs"] = bool(included)
        for name in [name for name in values if name in TranscriptionParams.model_fields]:
            if name in _OPENAI_S:
                continue
            asked[name] = _parameter(values.pop(name), name)
        for name in values:
            raise InvalidRequest("unknown field", field=name)
        # Times are always generated: by them a window is divided, as in openai-whisper.
        asked["timestamps"] = "word" if "word" in granularities else "segment"
        if request_id is not None:
            options["request_id"] = request_id
        assert options.keys() <= set(CALL_OPTIONS)
        return cls(
            media=media,
            params=TranscriptionParams(**asked),
            options=cast(CallOptions, options),
            format=shape,
            granularities=tuple(granularities) or ("segment",),
            stream=stream,
        )


def _file(value: object) -> Media:
    if not isinstance(value, FormFile):
        raise InvalidRequest("one file is required, in a multipart form", field="file")
    if not value.data:
        raise InvalidRequest("is empty", field="file")
    return Media("audio", value.data)


def _format(value: object) -> ResponseFormat:
    if value not in _FORMATS:
        raise InvalidRequest(
            f"must be one of {', '.join(_FORMATS)}, got {value!r:.40}", field="response_format"
        )
    return value


def _chunking(values: dict[str, Any]) -> Any:
    """Takes `chunking_strategy`, which is "auto" or an object: as JSON, or as OpenAI's client sends it, a
    field for each of its own. `TranscriptionParams` checks it."""
    nested = [name for name in values if name.startswith("chunking_strategy[")]
    own = {name[len("chunking_strategy[") : -1]: _value(values.pop(name)) for name in nested}
    whole = _value(values.pop("chunking_strategy", None))
    return own or whole or None


def _value(value: object) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _flag(value: object, field: str) -> bool:
    match str(value).lower():
        case "true" | "1":
            return True
        case "false" | "0" | "":
            return False
    raise InvalidRequest(f"must be true or false, got {value!r:.40}", field=field)


def _listed(value: object, field: str) -> list[str]:
    """A field that may be repeated."""
    each: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, str) for one in each):
        raise InvalidRequest("must be text", field=field)
    return each


def _number(value: object, field: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise InvalidRequest(f"must be a number, got {value!r:.40}", field=field) from None


# Fields whose text is what they say; any other is a number, true, false or a list of numbers.
_TEXT: Final = ("language", "prompt", "prompt_condition_type", "semantics")


def _parameter(value: object, field: str) -> Any:
    """A parameter of a form. `TranscriptionParams` checks its type and range."""
    if not isinstance(value, str):
        raise InvalidRequest("must be given once, as text", field=field)
    if field in _TEXT:
        return value or None  # clients send what is not set as ""
    return _number(value, field) if value else None
