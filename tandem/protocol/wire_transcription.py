"""Transcriptions over gRPC and Tandem's own values, each made from the other, for the client and the ingress
alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final, TypeVar, cast

from tandem.errors import InvalidRequest
from tandem.inputs import CALL_OPTIONS, CallOptions, Media
from tandem.protocol.wire import make_message, options_message, options_of, plain_fields
from tandem.transcription import (
    ServerVad,
    Transcription,
    TranscriptionDelta,
    TranscriptionOptions,
    TranscriptionParams,
    TranscriptionSegment,
    TranscriptionWord,
)
from tandem.v1 import inference_pb2 as pb

TranscribeT = TypeVar("TranscribeT", pb.TranscribeRequest, pb.TranscribeStreamRequest)

# What the validator calls the fields of a request, in the words of `tandem.v1`.
FIELDS: Final = {
    "timeout_s": "options.timeout_ms",
    "model": "options.model",
    "priority": "options.priority",
    "request_id": "options.request_id",
    **{name: f"params.{name}" for name in TranscriptionParams.model_fields},
    **{f"chunking_strategy.{name}": f"params.chunking_strategy.{name}" for name in ServerVad.model_fields},
}

# By parameter, the values of its enum.
_ENUMS: Final[dict[str, dict[int, str | None]]] = {
    "timestamps": {
        pb.TIMESTAMPS_NONE: None,
        pb.TIMESTAMPS_SEGMENT: "segment",
        pb.TIMESTAMPS_WORD: "word",
    },
    "prompt_condition_type": {
        pb.PROMPT_CONDITION_TYPE_FIRST_SEGMENT: "first-segment",
        pb.PROMPT_CONDITION_TYPE_ALL_SEGMENTS: "all-segments",
    },
    "semantics": {
        pb.TRANSCRIPTION_SEMANTICS_TRANSFORMERS: "transformers",
        pb.TRANSCRIPTION_SEMANTICS_OPENAI: "openai",
    },
}

# Values from messages


def recording_of(request: pb.TranscribeRequest | pb.TranscribeStreamRequest) -> Media:
    """Raises InvalidRequest for a recording that is missing."""
    if not request.audio:
        raise InvalidRequest("is required", field="audio")
    return Media("audio", request.audio)


def params_of(request: pb.TranscribeRequest | pb.TranscribeStreamRequest) -> TranscriptionParams:
    """Raises InvalidRequest, naming the parameter."""
    values: dict[str, Any] = plain_fields(request.params)
    for name in _ENUMS.keys() & values.keys():
        if values[name] not in _ENUMS[name]:
            raise InvalidRequest(f"{values[name]} is no value of its enum", field=name)
        values[name] = _ENUMS[name][values[name]]
    if several := values.pop("temperatures", None):
        if "temperature" in values:
            raise InvalidRequest("does not go with temperatures", field="temperature")
        values["temperature"] = tuple(several)
    return TranscriptionParams(**values)


def call_options_of(request: pb.TranscribeRequest | pb.TranscribeStreamRequest) -> CallOptions:
    """Raises InvalidRequest for options that say what the model is to do."""
    options: dict[str, Any] = {**options_of(request.options)}
    for name in options.keys() - set(CALL_OPTIONS):
        raise InvalidRequest("does not go with a recording: see params", field=f"options.{name}")
    return cast(CallOptions, options)


def transcription_of(message: pb.Transcription) -> Transcription:
    return Transcription(
        text=message.text,
        language=message.language,
        duration_s=message.duration_s,
        segments=list(map(_segment_of, message.segments)),
        encoder_tokens=message.encoder_tokens,
        generated_tokens=message.generated_tokens,
        mode="chunked" if message.mode == pb.TRANSCRIPTION_MODE_CHUNKED else "sequential",
    )


def delta_of(message: pb.TranscribeStreamResponse) -> TranscriptionDelta:
    return TranscriptionDelta(
        text=message.text,
        segments=list(map(_segment_of, message.segments)),
        done_s=message.done_s,
        transcription=transcription_of(message.transcription) if message.HasField("transcription") else None,
    )


def _segment_of(message: pb.TranscriptionSegment) -> TranscriptionSegment:
    values = {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
    words = [
        TranscriptionWord(one.word, one.start_s, one.end_s, one.probability) for one in message.words.words
    ]
    lists = {
        "token_ids": list(message.token_ids),
        "words": words if message.HasField("words") else None,
        "logprobs": list(message.logprobs) or None,
    }
    return TranscriptionSegment(**{**values, **lists})


# Messages from values


def transcribe_request(
    kind: type[TranscribeT], media: Media, asked: TranscriptionOptions, options: CallOptions
) -> TranscribeT:
    """Raises InvalidRequest, naming the field, for what a message cannot hold."""
    params = TranscriptionParams(**asked)
    fields: dict[str, Any] = params.model_dump(exclude_unset=True, exclude={"chunking_strategy"})
    if isinstance(fields.get("temperature"), tuple):
        fields["temperatures"] = fields.pop("temperature")
    if params.vad is not None:
        fields["chunking_strategy"] = params.vad.model_dump(exclude_unset=True, exclude={"type"})
    for name, values in _ENUMS.items():
        if name in fields:
            fields[name] = next(number for number, value in values.items() if value == fields[name])
    return make_message(
        kind,
        {
            "audio": media.data,
            "params": make_message(pb.TranscriptionParams, fields) if fields else None,
            "options": options_message(options),
        },
    )


def transcribe_response(request_id: str, transcription: Transcription) -> pb.TranscribeResponse:
    return pb.TranscribeResponse(request_id=request_id, transcription=_transcription(transcription))


def transcribe_stream_response(request_id: str, delta: TranscriptionDelta) -> pb.TranscribeStreamResponse:
    whole = delta.transcription
    return pb.TranscribeStreamResponse(
        request_id=request_id,
        text=delta.text,
        segments=_segments(delta.segments),
        done_s=delta.done_s,
        transcription=None if whole is None else _transcription(whole),
    )


def _transcription(value: Transcription) -> pb.Transcription:
    return pb.Transcription(
        text=value.text,
        language=value.language,
        duration_s=value.duration_s,
        segments=_segments(value.segments),
        encoder_tokens=value.encoder_tokens,
        generated_tokens=value.generated_tokens,
        mode=f"TRANSCRIPTION_MODE_{value.mode.upper()}",
    )


def _segments(values: Iterable[TranscriptionSegment]) -> list[pb.TranscriptionSegment]:
    return list(map(_segment, values))


def _segment(value: TranscriptionSegment) -> pb.TranscriptionSegment:
    fields = asdict(value)
    words = fields.pop("words")
    return pb.TranscriptionSegment(**fields, words=None if words is None else {"words": words})
