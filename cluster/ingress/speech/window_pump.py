"""A recording's requests, each sent when it is asked for, and their deltas in one queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Final, Protocol

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.router import Room
from tandem.workers.request import Delta, EngineRequest

_GATHER_S: Final = 1.0  # a window's answer is read when it is whole
_FIRST: Final = 4  # windows of a recording that are served by their arrival


class Router(Protocol):
    """What recordings need of `cluster.router.Router`."""

    def keep_room(
        self, media_bytes: int, audio_s: float, *, priority: int = 0
    ) -> AbstractContextManager[Room]: ...
    def accept(
        self, requests: Sequence[EngineRequest], *, within: Room | None = None
    ) -> AbstractContextManager[list[RoutedRequest]]: ...
    def deltas(self, routed: RoutedRequest, gather_s: Callable[[], float] = ...) -> AsyncGenerator[Delta]: ...


class WindowPump:
    """`put` is given each delta, or the error that ended a request; `close` cancels what is under way.

    Where a recording has many windows under way at once, those after the first few stand one level of
    priority behind them: a short recording that comes later does not wait for all.
    """

    def __init__(
        self, router: Router, room: Room, priority: int, put: Callable[[Delta | Exception], None]
    ) -> None:
        self._router, self._room, self._priority, self._put = router, room, priority, put
        self._tasks: dict[asyncio.Task[None], str] = {}  # with the keys of their windows

    def send(self, requests: Iterable[EngineRequest], timeout_s: float) -> None:
        for request in requests:
            key, under_way = request.encoder.key, set(self._tasks.values())
            behind = key not in under_way and len(under_way) >= _FIRST
            one = replace(request, priority=self._priority - behind, timeout_s=max(0.0, timeout_s))
            task = asyncio.create_task(self._answer(one))
            self._tasks[task] = key
            task.add_done_callback(self._tasks.pop)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, request: EngineRequest) -> None:
        try:
            with self._router.accept([request], within=self._room) as [routed]:
                async with aclosing(self._router.deltas(routed, lambda: _GATHER_S)) as deltas:
                    async for delta in deltas:
                        self._put(delta)
        except Exception as error:  # whoever reads the queue raises it
            self._put(error)
