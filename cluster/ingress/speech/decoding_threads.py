"""Threads that decode recordings, and stop when nobody waits for a recording any more."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from tandem.workers.requests.media.audio_file import Watch

T = TypeVar("T")


class TooLong(Exception):
    """A recording has more seconds than these threads are for."""


class DecodingThreads:
    """Work waits for its turn in its caller's task and not in a thread pool's queue, which would hold the
    recordings of clients that are gone until a thread is free."""

    def __init__(self, count: int, name: str, longest_s: float = math.inf) -> None:
        """longest_s: seconds of a recording that they decode."""
        self._threads, self._turns = ThreadPoolExecutor(count, name), asyncio.Semaphore(count)
        self._longest_s = longest_s

    async def run(self, work: Callable[[Watch], T]) -> T:
        """What the work returns or raises, in a thread. It calls what it is given some times a second, with
        the seconds that it has decoded; cancel the caller's task to end it with the next call.

        Raises TooLong where it has decoded too many.
        """
        watched = _Watched(self._longest_s)
        async with self._turns:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, watched)
            finally:
                watched.awaited = False


class _Watched:
    """A `Watch` over one piece of work."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self.awaited = True  # written by the event loop, read by the work's thread

    def __call__(self, seconds: float) -> None:
        if not self.awaited:
            raise CancelledError
        if seconds > self._longest_s:
            raise TooLong
