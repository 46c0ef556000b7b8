"""Work in decoding threads: what it holds, and when it ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest

from tandem.cluster.ingress.speech.decoding_threads import DecodingThreads, TooLong
from tandem.workers.requests.media.audio_file import Watch


class Work:
    """Goes on until it is ended."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, watch: Watch) -> None:
        self.begun.set()
        try:
            while True:
                watch(1.0)
                time.sleep(0.01)
        finally:
            self.ended.set()


async def test_it_ends_with_its_task_and_the_next_begins() -> None:
    threads = DecodingThreads(1, "test")
    first, second = Work(), Work()
    tasks = [asyncio.create_task(threads.run(work)) for work in (first, second)]
    assert await asyncio.to_thread(first.begun.wait, 10)
    assert not second.begun.is_set()
    tasks[0].cancel()
    assert await asyncio.to_thread(first.ended.wait, 1)
    assert await asyncio.to_thread(second.begun.wait, 1)
    tasks[1].cancel()
    assert await asyncio.to_thread(second.ended.wait, 1)
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in done] == [asyncio.CancelledError] * 2


async def test_nothing_holds_what_waits_once_its_client_is_gone() -> None:
    """However long the work before it takes: a recording is many megabytes, whose room is free again."""
    threads = DecodingThreads(1, "test")
    busy, waiting = Work(), Work()
    running = asyncio.create_task(threads.run(busy))
    assert await asyncio.to_thread(busy.begun.wait, 10)
    going = asyncio.create_task(threads.run(waiting))
    await asyncio.sleep(0.05)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    held = weakref.ref(waiting)
    del waiting, going
    await asyncio.sleep(0.05)  # the event loop holds what this task awaited last
    gc.collect()
    assert held() is None
    assert not busy.ended.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_results_errors_and_what_is_too_long() -> None:
    threads = DecodingThreads(1, "test", longest_s=2.0)

    def decode(seconds: float, watch: Watch) -> float:
        watch(seconds)
        if not seconds:
            raise ValueError("no audio")
        return seconds

    assert await threads.run(lambda watch: decode(2.0, watch)) == 2.0
    with pytest.raises(TooLong):
        await threads.run(lambda watch: decode(2.1, watch))
    with pytest.raises(ValueError, match="no audio"):
        await threads.run(lambda watch: decode(0.0, watch))
    assert await threads.run(lambda watch: decode(1.0, watch)) == 1.0
