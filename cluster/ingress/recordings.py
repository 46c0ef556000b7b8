"""Recordings that are transcribed at one ingress replica: decoded in threads, then window by window through
the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Final, Unpack

from tandem.cluster.ingress.window_pump import Router, WindowPump
from tandem.cluster.router.router import Room
from tandem.errors import DeadlineExceeded
from tandem.inputs import CallOptions, Media
from tandem.transcription import TranscriptionParams
from tandem.workers.request import Delta
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.builder import PreparedTranscription, TranscriptionBuilder
from tandem.workers.transcription.transcriber import Transcriber

_THREADS: Final = 2


class Recordings:
    """Every window is a request of its own, so the windows of a long recording and short recordings take
    turns, and a window whose worker is lost is decoded again elsewhere, unseen by the client."""

    def __init__(self, request_builder: RequestBuilder, router: Router) -> None:
        self._builder, self._router = TranscriptionBuilder(request_builder), router
        self._threads = ThreadPoolExecutor(_THREADS, "media")

    async def prepare(
        self, media: Media, params: TranscriptionParams, field: str, **options: Unpack[CallOptions]
    ) -> PreparedTranscription:
        """See `TranscriptionBuilder.prepare`; the header is read in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: self._builder.prepare(media, params, field, **options)
        )

    async def transcribe(self, prepared: PreparedTranscription) -> AsyncGenerator[Transcriber]:
        """Yields the same transcriber when it begins and whenever a request of its has ended, the last time
        when it is done. Close it to cancel what is under way.

        Raises Overloaded, Unavailable where there is no room; InvalidRequest for a recording that cannot be
        decoded; DeadlineExceeded.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + prepared.timeout_s
        with self._router.keep_room(len(prepared.media.data), prepared.audio_s) as room:
            try:
                async with asyncio.timeout_at(deadline):
                    transcriber = await loop.run_in_executor(
                        self._threads,
                        lambda: self._builder.begin(
                            prepared.media, prepared.field, prepared.asked, prepared.seed
                        ),
                    )
            except TimeoutError:
                raise DeadlineExceeded(
                    "the request's time was over before its recording was decoded"
                ) from None
            room.audio_s = transcriber.duration_s  # its header may have said something else
            async with aclosing(self._run(transcriber, prepared, deadline, room)) as steps:
                async for _ in steps:
                    yield transcriber

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
