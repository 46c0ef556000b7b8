"""How much may be encoded ahead of the engines: what is encoded has to be kept until one has room."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.waiting import wait_for_worker


@dataclass(order=True, slots=True)
class _Waiter:
    order: tuple[float, int]  # the routed's
    tokens: int = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


class Staging:
    """Room for `tokens` encoder tokens, from the start of their encoding until it has ended and an engine
    has got their request.

    Without it, a burst on a cluster whose engines are full would fill the object store with hidden
    states that nobody can use yet. An input larger than all the room goes alone.
    """

    def __init__(self, tokens: int, patience_s: float, possible: Callable[[], bool]) -> None:
        """`possible` says whether there is any engine that may make room."""
        self._limit, self._patience_s, self._possible = tokens, patience_s, possible
        self._used = 0
        self._waiting: list[_Waiter] = []  # sorted

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def room(self, routed: RoutedRequest) -> AsyncIterator[None]:
        """Room for a routed's input while the block runs, by priority and arrival.

        Raises Unavailable where there is none after `patience_s`, and no engine.
        """
        tokens = len(routed.request.encoder.token_ids)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(routed.order, tokens, granted)
        bisect.insort(self._waiting, waiter)
        self._grant()
        try:
            await wait_for_worker(granted, self._patience_s, self._possible, "no decoder accepts requests")
            yield
        finally:
            if granted.done():
                self._used -= tokens
            else:
                del self._waiting[bisect.bisect_left(self._waiting, waiter)]
            self._grant()

    def _grant(self) -> None:
        while self._waiting and (not self._used or self._used + self._waiting[0].tokens <= self._limit):
            waiter = self._waiting.pop(0)
            self._used += waiter.tokens
            waiter.granted.set_result(None)
