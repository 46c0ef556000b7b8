"""Clients that go while their recordings are decoded: the decoding ends, too."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Final

import httpx
import pytest
from asgi_connection import Connection
from audio_files import wav
from fake_router import FakeRouter
from fake_service import make_service
from grpc_calls import Api, Context, consume
from slow_decoding import SlowDecoding
from whisper import RATE, sound

from tandem import DeadlineExceeded, TranscriptionParams
from tandem.cluster.ingress.service import Service
from tandem.cluster.router.routed_request import Arrival
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.request_builder import RequestBuilder

FILES: Final = {name: wav(sound(0, seconds), RATE) for name, seconds in (("long", 70.0), ("short", 9.0))}
LIMITS: Final = Limits(transcription_seconds=90.0)
AT_ONCE_S: Final = 0.5


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter([])


@pytest.fixture
def service(whisper: Path, router: FakeRouter) -> Service:
    return make_service(whisper, RequestBuilder.load(whisper, "tiny", LIMITS), router, LIMITS)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> bytes:
    return FILES[request.param]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, file: bytes) -> SlowDecoding:
    return SlowDecoding(monkeypatch, file)


async def ends(slow: SlowDecoding, router: FakeRouter) -> None:
    assert await asyncio.to_thread(slow.ended.wait, AT_ONCE_S)
    assert router.requests == []


@pytest.mark.parametrize("stream", ["false", "true"])
async def test_http(
    service: Service, router: FakeRouter, slow: SlowDecoding, file: bytes, stream: str
) -> None:
    path = "/v1/audio/transcriptions"
    form = httpx.Request("POST", f"http://tandem{path}", data={"stream": stream}, files={"file": file})
    connection = Connection(service, form.read(), path, form.headers["content-type"])
    serving = connection.open()
    assert await asyncio.to_thread(slow.begun.wait, 30)
    connection.hang_up()
    await ends(slow, router)
    await asyncio.wait_for(serving, 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_grpc(
    service: Service, router: FakeRouter, slow: SlowDecoding, file: bytes, stream: bool
) -> None:
    api = Api(service)
    if stream:
        request = pb.TranscribeStreamRequest(audio=file).SerializeToString()
        call = asyncio.create_task(consume(api.TranscribeStream(request, Context())))
    else:
        request = pb.TranscribeRequest(audio=file).SerializeToString()
        call = asyncio.create_task(consume(api.Transcribe(request, Context())))
    assert await asyncio.to_thread(slow.begun.wait, 30)
    call.cancel()
    await ends(slow, router)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_deadline(service: Service, router: FakeRouter, slow: SlowDecoding, file: bytes) -> None:
    params = TranscriptionParams()
    prepared = await service.recordings.prepare(Media("audio", file), params, "file", timeout_s=0.3)
    async with aclosing(service.recordings.transcribe(prepared, Arrival.now())) as steps:
        with pytest.raises(DeadlineExceeded):
            await anext(steps)
    await ends(slow, router)
