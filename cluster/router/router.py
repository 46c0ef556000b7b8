"""The router of one ingress replica: which worker does what, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from tandem.cluster.config import ServeConfig
from tandem.cluster.messages import HandoffTotals
from tandem.cluster.router.encoder_pool import EncoderCounters, EncoderPool
from tandem.cluster.router.engine_pool import EnginePool
from tandem.cluster.router.routed_request import Flight
from tandem.cluster.router.staging import Staging
from tandem.errors import InternalError, Overloaded, Unavailable
from tandem.workers.request import Delta, EngineRequest, EngineStats

# A request whose engines keep dying under it may be what kills them.
MAX_LOSSES = 4


@dataclass(frozen=True, slots=True)
class RouterStats:
    """A snapshot for metrics. Counters only grow."""

    encoder_replicas: int  # 0 where decoders encode by themselves
    engines: dict[str, EngineStats]  # by engine id: those that accept requests
    handoffs: dict[str, HandoffTotals]  # likewise
    messages: dict[str, int]  # likewise; counters: step messages to this router that told of requests
    outstanding: int  # sequences accepted and not ended
    waiting: int  # of these, those that wait for room on an engine, encoded or not
    queued_encoder_tokens: int
    encoder: EncoderCounters
    encoder_cache_bytes: int
    resubmitted: int  # counter: requests moved to another engine
    generated_tokens: int  # counter: given to readers


class Router:
    """Turns requests into streams of deltas. Lives in one event loop."""

    def __init__(
        self,
        config: ServeConfig,
        identity: str,
        encoder: DeploymentHandle[Any] | None,
        decoder: DeploymentHandle[Any],
    ) -> None:
        """`identity` is that of the workers to be used: see `discovery.identity_of`."""
        self._config = config
        self._encoders = (
            None if encoder is None else EncoderPool(config, identity, encoder, uuid.uuid4().hex[:8])
        )
        self._engines = EnginePool(identity, decoder, config.replica_wait_s)
        self._staging = Staging(
            config.staged_encoder_tokens, config.replica_wait_s, lambda: self._engines.ready
        )
        self._flights: set[Flight] = set()
        self._accepting = True
        self._resubmitted = 0
        self._generated_tokens = 0

    async def start(self) -> None:
        """Finds the workers and attaches to the engines; those that come later are found later. Call
        once, in the event loop that will generate."""
        if self._encoders is not None:
            await self._encoders.start()
        await self._engines.start()

    async def drain(self) -> None:
        """Refuses new requests; returns when those that are here have ended."""
        self._accepting = False
        while self._flights:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends all requests with Unavailable and detaches."""
        self._accepting = False
        for flight in list(self._flights):
            flight.fail(Unavailable("the server shuts down"))
        if self._encoders is not None:
            await self._encoders.close()
        await self._engines.close()

    def check_room(self, sequences: int = 1) -> None:
        """Raises Overloaded where not so many more would be accepted now, Unavailable where none would."""
        if not self._accepting:
            raise Unavailable("the server shuts down")
        limit, there = self._config.limits.queued_requests, len(self._flights)
        if there + sequences > limit:
            raise Overloaded(
                f"{there} sequences are in work and {sequences} more exceed {limit}; try again later"
            )

    @contextmanager
    def accept(self, requests: Sequence[EngineRequest]) -> Iterator[list[Flight]]:
        """Accepts all of the requests, each for one call of `deltas`, or none. Their `timeout_s` counts from
        here; on leaving, those that have not ended are cancelled. Raises as `check_room`."""
        self.check_room(len(requests))
        now = asyncio.get_running_loop().time()
        flights = []
        for request in requests:
            timeout_s = self._config.limits.timeout_s if request.timeout_s is None else request.timeout_s
            flights.append(Flight(request, now + timeout_s, self._flights.discard))
        self._flights.update(flights)
        try:
            yield flights
        finally:
            for flight in flights:
                flight.close()

    async def deltas(
        self, flight: Flight, gather_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[Delta]:
        """What has been accepted: each delta has all tokens since the one before, however slowly they are
        read, and the last has a `finish_reason`. Between one and the next tokens gather for `gather_s()`
        seconds; the last comes at once.

        Close the generator or cancel its task to cancel the request. Raises Unavailable where workers are
        missing for too long or keep failing; InvalidRequest where the engine refuses.
        """
        loop, taken_at = asyncio.get_running_loop(), 0.0
        try:
            while True:
                delta = await flight.take(taken_at + gather_s() if taken_at else 0.0)
                if delta is None:
                    await self._place(flight)
                    continue
                if delta.error is not None:
                    raise delta.error
                taken_at = loop.time()
                self._generated_tokens += len(delta.token_ids)
                self._generated_tokens += sum(len(found.token_ids) for found in delta.hypotheses or ())
                yield delta
                if delta.last:
                    return
        finally:
            flight.close()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta]:
        """Accepts one request; its deltas."""
        with self.accept([request]) as [flight]:
            async with aclosing(self.deltas(flight)) as deltas:
                async for delta in deltas:
                    yield delta

    async def ready(self) -> bool:
        """Whether a request sent now would find an encoder and an engine."""
        encoders = self._encoders is None or self._encoders.replicas > 0
        return self._accepting and self._engines.ready and encoders

    def stats(self) -> RouterStats:
        encoders = self._encoders
        engines = [client for client in self._engines.clients if client.accepting]
        return RouterStats(
            encoder_replicas=encoders.replicas if encoders else 0,
            engines={c.engine_id: c.stats for c in engines if c.stats},
            handoffs={c.engine_id: c.handoff for c in engines},
            messages={c.engine_id: c.messages for c in engines},
            outstanding=len(self._flights),
            waiting=self._staging.waiting + self._engines.waiting,
            queued_encoder_tokens=encoders.queued_tokens if encoders else 0,
            encoder=encoders.counters if encoders else EncoderCounters(),
            encoder_cache_bytes=encoders.cache_bytes if encoders else 0,
            resubmitted=self._resubmitted,
            generated_tokens=self._generated_tokens,
        )

    async def _place(self, flight: Flight) -> None:
        """Has the input encoded and the request sent to an engine; again, where it was placed before.
        Leaves a flight that is over its time ended."""
        if flight.hidden is not None and flight.hidden_lost and self._encoders is not None:
            self._encoders.forget(flight.hidden)
            flight.hidden, flight.hidden_lost = None, False
            flight.encodings += 1
        if flight.losses >= MAX_LOSSES:
            # Not Unavailable, which clients try again.
            raise InternalError(f"{flight.losses} decoders died while they worked on this request")
        if flight.encodings >= self._config.encoder_attempts:
            raise Unavailable(f"the encoder's output was lost {flight.encodings} times")
        self._resubmitted += bool(flight.losses or flight.encodings)
        try:
            async with asyncio.timeout_at(flight.deadline), self._staging.room(flight):
                announced = False
                if self._encoders is not None and flight.hidden is None:
                    encoder_input = flight.request.encoder
                    async with aclosing(self._encoders.encode(encoder_input, flight.order)) as tries:
                        async for hidden in tries:  # one, unless it fails
                            flight.withdraw()
                            if flight.ended:
                                return
                            flight.hidden, flight.hidden_lost = hidden, False
                            announced = self._engines.announce(flight)  # and go on once it is encoded
                if not announced:
                    await self._engines.submit(flight)
        except TimeoutError:
            flight.expire()
