"""Recordings that are transcribed at one ingress replica: decoded in threads, then window by window through
the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Final, Protocol, Unpack

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.router import Room
from tandem.errors import DeadlineExceeded
from tandem.inputs import CallOptions, Media
from tandem.transcription import TranscriptionParams
from tandem.workers.request import Delta, EngineRequest
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.builder import PreparedTranscription, TranscriptionBuilder
from tandem.workers.transcription.transcriber import Transcriber

_THREADS: Final = 2
_GATHER_S: Final = 1.0  # a window's answer is read when it is whole


class Router(Protocol):
    """What recordings need of `cluster.router.Router`."""

    def keep_room(self, media_bytes: int, audio_s: float) -> AbstractContextManager[Room]: ...
    def accept(
        self, requests: list[EngineRequest], *, within: Room | None = None
    ) -> AbstractContextManager[list[RoutedRequest]]: ...
    def deltas(self, routed: RoutedRequest, gather_s: object = ...) -> AsyncGenerator[Delta]: ...


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
        tasks: set[asyncio.Task[None]] = set()

        def send(requests: Iterable[EngineRequest]) -> None:
            left_s = max(0.0, deadline - loop.time())
            for request in requests:
                one = replace(request, priority=prepared.priority, timeout_s=left_s)
                task = asyncio.create_task(self._answer(one, room, arrived))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        try:
            send(transcriber.start())
            yield
            while not transcriber.done:
                delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                send(transcriber.push(delta))
                if delta.last:
                    yield
        finally:
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(
        self, request: EngineRequest, room: Room, arrived: asyncio.Queue[Delta | Exception]
    ) -> None:
        try:
            with self._router.accept([request], within=room) as [routed]:
                async with aclosing(self._router.deltas(routed, lambda: _GATHER_S)) as deltas:
                    async for delta in deltas:
                        arrived.put_nowait(delta)
        except Exception as error:  # whoever waits for the deltas raises it
            arrived.put_nowait(error)
