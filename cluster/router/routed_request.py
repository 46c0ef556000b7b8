"""One request at the router: where it is, the tokens it has received, the tokens its reader has not taken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.handoff import HiddenSlice
from tandem.cluster.router.forecast import Forecast
from tandem.errors import HiddenStatesLost, TandemError, Unavailable
from tandem.limits import PRIORITY_S
from tandem.workers.request import Delta, EngineRequest

# The engine ends a late request itself and says how far it got; the router waits this long for it.
DEADLINE_GRACE_S = 0.25

_numbers = itertools.count()


def order_of(arrived_at: float, priority: int) -> tuple[float, int]:
    """The place of a request that arrived then, on the event loop's clock. Where there is not room for all,
    the lowest goes first, as in the engines; no two are equal."""
    return arrived_at - priority * PRIORITY_S, next(_numbers)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a client's call came, and when its client stops listening, whatever its requests say; in the event
    loop's time."""

    at: float
    deadline: float = math.inf

    @classmethod
    def now(cls) -> Arrival:
        return cls(asyncio.get_running_loop().time())


class Place(Protocol):
    """The engine that has a request, as far as the request needs it."""

    def release(self, routed: RoutedRequest) -> None:
        """Forgets the request; where the engine has not said its end, it is cancelled there."""


class RoutedRequest:
    """Lives in the router's event loop, from acceptance to its last delta.

    Engines may end while they work on it: `displace` takes it off one, the router puts it onto another, and
    its reader sees one sequence of tokens. (A beam search, which delivers at its end only, starts anew.)
    Tokens that its reader has not taken wait here and are taken together, so a slow reader holds up nobody
    and costs no more than its own tokens. It ends when its answer is complete, not when that has been read:
    from then on it has no engine and no hidden states.
    """

    def __init__(
        self,
        request: EngineRequest,
        arrived_at: float,
        deadline: float,
        forecast: Forecast,
        on_end: Callable[[RoutedRequest], object] = lambda _: None,
        caller: Caller = ANYBODY,
    ) -> None:
        """`arrived_at` and `deadline` are in the event loop's time. `forecast` is told how it goes. `on_end`
        is called once, when the request ends."""
        self.request, self.caller = request, caller
        self._on_end = on_end
        self.arrived_at, self.deadline = arrived_at, deadline
        self._forecast, self._tracked = forecast, forecast.accepted(request, arrived_at, caller)
        self.order = order_of(self.arrived_at, request.priority)  # never changes
        self.hidden: HiddenSlice | None = None  # kept until it ends: a replacement engine reads it again
        self.hidden_lost = False  # set when the engine could not read them
        self.place: Place | None = None  # the engine that has it, or will; set by the engine's link
        self.received: list[int] = []  # tokens from all engines so far
        self.losses = 0  # engines that died while they worked on it
        self.encodings = 0  # how often its hidden states were lost
        self._pending: Delta | None = None  # received and not taken
        self.ended = False
        self._wake = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_at(deadline + DEADLINE_GRACE_S, self.expire)

    def deliver(self, delta: Delta) -> None:
        """Takes in what the current engine sent."""
        if self.ended:
            return
        self._forecast.received(self._tracked, delta)
        if isinstance(delta.error, HiddenStatesLost | Unavailable):
            # The request goes on with hidden states that are encoded again, or on another engine.
            self.hidden_lost |= isinstance(delta.error, HiddenStatesLost)
            self.displace()
        elif delta.last:
            self._end(delta)
        else:
            self._add(delta)

    def displace(self) -> None:
        """Takes it off an engine that does not have it any more."""
        self.place = None
        self._forecast.displaced(self._tracked)
        self._wake.set()

    def withdraw(self) -> None:
        """Takes it off its engine, if it is on one, and tells the engine."""
        if self.place is not None:
            self.place.release(self)
            self.place = None

    def fail(self, error: TandemError) -> None:
        """Ends it with an error, unless it has ended."""
        self._end(Delta(self.request.request_id, [], error=error))

    def expire(self) -> None:
        """Ends it because its time is over, with the tokens it has got."""
        self._end(Delta(self.request.request_id, [], finish_reason="deadline"))

    def in_time(self, *, contended: bool) -> bool:
        """Whether there is time for it: for all of its answer, as far as that can be foreseen, where its room
        is `contended`."""
        left_s = self.deadline - asyncio.get_running_loop().time()
        return self._forecast.in_time(self._tracked, left_s) if contended else left_s > 0

    async def take(self, not_before: float = 0.0) -> Delta | None:
        """Everything received since the last call, as one delta; None where it first needs an engine.

        Unless it ends, tokens gather until `not_before`, in the event loop's time. The deadline bounds
        the wait. It is not to be called again once it has given the last delta.
        """
        loop = asyncio.get_running_loop()
        while not self.ended:
            if self._pending is not None and (self.place is None or loop.time() >= not_before):
                break
            if self.place is None:
                return None
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if self._pending is None else not_before):
                    await self._wake.wait()
        delta, self._pending = self._pending, None
        if delta is None:
            return None
        logprobs = None if self.request.decoding.logprobs is None else delta.logprobs or []
        # Engines know it by an id of their link's.
        return delta._replace(request_id=self.request.request_id, logprobs=logprobs)

    def close(self) -> None:
        """Nobody reads it any more: one that has not ended is cancelled."""
        self._end(Delta(self.request.request_id, [], finish_reason="cancelled"))
        self._let_go()  # what it got while it ended goes, too

    def _add(self, delta: Delta) -> None:
        self.received += delta.token_ids
        if self._pending is None:
            self._pending = delta
            self._wake.set()  # else the reader knows, or lets them gather
        else:
            self._pending = self._pending.merged(delta)

    def _end(self, last: Delta) -> None:
        if self.ended:
            return
        self.ended = True
        self._add(last)
        self._timer.cancel()
        self._forecast.ended(self._tracked)
        self._let_go()
        self._on_end(self)
        self._wake.set()

    def _let_go(self) -> None:
        self.withdraw()
        self.hidden = None
