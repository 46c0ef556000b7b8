"""OpenAI's realtime transcription over a WebSocket."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic_core import to_json

from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.http.errors import error_body
from tandem.cluster.ingress.http.speech.realtime_events import (
    UPDATES,
    Items,
    cleared,
    error_event,
    params_of,
    read_event,
    session_event,
    session_of,
    sound_of,
)
from tandem.cluster.ingress.service import Service
from tandem.errors import Cancelled, InvalidRequest, Overloaded, TandemError, Unavailable
from tandem.live import LiveParams, Sound

_PATH: Final = "/v1/realtime"
_SUBPROTOCOL: Final = "realtime"
_UNEXPECTED, _TRY_LATER = 1011, 1013  # codes of RFC 6455


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.websocket(_PATH)
    async def realtime(socket: WebSocket) -> None:
        """Speech in, text out, while the speaker goes on."""
        # A browser that offers subprotocols, one of which may be a key, needs one of them back.
        await socket.accept(_SUBPROTOCOL if _SUBPROTOCOL in socket.scope["subprotocols"] else None)
        session = _Session(service, socket)
        try:
            with Call(service, "http", "realtime") as call:
                await session.run(call)
        except (WebSocketDisconnect, Cancelled):
            return
        except Exception as error:
            await session.fail(error)

    return router


class _Session:
    """One connection. Its parameters may be changed until sound has come."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._id = f"sess_{uuid.uuid4().hex[:24]}"
        self._params = LiveParams(sample_rate=24_000)
        self._model: str | None = socket.query_params.get("model")
        self._sending = asyncio.Lock()
        self._begun = False

    async def run(self, call: Call) -> None:
        await self._send(session_event("session.created", self._session()))
        sound = self._sound()
        first = await anext(sound, None)
        if first is None:
            return
        options: dict[str, Any] = {} if self._model is None else {"model": self._model}
        prepared = await call.prepare_live(self._params, **options)
        items = Items()

        async def all_sound() -> AsyncIterator[Sound]:
            yield first
            async for one in sound:
                yield one

        async with aclosing(call.transcribe_live(prepared, all_sound())) as deltas:
            async for delta in deltas:
                for event in items.events(delta):
                    await self._send(event)

    async def fail(self, error: Exception) -> None:
        """Tells the client why its connection ends, if it is still there."""
        code = _TRY_LATER if isinstance(error, Overloaded | Unavailable) else _UNEXPECTED
        try:
            await self._send(error_event(error_body(error, _PATH), None))
            await self._socket.close(code)
        except (RuntimeError, WebSocketDisconnect):
            pass

    async def _sound(self) -> AsyncIterator[Sound]:
        """What the client sends of sound. A client that goes ends the session with Cancelled."""
        limit = self._service.config.limits.message_bytes
        while True:
            try:
                text = await self._socket.receive_text()
            except (WebSocketDisconnect, KeyError):  # KeyError: a binary message
                raise Cancelled("the client has gone") from None
            event: dict[str, Any] = {}
            try:
                event = read_event(text, limit)
                sound = await self._take(event)
            except TandemError as error:  # one event is at fault: the session goes on
                await self._send(error_event(error_body(error, _PATH), event.get("event_id")))
                continue
            if sound is not None:
                self._begun = True
                yield sound

    async def _take(self, event: dict[str, Any]) -> Sound | None:
        match event.get("type"):
            case "input_audio_buffer.append":
                return sound_of(event)
            case "input_audio_buffer.commit":
                return "commit"
            case "input_audio_buffer.clear":
                await self._send(cleared())
                return "clear"
            case kind if kind in UPDATES:
                if self._begun:
                    raise InvalidRequest("cannot be changed once there is sound", field="session")
                self._params, model = params_of(event)
                self._model = model or self._model
                self._service.request_builder.check_model(self._model)
                await self._send(session_event(UPDATES[kind], self._session()))
                return None
            case kind:
                raise InvalidRequest(f"no such event of a transcription: {kind!r:.80}", field="type")

    def _session(self) -> dict[str, Any]:
        return session_of(self._params, self._service.model.id, self._id)

    async def _send(self, event: dict[str, Any]) -> None:
        async with self._sending:
            await self._socket.send_text(to_json(event).decode())
