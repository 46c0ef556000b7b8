"""Live transcriptions over gRPC and Tandem's own values, each made from the other, for the client and the
ingress alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, cast

from tandem.errors import InvalidRequest
from tandem.inputs import CALL_OPTIONS, CallOptions
from tandem.live import TURNS, LiveDelta, LiveParams, Sound
from tandem.protocol.wire import make_message, options_message, options_of, plain_fields
from tandem.transcription import ServerVad
from tandem.v1 import inference_pb2 as pb

# What the validator calls the fields of a request, in the words of `tandem.v1`.
FIELDS: Final = {
    **{name: f"start.options.{name}" for name in CALL_OPTIONS},
    "timeout_s": "start.options.timeout_ms",
    **{name: f"start.{name}" for name in LiveParams.model_fields},
}

# Values from messages


def params_of(start: pb.LiveStart) -> LiveParams:
    """Raises InvalidRequest, naming the parameter."""
    values = {name: getattr(start, name) for name in _PLAIN if start.HasField(name)}
    match start.WhichOneof("turn_detection"):
        case "server_vad":
            values["turn_detection"] = TURNS.model_copy(update=_vad(start.server_vad))
        case "manual":
            values["turn_detection"] = None
    return LiveParams(**values)


def call_options_of(start: pb.LiveStart) -> CallOptions:
    """Raises InvalidRequest for options that say what the model is to do."""
    options: dict[str, Any] = {**options_of(start.options)}
    for name in options.keys() - set(CALL_OPTIONS):
        raise InvalidRequest("does not go with live sound", field=f"start.options.{name}")
    return cast(CallOptions, options)


async def sound_of(messages: AsyncIterator[pb.TranscribeLiveRequest]) -> AsyncIterator[Sound]:
    """What follows the first message. Raises InvalidRequest for anything else."""
    async for message in messages:
        match message.WhichOneof("content"):
            case "pcm":
                yield message.pcm
            case "commit":
                yield "commit"
            case _:
                raise InvalidRequest("only the first message says how", field="start")


def delta_of(message: pb.TranscribeLiveResponse) -> LiveDelta:
    return LiveDelta(
        turn=message.turn,
        final=message.final,
        partial=message.partial,
        start_s=message.start_s,
        end_s=message.end_s if message.HasField("end_s") else None,
        language=message.language,
    )


_PLAIN: Final = ("sample_rate", "language", "task", "prompt", "step_ms")


def _vad(message: pb.ServerVad) -> dict[str, Any]:
    return ServerVad(**plain_fields(message)).model_dump(exclude_unset=True)


# Messages from values


def start_message(params: LiveParams, options: CallOptions) -> pb.TranscribeLiveRequest:
    """Raises InvalidRequest, naming the field, for what a message cannot hold."""
    fields: dict[str, Any] = {name: getattr(params, name) for name in _PLAIN}
    if params.turn_detection is None:
        fields["manual"] = pb.LiveCommit()
    else:
        fields["server_vad"] = params.turn_detection.model_dump(exclude={"type"})
    fields["options"] = options_message(options)
    return pb.TranscribeLiveRequest(start=make_message(pb.LiveStart, fields))


def sound_message(sound: Sound) -> pb.TranscribeLiveRequest:
    """Raises InvalidRequest for what cannot be sent."""
    if isinstance(sound, bytes):
        return pb.TranscribeLiveRequest(pcm=sound)
    if sound == "commit":
        return pb.TranscribeLiveRequest(commit=pb.LiveCommit())
    raise InvalidRequest(f'must be bytes or "commit", got {sound!r:.60}', field="sound")


def messages(start: pb.TranscribeLiveRequest, sound: Iterable[Sound]) -> Iterator[pb.TranscribeLiveRequest]:
    yield start
    yield from map(sound_message, sound)


def live_response(request_id: str, delta: LiveDelta) -> pb.TranscribeLiveResponse:
    return pb.TranscribeLiveResponse(
        request_id=request_id,
        turn=delta.turn,
        final=delta.final,
        partial=delta.partial,
        start_s=delta.start_s,
        end_s=delta.end_s,
        language=delta.language,
    )
