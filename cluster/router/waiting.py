"""Waiting for what only a worker can bring about, and giving up where there is no worker."""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tandem.cluster.callers import Caller
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.turns import Turns
from tandem.errors import Unavailable

T = TypeVar("T")


async def wait_for_worker(
    future: asyncio.Future[T], patience_s: float, possible: Callable[[], bool], lack: str
) -> T:
    """The future's result. Raises Unavailable, saying `lack`, where it has not come after `patience_s` and is
    not possible then. Cancelling the caller leaves the future as it is."""
    while not future.done():
        await asyncio.wait([future], timeout=patience_s)
        if not future.done() and not possible():
            raise Unavailable(f"{lack}, waited {patience_s:.0f} s")
    return future.result()


@dataclass(order=True, slots=True)
class _Waiter:
    order: tuple[float, int]  # see RoutedRequest
    routed: RoutedRequest = field(compare=False)
    admitted: asyncio.Future[bool] = field(compare=False)  # False: it would end too late


class Gate:
    """Admits requests while there is room: of the callers in turn, each one's by priority and arrival. One
    that does not fit holds up all after it, so that a large one gets its turn, or its own caller's alone. One
    whose time is too short when it has its turn takes no room from the others."""

    def __init__(
        self,
        admit: Callable[[RoutedRequest], bool],
        patience_s: float,
        possible: Callable[[], bool],
        *,
        apart: bool = False,
    ) -> None:
        """`admit` takes the room that a request needs, if there is so much, and says whether; `possible` says
        whether there is an engine that may make room. `apart`: what has no room for one caller may have some
        for another."""
        self._admit, self._patience_s, self._possible, self._apart = admit, patience_s, possible, apart
        self._waiters: dict[Caller, list[_Waiter]] = {}  # sorted, none empty
        self._turns = Turns()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiters.values()))

    async def enter(self, routed: RoutedRequest) -> None:
        """Returns once the request is admitted. A caller that is cancelled may have been admitted before.

        Raises Unavailable where there is no room after `patience_s`, and no engine; TimeoutError where it
        would end too late.
        """
        waiter = _Waiter(routed.order, routed, asyncio.get_running_loop().create_future())
        bisect.insort(self._waiters.setdefault(routed.caller, []), waiter)
        self.admit_waiting()
        try:
            admitted = await wait_for_worker(
                waiter.admitted, self._patience_s, self._possible, "no decoder accepts requests"
            )
        finally:
            if not waiter.admitted.done():
                self._remove(waiter)
        if not admitted:
            raise TimeoutError

    def admit_waiting(self) -> None:
        """To be called when there may be more room."""
        while self._admit_one():
            pass

    def _admit_one(self) -> bool:
        """Says to one request that waits whether it is admitted, if there is one that can be told."""
        firsts = sorted(
            (queue[0] for queue in self._waiters.values()),
            key=lambda waiter: (self._turns.start(waiter.routed.caller), waiter.order),
        )
        for first in firsts if self._apart else firsts[:1]:
            in_time = first.routed.in_time(contended=self.waiting > 1)
            if in_time and not self._admit(first.routed):
                continue
            self._remove(first)
            if in_time:
                self._turns.took(first.routed.caller, 1)
            first.admitted.set_result(in_time)
            return True
        return False

    def _remove(self, waiter: _Waiter) -> None:
        caller = waiter.routed.caller
        queue = self._waiters[caller]
        del queue[bisect.bisect_left(queue, waiter)]
        if not queue:
            del self._waiters[caller]
