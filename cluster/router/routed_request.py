"""One request at the router: where it is, what it has got, what its reader has not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from typing import Protocol

from tandem.cluster.handoff import HiddenSlice
from tandem.cluster.messages import WireDelta
from tandem.errors import HiddenStatesLost, TandemError, Unavailable
from tandem.limits import PRIORITY_S
from tandem.outputs import FinishReason, TokenLogprobs
from tandem.workers.request import Delta, EngineRequest, Hypothesis

# The engine ends a late request itself and says how far it got; this is how long we wait for that.
DEADLINE_GRACE_S = 2.0

_numbers = itertools.count()


class Place(Protocol):
    """The engine that has a request, as far as the request needs it."""

    def release(self, routed: RoutedRequest) -> None:
        """Forgets the request; where the engine has not said its end, it is cancelled there."""


class RoutedRequest:
    """Lives in the router's event loop, from acceptance to the one terminal answer.

    Engines come and go under it: `displace` takes it off one, the router puts it onto another, and its
    reader sees one sequence of tokens. (Beams, which deliver at the end only, start anew.) Tokens that its
    reader has not taken yet wait here and are taken together, so a slow reader holds up nobody and costs no
    more than its own tokens. It ends when its answer is there, not when that has been read: from then on it
    has no engine and no hidden states.
    """

    def __init__(
        self,
        request: EngineRequest,
        deadline: float,
        on_end: Callable[[RoutedRequest], object] = lambda _: None,
    ) -> None:
        """`on_end` is called once, when it ends, however it does."""
        self.request = request
        self._on_end = on_end
        self.deadline = deadline  # in the event loop's time
        self.arrived_at = asyncio.get_running_loop().time()
        # Who goes first where there is not room for all, as in the engines. Never changes.
        self.order = (self.arrived_at - request.priority * PRIORITY_S, next(_numbers))
        self.hidden: HiddenSlice | None = None  # kept until it ends: a replacement engine reads it again
        self.hidden_lost = False  # the engine could not read them
        self.place: Place | None = None  # the engine that has it, or will; set by the engine's link
        self.received: list[int] = []  # tokens of all engines so far
        self.losses = 0  # engines that died under it
        self.encodings = 0  # how often its hidden states vanished
        self._tokens: list[int] = []  # received and not taken
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] | None = None
        self._queued_s: float | None = None
        self._last: tuple[FinishReason | None, int | None, TandemError | None] | None = None
        self._hypotheses: list[Hypothesis] | None = None
        self._wake = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_at(deadline + DEADLINE_GRACE_S, self.expire)

    @property
    def ended(self) -> bool:
        return self._last is not None

    def deliver(self, delta: WireDelta) -> None:
        """Takes in what the current engine sent."""
        if self.ended:
            return
        if not self._tokens:  # else the reader knows, or lets them gather
            self._wake.set()
        self.received += delta.token_ids
        self._tokens += delta.token_ids
        if delta.queued_s is not None:
            self._queued_s = delta.queued_s
        self._hypotheses = delta.hypotheses
        if delta.logprobs is not None:
            self._logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        if isinstance(delta.error, HiddenStatesLost):
            self.hidden_lost = True
            self.displace()
        elif isinstance(delta.error, Unavailable):  # that engine is
            self.displace()
        elif delta.error is not None or delta.finish_reason is not None:
            self._end(delta.finish_reason, delta.stop_reason, delta.error)

    def displace(self) -> None:
        """Its engine no longer has it."""
        self.place = None
        self._wake.set()

    def withdraw(self) -> None:
        """Takes it off its engine, if it is on one."""
        if self.place is not None:
            self.place.release(self)
            self.place = None

    def fail(self, error: TandemError) -> None:
        """Ends it with an error, unless it has ended."""
        self._end(None, None, error)

    def expire(self) -> None:
        """Ends it because its time is over, with the tokens it has got."""
        self._end("deadline", None, None)

    async def take(self, not_before: float = 0.0) -> Delta | None:
        """Everything received since the last call, as one delta; None where it first needs an engine.

        Unless it ends, tokens gather until `not_before`, in the event loop's time. Bounded in time by the
        deadline.
        """
        loop = asyncio.get_running_loop()
        while not self.ended:
            if self._tokens and (self.place is None or loop.time() >= not_before):
                break
            if self.place is None:
                return None
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(not_before if self._tokens else None):
                    await self._wake.wait()
        finish_reason, stop_reason, error = self._last or (None, None, None)
        delta = Delta(
            request_id=self.request.request_id,
            token_ids=self._tokens,
            logprobs=self._logprobs if self.request.decoding.logprobs is not None else None,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            error=error,
            queued_s=self._queued_s,
            hypotheses=self._hypotheses,
            prompt_logprobs=self._prompt_logprobs,
        )
        self._tokens, self._logprobs, self._queued_s, self._prompt_logprobs = [], [], None, None
        return delta

    def close(self) -> None:
        """Nobody reads it any more: one that has not ended is cancelled."""
        self._end("cancelled", None, None)
        self._let_go()  # of what it got while it ended

    def _end(
        self, finish_reason: FinishReason | None, stop_reason: int | None, error: TandemError | None
    ) -> None:
        if self.ended:
            return
        self._last = (finish_reason, stop_reason, error)
        self._timer.cancel()
        self._let_go()
        self._on_end(self)
        self._wake.set()

    def _let_go(self) -> None:
        self.withdraw()
        self.hidden = None
