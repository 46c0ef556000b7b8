"""Recordings of several clients at one ingress replica: who waits for whom, and who goes on."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from audio_files import encoded, repeated, wav
from fake_service import connected, make_service
from local_router import LocalRouter
from slow_decoding import SlowDecoding
from voices import voices
from whisper import RATE, sound

from tandem import LLM, InvalidRequest, Transcription, TranscriptionParams
from tandem.cluster.ingress.speech.recordings import Recordings
from tandem.cluster.router.routed_request import Arrival
from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.request import Delta
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.builder import TranscriptionBuilder

LONG_S, SHORT_S = 70.0, 3.0
LONG, SHORT = (wav(sound(seed, seconds), RATE) for seed, seconds in ((0, LONG_S), (1, SHORT_S)))
LIMITS = Limits(transcription_seconds=90.0)


@pytest.fixture
def recordings(whisper: Path, local_router: LocalRouter) -> Recordings:
    builder = RequestBuilder.load(whisper, "tiny", LIMITS)
    return Recordings(builder, local_router)  # type: ignore[arg-type]


async def transcribed(
    recordings: Recordings, file: bytes, done_s: list[float] | None = None, **asked: Any
) -> Transcription:
    """done_s: is given up to where the recording is transcribed, at every step."""
    params = TranscriptionParams(language="en", **asked)
    prepared = await recordings.prepare(Media("audio", file), params, "file")
    async with aclosing(recordings.transcribe(prepared, Arrival.now())) as steps:
        async for transcriber in steps:
            if done_s is not None:
                done_s.append(transcriber.seek_s)
    return transcriber.transcription()


async def test_a_short_recording_does_not_wait_for_a_long_one(recordings: Recordings, llm: LLM) -> None:
    """Its windows and those of the long one take turns, although that was there before."""
    done_s: list[float] = []
    long = asyncio.create_task(transcribed(recordings, LONG, done_s))
    while not long.done() and (not done_s or done_s[-1] < 3):
        await asyncio.sleep(0.001)
    at = done_s[-1]
    short = await transcribed(recordings, SHORT)
    assert not long.done()
    assert done_s[-1] - at < 6 * SHORT_S
    assert short.text == llm.transcribe(SHORT, language="en").text
    assert (await long).duration_s == LONG_S


async def test_nor_for_the_chunks_of_one(whisper: Path) -> None:
    """Of which many are under way at once, more than the engine decodes."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))  # one for each request
    file = wav(voices([(0.3 + 1.5 * at, 1.1 + 1.5 * at) for at in range(45)], LONG_S), RATE)
    ended: list[str] = []
    with LLM(str(whisper), dtype="float32", max_num_seqs=1) as llm:

        class Counting(LocalRouter):
            began = -1  # how many had ended when its first request came

            async def deltas(self, *arguments: Any) -> AsyncGenerator[Delta]:
                if self.began < 0:
                    self.began = len(ended)
                async with aclosing(super().deltas(*arguments)) as deltas:
                    async for delta in deltas:
                        yield delta
                ended.append(arguments[0].request_id)

        routers = Counting(llm._engine), Counting(llm._engine)
        builder = RequestBuilder.load(whisper, "tiny", LIMITS)
        one, other = (Recordings(builder, router) for router in routers)  # type: ignore[arg-type]
        long = asyncio.create_task(transcribed(one, file, chunking_strategy="auto"))
        while not long.done() and len(ended) < 2:
            await asyncio.sleep(0.001)
        short = await transcribed(other, SHORT)
        after = len(ended)
        assert short.text == llm.transcribe(SHORT, language="en").text
        windows = len({segment.seek_s for segment in short.segments})
        assert after - routers[1].began <= windows + 8
        assert (await long).mode == "chunked"


