"""OpenAI's realtime transcription: what its events say, and what becomes of them here."""

from __future__ import annotations

import base64
import binascii
import math
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import from_json

from tandem.errors import InvalidRequest
from tandem.live import TURNS, LiveDelta, LiveParams
from tandem.transcription import ServerVad

_RATE: Final = 24_000  # samples a second, where a session says nothing
# By client event, the server's answer. The first is of today's API, the second of the one before.
UPDATES: Final = {
    "session.update": "session.updated",
    "transcription_session.update": "transcription_session.updated",
}


def read_event(text: str, limit: int) -> dict[str, Any]:
    """A client's event. Raises InvalidRequest."""
    if len(text) > limit:
        raise InvalidRequest(f"an event has {len(text)} characters, the limit is {limit}")
    try:
        event = from_json(text)
    except ValueError as error:
        raise InvalidRequest(f"an event is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise InvalidRequest("an event is an object with a type", field="type")
    return event


def sound_of(event: Mapping[str, Any]) -> bytes:
    """The samples of an `input_audio_buffer.append`. Raises InvalidRequest."""
    audio = event.get("audio")
    try:
        if not isinstance(audio, str):
            raise ValueError("it is no text")
        return base64.b64decode(audio, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(f"is not base64: {error}", field="audio") from None


def params_of(event: Mapping[str, Any]) -> tuple[LiveParams, str | None]:
    """What a session is asked to be, and the model that it names. Raises InvalidRequest, naming the field."""
    session = _object(event, "session")
    heard = session if event["type"] == "transcription_session.update" else _input(session)
    transcription = _object(heard, _either(heard, "transcription", "input_audio_transcription"))
    for name in transcription.keys() - {"model", "language", "prompt"}:
        raise InvalidRequest("unknown field", field=f"transcription.{name}")
    values: dict[str, Any] = {
        name: transcription[name] for name in ("language", "prompt") if transcription.get(name)
    }
    if heard.get("noise_reduction") or heard.get("input_audio_noise_reduction"):
        raise InvalidRequest("is not done here; set it to null", field="noise_reduction")
    values["sample_rate"] = _rate(heard.get(_either(heard, "format", "input_audio_format")))
    if "turn_detection" in heard:
        values["turn_detection"] = _turns(heard["turn_detection"])
    return LiveParams(**values), transcription.get("model")


def session_of(params: LiveParams, model: str, session_id: str) -> dict[str, Any]:
    """A session as it is in force."""
    vad = params.turn_detection
    return {
        "id": session_id,
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": params.sample_rate},
                "transcription": {"model": model, "language": params.language, "prompt": params.prompt or ""},
                "noise_reduction": None,
                "turn_detection": None if vad is None else vad.model_dump(),
            }
        },
    }


@dataclass(slots=True)
class Items:
    """The conversation's items, a turn each: deltas become events."""

    _ids: dict[int, str] = field(default_factory=dict)  # by turn
    _texts: dict[int, str] = field(default_factory=dict)
    _previous: str | None = None

    def events(self, delta: LiveDelta) -> Iterator[dict[str, Any]]:
        item = self._ids.get(delta.turn)
        if item is None:
            item = self._ids[delta.turn] = f"item_{uuid.uuid4().hex[:24]}"
            self._texts[delta.turn] = ""
            start_ms = round(1000 * delta.start_s)
            yield _event("input_audio_buffer.speech_started", item_id=item, audio_start_ms=start_ms)
        if delta.final:
            self._texts[delta.turn] += delta.final
            yield _event(
                "conversation.item.input_audio_transcription.delta",
                item_id=item, content_index=0, delta=delta.final,
            )  # fmt: skip
        if delta.end_s is None:
            return
        end_ms = round(1000 * delta.end_s)
        yield _event("input_audio_buffer.speech_stopped", item_id=item, audio_end_ms=end_ms)
        yield _event("input_audio_buffer.committed", item_id=item, previous_item_id=self._previous)
        text = self._texts.pop(delta.turn).strip()
        yield _event(
            "conversation.item.added",
            previous_item_id=self._previous,
            item={
                "id": item, "object": "realtime.item", "type": "message", "status": "completed",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": text}],
            },
        )  # fmt: skip
        yield _event(
            "conversation.item.input_audio_transcription.completed",
            item_id=item, content_index=0, transcript=text,
            usage={"type": "duration", "seconds": math.ceil(delta.end_s - delta.start_s)},
        )  # fmt: skip
        del self._ids[delta.turn]
        self._previous = item


def session_event(kind: str, session: Mapping[str, Any]) -> dict[str, Any]:
    return _event(kind, session=session)


def cleared() -> dict[str, Any]:
    return _event("input_audio_buffer.cleared")


def error_event(body: Mapping[str, Any], event_id: object) -> dict[str, Any]:
    """body: the error's, as HTTP has it. event_id: the client's own for the event at fault."""
    return _event("error", error={**body["error"], "event_id": event_id})


def _event(kind: str, **values: object) -> dict[str, Any]:
    return {"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **values}


def _input(session: Mapping[str, Any]) -> Mapping[str, Any]:
    if session.get("type", "transcription") != "transcription":
        raise InvalidRequest('must be "transcription": nothing is spoken here', field="session.type")
    if session.get("include"):
        raise InvalidRequest("log-probabilities are not given", field="session.include")
    return _object(_object(session, "audio"), "input")


def _either(values: Mapping[str, Any], name: str, older: str) -> str:
    return older if older in values else name


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"must be an object, got {value!r:.60}", field=name)
    return value or {}


def _rate(value: object) -> int:
    """The rate that a format says, which is an object, or a name."""
    match value:
        case None | "pcm16":
            return _RATE
        case {"type": "audio/pcm", **rest}:
            rate = rest.get("rate", _RATE)
            if type(rate) is not int:
                raise InvalidRequest(f"must be an integer, got {rate!r:.60}", field="format.rate")
            return rate
    raise InvalidRequest(f'must be {{"type": "audio/pcm", "rate": …}}, got {value!r:.60}', field="format")


def _turns(value: object) -> ServerVad | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("type", "server_vad") != "server_vad":
        raise InvalidRequest('must be null or of type "server_vad"', field="turn_detection")
    known = {name: one for name, one in value.items() if name in ServerVad.model_fields and one is not None}
    # What concerns answers that are spoken means nothing here.
    for name in value.keys() - known.keys() - {"create_response", "interrupt_response", "idle_timeout_ms"}:
        raise InvalidRequest("unknown field", field=f"turn_detection.{name}")
    return TURNS.model_copy(update=ServerVad(**known).model_dump(exclude_unset=True))
