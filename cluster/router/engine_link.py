"""A router's end of the link to one engine: requests sent, deltas received, and noticing the engine's end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError

from tandem.cluster.background import Background
from tandem.cluster.callers import Caller
from tandem.cluster.messages import (
    CALL_TIMEOUT_S,
    LEASE_S,
    HandoffTotals,
    StepMessage,
    Submission,
    read_message,
)
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.telemetry import logs
from tandem.workers.request import EngineStats

logger = logging.getLogger(__name__)

DETACH_TIMEOUT_S = 1.0  # for the call that says goodbye
LOOKS = 5  # during the longest silence of an engine
KEPT = 256  # encoder inputs that a link remembers


class EngineLink:
    """Requests go out in batches: all that have gathered while the last batch was acknowledged.

    Every placement of a request has an id of its own, so that late messages about an earlier placement are
    ignored.
    """

    def __init__(
        self, engine_id: str, actor: Any, silence_s: float, on_change: Callable[[EngineLink], None]
    ) -> None:
        """An engine that is not heard of for `silence_s` is lost. `on_change` is called when the engine has
        said something, accepts, may have room, or is lost."""
        self.engine_id = engine_id
        self.stats: EngineStats | None = None
        self.handoff = HandoffTotals()
        self.messages = 0  # counter: messages that had deltas
        self.routed_requests: dict[str, RoutedRequest] = {}  # by placement id
        self.keys: Counter[str] = Counter()  # their encoder inputs', counted
        self.callers: Counter[Caller] = Counter()  # theirs, too
        # Keys of the latest inputs that the engine keeps beyond a request's end, while it has pages for them.
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._actor = actor
        self._silence_s = silence_s
        self._on_change = on_change
        self._link_id = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._ids: dict[RoutedRequest, str] = {}
        self._outbox: dict[str, Submission] = {}
        self._cancelled: list[str] = []
        self._flushing = False
        # One call at a time: the actor may see two calls in another order, and a cancellation that overtakes
        # its request is ignored.
        self._exchanging = asyncio.Lock()
        self._accepting = False
        self._lost = False
        self._heard = True  # of the engine, since the last look
        self._background = Background()

    @property
    def accepting(self) -> bool:
        return self._accepting and not self._lost

    def load(self) -> float:
        """How full the engine is: sequences on it and on their way to it over its batch size, or the share of
        its pages in use, whichever is greater."""
        stats = self.stats
        if stats is None:  # not attached yet
            return math.inf
        sequences = max(stats.running + stats.waiting + len(self._outbox), len(self.routed_requests))
        pages = 1 - stats.free_pages / stats.total_pages
        return max(sequences / stats.max_running, pages)

    @property
    def free_slots(self) -> int:
        """Slots of the engine's batch that are neither taken nor waited for."""
        stats = self.stats
        if stats is None:
            return 0
        taken = max(stats.running + stats.waiting + len(self._outbox), len(self.routed_requests))
        return max(0, stats.max_running - taken)

    def holds(self, key: str) -> bool:
        """Whether the engine has the encoder input, or probably still has it."""
        return key in self.keys or key in self._kept

    async def run(self) -> None:
        """Attaches and receives until the engine has drained, is lost, or this task is cancelled. On return
        all its requests are displaced."""
        try:
            stream = self._actor.attach.options(num_returns="streaming").remote(self._link_id)
            async with asyncio.timeout(CALL_TIMEOUT_S):
                self._receive(read_message(await (await anext(stream))))
            self._background.start(self._renew(), "renew the lease")
            async with asyncio.timeout(None) as silence:
                self._background.start(self._listen(silence), "listen")
                while not self._lost:
                    self._receive(read_message(await (await anext(stream))))
        except StopAsyncIteration:
            pass  # the engine has drained
        except (RayError, TimeoutError) as error:
            if self.stats is not None:  # else it was lost before, and the news has not come round
                count, why = len(self.routed_requests), logs.cause(error)
                logger.warning("engine %s is lost, %d requests go elsewhere: %s", self.engine_id, count, why)
        finally:
            self._accepting, self._lost = False, True
            for routed in self._take_all():
                routed.losses += 1
                routed.displace()
            self._on_change(self)
            await self._background.close()
            # The engine may be alive and only out of reach, or this router closes: do not leave it to the
            # lease.
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(DETACH_TIMEOUT_S):
                    await self._actor.detach.remote(self._link_id)

    def submit(self, routed: RoutedRequest) -> None:
        request_id = f"{self._link_id}.{next(self._numbers)}"
        now = asyncio.get_running_loop().time()
        encoder_input = routed.request.encoder
        made = encoder_input.media or encoder_input.features is not None
        if routed.hidden is not None and made:  # the engine reads what an encoder made of them
            encoder_input = dataclasses.replace(encoder_input, media=(), features=None)
        request = dataclasses.replace(
            routed.request,
            request_id=request_id,
            encoder=encoder_input,
            generated_ids=(*routed.request.generated_ids, *routed.received),
            timeout_s=max(0.0, routed.deadline - now),
            waited_s=now - routed.arrived_at,
        )
        routed.place = self
        self._ids[routed] = request_id
        self.routed_requests[request_id] = routed
        self.keys[request.encoder.key] += 1
        self.callers[routed.caller] += 1
        if request.keeps_input:
            self._kept[request.encoder.key] = None
            self._kept.move_to_end(request.encoder.key)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._outbox[request_id] = Submission(request, routed.hidden)
        self._flush_soon()

    def release(self, routed: RoutedRequest) -> None:
        """See `Place`."""
        request_id = self._ids.get(routed)
        if request_id is None:
            return
        self._remove(request_id)
        if self._outbox.pop(request_id, None) is None:
            self._cancelled.append(request_id)
            self._flush_soon()

    # --- Within ---

    def _receive(self, message: StepMessage) -> None:
        self.messages += bool(message.deltas)
        for delta in message.deltas:
            if (routed := self.routed_requests.get(delta.request_id)) is None:
                continue
            if delta.last:
                self._remove(delta.request_id)
            routed.deliver(delta)
        self.stats, self.handoff = message.stats, message.handoff
        self._accepting, self._heard = message.accepting, True
        self._on_change(self)

    def _remove(self, request_id: str) -> RoutedRequest:
        routed = self.routed_requests.pop(request_id)
        del self._ids[routed]
        key = routed.request.encoder.key
        self.keys[key] -= 1
        if not self.keys[key]:
            del self.keys[key]
        self.callers[routed.caller] -= 1
        if not self.callers[routed.caller]:
            del self.callers[routed.caller]
        return routed

    def _take_all(self) -> list[RoutedRequest]:
        self._outbox.clear()
        return [self._remove(request_id) for request_id in list(self.routed_requests)]

    def _flush_soon(self) -> None:
        if not self._flushing and not self._lost:
            self._flushing = True
            self._background.start(self._flush(), "flush")

    async def _flush(self) -> None:
        try:
            while self._outbox or self._cancelled:
                await self._exchange()
        finally:
            self._flushing = False

    async def _exchange(self) -> None:
        async with self._exchanging:
            outbox, self._outbox = self._outbox, {}
            cancelled, self._cancelled = self._cancelled, []
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    taken = await self._actor.exchange.remote(self._link_id, list(outbox.values()), cancelled)
            except (RayError, TimeoutError) as error:
                if not self._lost:
                    logger.warning("engine %s does not take requests: %s", self.engine_id, logs.cause(error))
                self._lost = True  # `run` sees this with the next message, or has ended
                return
            if not taken:
                self._accepting = False
                for request_id in outbox:
                    if request_id in self.routed_requests:
                        self._remove(request_id).displace()

    async def _listen(self, silence: asyncio.Timeout) -> None:
        """Ends `silence` where nothing is heard of the engine, which says something every second. The time is
        counted in looks: an event loop that was held up itself has not listened meanwhile."""
        silent = 0
        while silent < LOOKS:
            await asyncio.sleep(self._silence_s / LOOKS)
            silent = 0 if self._heard else silent + 1
            self._heard = False
        silence.reschedule(asyncio.get_running_loop().time())

    async def _renew(self) -> None:
        # The first calls between two processes take ten times as long: no request should wait for them.
        for _ in range(2):
            await self._exchange()
        while True:
            await asyncio.sleep(LEASE_S / 5)
            await self._exchange()