async def test_nor_does_it_while_long_ones_are_decoded(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowDecoding(monkeypatch, LONG)
    long = [asyncio.create_task(transcribed(recordings, LONG)) for _ in range(4)]
    await asyncio.to_thread(slow.begun.wait, 30)
    assert (await asyncio.wait_for(transcribed(recordings, SHORT), 30)).text
    assert not any(one.done() for one in long)
    await gone(*long)


@pytest.mark.parametrize("said_s", [1.0, 0.0], ids=["a second", "nothing"])
async def test_nor_where_headers_lie(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, said_s: float
) -> None:
    """The long ones are short by what their headers say, which may be nothing."""
    lying = forged_length(encoded(sound(0, LONG_S), RATE, "flac", "flac"), int(said_s * RATE))
    slow = SlowDecoding(monkeypatch, lying, from_s=62.0)
    long = [asyncio.create_task(transcribed(recordings, lying)) for _ in range(4)]
    await asyncio.to_thread(slow.begun.wait, 30)
    assert (await asyncio.wait_for(transcribed(recordings, SHORT), 30)).text
    assert not any(one.done() for one in long)
    await gone(*long)


async def test_a_short_recording_that_says_no_length_does_not_wait(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As browsers record: the container is written before its length is known."""
    raw = encoded(sound(1, SHORT_S), RATE, "adts", "aac")
    slow = SlowDecoding(monkeypatch, LONG)
    long = [asyncio.create_task(transcribed(recordings, LONG)) for _ in range(4)]
    await asyncio.to_thread(slow.begun.wait, 30)
    assert (await asyncio.wait_for(transcribed(recordings, raw), 30)).text
    await gone(*long)


async def test_a_header_that_lies_changes_no_answer(recordings: Recordings, llm: LLM) -> None:
    lying = forged_length(encoded(sound(0, LONG_S), RATE, "flac", "flac"), RATE)
    answer = await transcribed(recordings, lying)
    assert answer.duration_s == LONG_S
    assert answer.text == llm.transcribe(lying, language="en").text


async def gone(*tasks: asyncio.Task[Any]) -> None:
    """Their clients are."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_that_goes_hurts_nobody(
    recordings: Recordings, local_router: LocalRouter, llm: LLM
) -> None:
    """Its window is freed on the engine; the others get what they get alone."""
    done_s: list[float] = []
    going = asyncio.create_task(transcribed(recordings, LONG, done_s))
    staying = [asyncio.create_task(transcribed(recordings, SHORT)) for _ in range(2)]
    while not going.done() and (not done_s or done_s[-1] < 2):
        await asyncio.sleep(0.001)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    expected = llm.transcribe(SHORT, language="en").text
    assert [(await one).text for one in staying] == [expected] * 2
    assert not local_router.live
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


def forged_length(flac: bytes, samples: int) -> bytes:
    """Its header says that it has so many."""
    return flac[:22] + samples.to_bytes(4, "big") + flac[26:]


SILENCE = np.zeros(100 * RATE, np.float32)
BOMBS: dict[str, Callable[[], bytes]] = {
    "twenty minutes of opus": lambda: repeated(
        encoded(SILENCE[:RATE], 48_000, "ogg", "libopus"), "ogg", 1200.0
    ),
    "a raw stream, which says no length": lambda: 60 * encoded(SILENCE[: 2 * RATE], RATE, "adts", "aac"),
    "a forged length": lambda: forged_length(encoded(SILENCE, RATE, "flac", "flac"), RATE),
    "a forged rate": lambda: wav(np.random.default_rng(0).uniform(-1, 1, 40 * RATE), 4_000),
}


@cache
def bomb(name: str) -> bytes:
    return BOMBS[name]()


@pytest.mark.parametrize("name", BOMBS)
async def test_bombs_are_errors_of_http(whisper: Path, local_router: LocalRouter, name: str) -> None:
    """A status of its own, not an answer with an error in it; a stream, too, has none of its events."""
    service = make_service(whisper, RequestBuilder.load(whisper, "tiny", LIMITS), local_router, LIMITS)
    assert len(bomb(name)) < LIMITS.media_bytes / 10
    async with connected(service) as client:
        for stream in ("false", "true"):
            response: httpx.Response = await client.post(
                "/v1/audio/transcriptions", data={"stream": stream}, files={"file": ("a", bomb(name))}
            )
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, "file")
            assert "the limit is 90 s" in error["message"]
    assert local_router.requests == []


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_while_they_are_decoded(whisper: Path, name: str) -> None:
    """Whatever the header says: no more is held than the limit lets in."""
    builder = TranscriptionBuilder(RequestBuilder.load(whisper, "tiny", LIMITS))
    asked = builder.check(TranscriptionParams())
    tracemalloc.start()
    with pytest.raises(InvalidRequest, match="has more, the limit is 90 s"):
        builder.begin(Media("audio", bomb(name)), "file", asked, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMITS.transcription_seconds * (RATE + 100 * 80) * 4 * 3
