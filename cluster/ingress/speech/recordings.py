"""Recordings that are transcribed at one ingress replica: decoded in threads, then window by window through
the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Unpack

from tandem.cluster.ingress.speech.decoding_threads import DecodingThreads, TooLong
from tandem.cluster.ingress.speech.window_pump import Router, WindowPump
from tandem.cluster.router.routed_request import Arrival
from tandem.cluster.router.router import Room
from tandem.errors import DeadlineExceeded
from tandem.inputs import CallOptions, Media
from tandem.transcription import TranscriptionParams
from tandem.workers.request import Delta
from tandem.workers.requests.media.audio_file import Watch
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.builder import PreparedTranscription, TranscriptionBuilder
from tandem.workers.transcription.transcriber import Transcriber

_THREADS: Final = 2  # for short recordings, and as many for long ones
_SHORT_S: Final = 60.0  # decoded in a fraction of a second
_PADDING_S: Final = 1.0  # that a recording may have beyond what its header says, and still be short


class Recordings:
    """Every window is a request of its own, so the windows of a long recording and short recordings take
    turns, and a window whose worker is lost is decoded again elsewhere, unseen by the client."""

    def __init__(self, request_builder: RequestBuilder, router: Router) -> None:
        self._builder, self._router = TranscriptionBuilder(request_builder), router
        self._short = DecodingThreads(_THREADS, "media", _SHORT_S + _PADDING_S)
        # Hours of audio take a core for seconds, which nobody with a short recording waits for.
        self._long = DecodingThreads(_THREADS, "long media")

    async def prepare(
        self, media: Media, params: TranscriptionParams, field: str, **options: Unpack[CallOptions]
    ) -> PreparedTranscription:
        """See `TranscriptionBuilder.prepare`; the header is read in a thread."""
        return await self._short.run(lambda _: self._builder.prepare(media, params, field, **options))

    async def transcribe(
        self, prepared: PreparedTranscription, arrival: Arrival
    ) -> AsyncGenerator[Transcriber]:
        """Yields the same transcriber when it begins and whenever a request of its has ended, the last time
        when it is done. Close it to cancel what is under way.

        Raises Overloaded, Unavailable where there is no room; InvalidRequest for a recording that cannot be
        decoded; DeadlineExceeded.
        """
        deadline = min(arrival.at + prepared.timeout_s, arrival.deadline)
        audio_s = prepared.longest_s if prepared.audio_s is None else prepared.audio_s
        with self._router.keep_room(len(prepared.media.data), audio_s, priority=prepared.priority) as room:
            try:
                async with asyncio.timeout_at(deadline):
                    transcriber = await self._begin(prepared)
            except TimeoutError:
                raise DeadlineExceeded(
                    "the request's time was over before its recording was decoded"
                ) from None
            room.audio_s = transcriber.duration_s  # its header may have said something else
            async with aclosing(self._run(transcriber, prepared, deadline, room)) as steps:
                async for _ in steps:
                    yield transcriber

    async def _begin(self, prepared: PreparedTranscription) -> Transcriber:
        def begin(watch: Watch) -> Transcriber:
            return self._builder.begin(
                prepared.media, prepared.field, prepared.asked, prepared.seed, watch=watch
            )

        if prepared.audio_s is None or prepared.audio_s <= _SHORT_S:
            try:
                return await self._short.run(begin)
            except TooLong:
                pass  # its header said less or nothing: it begins again among the long ones
        return await self._long.run(begin)

    async def _run(
        self, transcriber: Transcriber, prepared: PreparedTranscription, deadline: float, room: Room
    ) -> AsyncGenerator[None]:
        """Yields when it has begun and whenever a request has ended."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        pump = WindowPump(self._router, room, prepared.priority, arrived.put_nowait)
        try:
            pump.send(transcriber.start(), deadline - loop.time())
            yield
            while not transcriber.done:
                delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                pump.send(transcriber.push(delta), deadline - loop.time())
                if delta.last:
                    yield
        finally:
            await pump.close()
