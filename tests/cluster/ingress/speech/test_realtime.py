"""OpenAI's realtime transcription over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_service import make_service
from local_router import LocalRouter
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.testclient import TestClient, WebSocketDisconnect, WebSocketTestSession
from whisper import RATE, make_whisper, sound

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.http.speech.realtime_events import params_of
from tandem.cluster.ingress.service import Service
from tandem.errors import Cancelled
from tandem.limits import Limits
from tandem.live import LiveDelta, Sound
from tandem.workers.requests.media.voice_activity import FRAME, VoiceActivity
from tandem.workers.requests.request_builder import RequestBuilder

# At 24,000 samples a second.
PCM = (np.concatenate([sound(2, 1.5), np.zeros(RATE, np.float32)]) * 32767).astype("<i2")
UPDATE = {
    "type": "session.update",
    "session": {
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": 24_000},
                "transcription": {"model": "tiny", "language": "fr"},
                "turn_detection": {"type": "server_vad", "silence_duration_ms": 320},
            }
        },
    },
}
OLDER_UPDATE = {
    "type": "transcription_session.update",
    "session": {
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "tiny", "language": "fr", "prompt": ""},
        "turn_detection": None,
    },
}


@pytest.fixture(autouse=True)
def hearing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any sound is speech."""
    monkeypatch.setattr(
        VoiceActivity, "hear", lambda _, samples: (np.abs(samples.reshape(-1, FRAME)).max(axis=1) > 0) * 1.0
    )


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"), "turbo", times=True)


@pytest.fixture
def service(whisper: Path, local_router: LocalRouter) -> Service:
    limits = Limits(message_bytes=200_000)
    return make_service(whisper, RequestBuilder.load(whisper, "tiny", limits), local_router, limits)


@pytest.fixture
def client(service: Service) -> TestClient:
    return TestClient(build_app(service))


def append(samples: Any) -> dict[str, Any]:
    return {"type": "input_audio_buffer.append", "audio": base64.b64encode(samples.tobytes()).decode()}


