"""Speech that goes on, transcribed at one ingress replica."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, Unpack

from tandem.cluster.ingress.speech.window_pump import Router, WindowPump
from tandem.errors import DeadlineExceeded
from tandem.inputs import CallOptions
from tandem.live import LiveDelta, LiveParams, Sound
from tandem.workers.request import Delta
from tandem.workers.requests.media.pcm import PcmReader
from tandem.workers.requests.request_builder import RequestBuilder
from tandem.workers.transcription.builder import PreparedLive, TranscriptionBuilder

T = TypeVar("T")
_THREADS: Final = 2
_LEAST: Final = 1024  # bytes that a message counts for
_HELD_S: Final = 90.0  # seconds of sound that a session may hold: a turn that goes on, and two that wait
_BACKLOG: Final = 2  # turns that wait; sound is not taken until there are fewer
_UNREAD: Final = 2**22  # bytes of sound that may wait to be taken; beyond, the client's is not read


class Live:
    """A session has one hypothesis under way at a time, a request like any other. A client that goes ends its
    own session and nothing else."""

    def __init__(self, request_builder: RequestBuilder, router: Router) -> None:
        self._builder, self._router = TranscriptionBuilder(request_builder), router
        self._limits = request_builder.limits
        self._threads = ThreadPoolExecutor(_THREADS, "live")

    async def prepare(self, params: LiveParams, **options: Unpack[CallOptions]) -> PreparedLive:
        """See `TranscriptionBuilder.prepare_live`."""
        return await self._in_thread(lambda: self._builder.prepare_live(params, **options))

    async def transcribe(
        self, prepared: PreparedLive, sound: AsyncIterator[Sound]
    ) -> AsyncGenerator[LiveDelta]:
        """What is said, until `sound` ends and all of it is transcribed. Close it to end the session.

        Raises Overloaded, Unavailable where there is no room; InvalidRequest for what is no sound;
        DeadlineExceeded where nothing has come for `Limits.timeout_s`.
        """
        live, reader = prepared.transcriber, PcmReader(prepared.sample_rate)
        arrived: asyncio.Queue[Sound | Delta | Exception | None] = asyncio.Queue()
        unread, room_to_read = 0, asyncio.Event()
        failures: list[Exception] = []  # of reading, at most one; it overtakes what waits

        async def read() -> None:
            nonlocal unread
            try:
                async for item in sound:
                    arrived.put_nowait(item)
                    unread += max(len(item), _LEAST)
                    if unread > _UNREAD:
                        room_to_read.clear()
                        await room_to_read.wait()
                arrived.put_nowait(None)
            except Exception as error:  # the session ends with it
                failures.append(error)
                arrived.put_nowait(error)

        with self._router.keep_room(0, _HELD_S, priority=prepared.priority) as room:
            pump = WindowPump(self._router, room, prepared.priority, arrived.put_nowait)
            reading = asyncio.create_task(read())
            waiting: deque[Sound] = deque()
            ended = False
            try:
                while not live.done:
                    try:
                        async with asyncio.timeout(self._limits.timeout_s):
                            item = await arrived.get()
                    except TimeoutError:
                        raise DeadlineExceeded(f"nothing has come for {self._limits.timeout_s:g} s") from None
                    if failures:
                        raise failures[0]
                    if isinstance(item, Exception):
                        raise item
                    if isinstance(item, Delta):
                        pump.send(live.push(item), self._limits.timeout_s)
                    elif item is None:
                        ended = True
                    else:
                        waiting.append(item)
                    while waiting and live.backlog < _BACKLOG and not failures:
                        one = waiting.popleft()
                        unread -= max(len(one), _LEAST)
                        if unread <= _UNREAD:
                            room_to_read.set()
                        await self._take(prepared, reader, one)
                    if ended and not waiting:
                        ended = False
                        await self._in_thread(lambda: live.feed(reader.rest()))
                        live.end()
                    pump.send(await self._in_thread(live.due), self._limits.timeout_s)
                    while live.deltas:
                        yield live.deltas.popleft()
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await pump.close()

    async def _take(self, prepared: PreparedLive, reader: PcmReader, item: Sound) -> None:
        live = prepared.transcriber
        match item:
            case "commit":
                live.commit()
            case "clear":
                live.clear()
            case _:
                await self._in_thread(lambda: live.feed(reader.read(item)))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
