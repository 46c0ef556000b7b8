"""Steps on their way from the engine's thread to the event loop of the same process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from tandem.workers.request import Delta, EngineStats

# A step is delivered at once, or this long after the delivery before it.
GATHER_S_PER_REQUEST = 0.0003
LONGEST_GATHER_S = 0.02


class StepInbox:
    """Delivers steps one by one, or several at once under load.

    Each time the two threads meet costs the engine up to as much as a small step: while one waits for the
    interpreter's lock, every operation of the other that releases it has to wake the waiting one. So under
    load the event loop looks now and then instead of after every step: the more requests there are, the less
    some milliseconds matter to each, and the dearer a message is.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[list[Delta], EngineStats], None],
        live: Callable[[], int],
    ) -> None:
        """`deliver` is called in the event loop with every step, in order; `live` says how many requests
        share the cost of a delivery."""
        self._loop, self._deliver, self._live = loop, deliver, live
        self._steps: deque[tuple[list[Delta], EngineStats]] = deque()
        self._looking = False  # the event loop will look at _steps without being woken
        self._next_look: asyncio.TimerHandle | None = None

    def put(self, deltas: list[Delta], stats: EngineStats) -> None:
        """The engine's thread calls it; it returns at once."""
        self._steps.append((deltas, stats))
        if not self._looking:
            self._looking = True
            # The loop is closed only when the process ends; then nobody listens.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        if not self._steps:
            self._looking = False  # from here on the engine's thread wakes the loop
            if not self._steps:  # once more: the thread may have read the old value just before
                return
            self._looking = True
        while self._steps:
            self._deliver(*self._steps.popleft())
        if self._next_look is not None:
            self._next_look.cancel()
        gather_s = min(LONGEST_GATHER_S, self._live() * GATHER_S_PER_REQUEST)
        self._next_look = self._loop.call_later(gather_s, self._look)