def receive(socket: WebSocketTestSession, until: str) -> list[dict[str, Any]]:
    """Events up to one of this type. All are events that OpenAI's client knows."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] != until:
        events.append(json.loads(socket.receive_text()))
        known = TypeAdapter(RealtimeServerEvent).validate_python(events[-1])
        assert known.type == events[-1]["type"] or until.startswith("transcription_session")
    return events


def test_turns_are_told_from_each_other(client: TestClient) -> None:
    completed = "conversation.item.input_audio_transcription.completed"
    with client.websocket_connect("/v1/realtime?intent=transcription") as socket:
        [created] = receive(socket, "session.created")
        assert created["session"]["type"] == "transcription"
        socket.send_json(UPDATE)
        [updated] = receive(socket, "session.updated")
        heard = updated["session"]["audio"]["input"]
        assert heard["format"] == {"type": "audio/pcm", "rate": 24_000}
        assert heard["turn_detection"]["silence_duration_ms"] == 320
        items, texts = [], []
        for _ in range(2):
            for part in np.array_split(PCM, 10):
                socket.send_json(append(part))
            events = receive(socket, completed)
            kinds = [event["type"].rpartition(".")[2] for event in events]
            assert kinds[0] == "speech_started"
            assert kinds[-4:] == ["speech_stopped", "committed", "added", "completed"]
            deltas = [event["delta"] for event in events if event["type"].endswith("transcription.delta")]
            said = "".join(deltas)
            assert said.strip() == events[-1]["transcript"] != ""
            assert events[-1]["usage"] == {"type": "duration", "seconds": 2}
            items.append({event["item_id"] for event in events if "item_id" in event})
            texts.append(events[-1]["transcript"])
            previous = events[-3]["previous_item_id"]
        assert [len(each) for each in items] == [1, 1]
        assert previous in items[0]
    metrics = client.get("/metrics").text
    heard = re.search(r"tandem_transcribed_audio_seconds_total\{.*?\} ([0-9.]+)", metrics)
    assert heard is not None
    assert float(heard[1]) == pytest.approx(2 * len(PCM) / 24_000, abs=0.1)
    assert re.search(r"tandem_live_hypotheses_total\{.*?\} [2-9]", metrics)
    assert re.search(r"tandem_prompt_media_tokens_total\{.*?\} [1-9]", metrics)
    assert re.search(r"tandem_generation_tokens_total\{.*?\} [1-9]", metrics)


def test_the_older_words_and_turns_that_the_client_ends(client: TestClient) -> None:
    with client.websocket_connect("/v1/realtime") as socket:
        socket.receive_text()
        socket.send_json(OLDER_UPDATE)
        assert json.loads(socket.receive_text())["type"] == "transcription_session.updated"
        socket.send_json(append(PCM[:9000]))
        socket.send_json({"type": "input_audio_buffer.clear"})
        socket.send_json(append(PCM[:16000]))
        socket.send_json({"type": "input_audio_buffer.commit"})
        events = receive(socket, "conversation.item.input_audio_transcription.completed")
        assert sum(event["type"] == "input_audio_buffer.committed" for event in events) == 1
        assert events[-1]["transcript"]


@pytest.mark.parametrize(
    ("event", "param"),
    [
        ({"type": "response.create"}, "type"),
        ({"kind": "session.update"}, "type"),
        ({"type": "input_audio_buffer.append"}, "audio"),
        ({"type": "input_audio_buffer.append", "audio": "%%"}, "audio"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
        ({"type": "session.update", "session": {"type": "transcription", "audio": 3}}, "audio"),
        ({**OLDER_UPDATE, "session": {"input_audio_format": "g711_ulaw"}}, "format"),
        ({**OLDER_UPDATE, "session": {"turn_detection": {"type": "semantic_vad"}}}, "turn_detection"),
        ({**OLDER_UPDATE, "session": {"turn_detection": {"threshold": 7}}}, "threshold"),
        ({**OLDER_UPDATE, "session": {"input_audio_transcription": {"model": "other"}}}, "model"),
        ({**OLDER_UPDATE, "session": {"input_audio_transcription": {"tempo": 1}}}, "transcription.tempo"),
    ],
)
def test_an_event_that_cannot_be_leaves_the_session_alone(
    client: TestClient, event: dict[str, Any], param: str
) -> None:
    with client.websocket_connect("/v1/realtime") as socket:
        socket.receive_text()
        socket.send_json({**event, "event_id": "mine"})
        answer = json.loads(socket.receive_text())
        assert (answer["type"], answer["error"]["param"]) == ("error", param)
        assert answer["error"]["event_id"] == "mine"
        socket.send_json(UPDATE)
        assert json.loads(socket.receive_text())["type"] == "session.updated"


def test_what_is_wrong_with_the_session_ends_it(client: TestClient, local_router: LocalRouter) -> None:
    """An unknown language is known with the first sound; a full server tells the client to come again."""
    for full, code in ((False, 1011), (True, 1013)):
        with client.websocket_connect("/v1/realtime") as socket:
            socket.receive_text()
            update: dict[str, Any] = json.loads(json.dumps(UPDATE))
            if not full:
                update["session"]["audio"]["input"]["transcription"]["language"] = "klingon"
            socket.send_json(update)
            socket.receive_text()
            local_router.full = full
            socket.send_json(append(PCM))
            answer = json.loads(socket.receive_text())
            assert answer["type"] == "error"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_text()
            assert closed.value.code == code


def test_a_client_that_goes_leaves_nothing_behind(client: TestClient, local_router: LocalRouter) -> None:
    local_router.stall_after = 0
    with client.websocket_connect("/v1/realtime") as socket:
        socket.receive_text()
        socket.send_json(UPDATE)
        socket.receive_text()
        socket.send_json(append(PCM))
        while not local_router.requests:
            pass
    assert not local_router.live
    assert len(local_router.cancelled) == 1


async def test_a_client_that_goes_is_seen_past_the_sound_that_waits(
    service: Service, local_router: LocalRouter
) -> None:
    """No turn is done, more wait than are taken, and the last of what it sent is that it goes."""
    local_router.stall_after = 0
    prepared = await service.live.prepare(params_of(UPDATE)[0])

    async def sent() -> AsyncIterator[Sound]:
        for _ in range(20):
            yield PCM.tobytes()
            yield "commit"
        raise Cancelled("gone")

    async def heard() -> list[LiveDelta]:
        return [one async for one in service.live.transcribe(prepared, sent())]

    with pytest.raises(Cancelled):
        await asyncio.wait_for(heard(), 20)
    assert not local_router.live
