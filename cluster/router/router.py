"""The router of one ingress replica: which worker does what, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from ray.serve.handle import DeploymentHandle

from tandem.cluster.callers import ANYBODY, CALLER, Caller
from tandem.cluster.config import ServeConfig
from tandem.cluster.messages import HandoffTotals
from tandem.cluster.router.encoder_pool import EncoderCounters, EncoderPool
from tandem.cluster.router.engine_link import EngineLink
from tandem.cluster.router.engine_pool import EnginePool
from tandem.cluster.router.forecast import WAIT_MARGIN, Forecast
from tandem.cluster.router.hidden_states import HiddenStates
from tandem.cluster.router.routed_request import Arrival, RoutedRequest
from tandem.cluster.router.staging import Staging
from tandem.errors import DeadlineExceeded, InternalError, Overloaded, Refusal, Unavailable
from tandem.workers.request import Delta, EncodeRequest, EngineRequest, EngineStats

RequestT = TypeVar("RequestT", EncodeRequest, EngineRequest)

# A request whose engines keep dying under it may be what kills them.
MAX_LOSSES = 4


@dataclass(frozen=True, slots=True)
class RouterStats:
    """A snapshot for metrics."""

    encoder_replicas: int  # 0 where decoders encode by themselves
    # By engine id, for the engines that accept requests:
    engines: dict[str, EngineStats]
    handoffs: dict[str, HandoffTotals]
    messages: dict[str, int]  # counters: step messages to this router that had deltas
    outstanding: int  # sequences accepted and not ended, and inputs whose hidden states are awaited
    waiting: int  # outstanding sequences that wait for room on an engine, encoded or not
    queued_encoder_tokens: int
    encoder: EncoderCounters
    encoder_cache_bytes: int
    media_cache_bytes: int  # outputs of fronts that encoders keep
    resubmitted: int  # counter: requests moved to another engine
    generated_tokens: int  # counter: tokens given to readers


@dataclass(slots=True, eq=False)
class Room:
    """Room for a recording while it is transcribed, window by window: see `Router.keep_room`."""

    audio_s: float  # its spectrogram's, which the ingress holds; whoever decodes it may correct it


class Router:
    """Turns requests into streams of deltas. Lives in one event loop."""

    def __init__(
        self,
        config: ServeConfig,
        identity: str,
        encoder: DeploymentHandle[Any] | None,
        decoder: DeploymentHandle[Any],
    ) -> None:
        """Only workers of this `identity` are used: see `identity.identity_of`. `encoder` is None where
        decoders encode by themselves."""
        self._config = config
        self._colocated = encoder is None
        # Decoders that encode by themselves do it for `hidden_states` as encoders would.
        handle = decoder if encoder is None else encoder
        self._encoders = EncoderPool(config, identity, handle, uuid.uuid4().hex[:8])
        self._engines = EnginePool(config, identity, decoder, self._heard)
        self._forecast = Forecast(lambda: self._engines.free_slots, time.monotonic)
        self._staging = Staging(
            config.staged_encoder_tokens, config.replica_wait_s, lambda: self._engines.ready
        )
        self._requests: set[RoutedRequest] = set()
        self._accepted: Counter[Caller] = Counter()  # of them, and inputs whose hidden states are asked for
        self._rooms: set[Room] = set()
        self._media_bytes = 0  # files of the requests that were accepted and not closed
        self._hidden_states = HiddenStates(self._encoders, config)
        self._accepting, self._closed = True, False
        self._resubmitted = 0
        self._generated_tokens = 0

    async def start(self) -> None:
        """Finds the workers and attaches to the engines; workers that start later are found later. Call it
        once, in the event loop that will generate."""
        if not self._colocated:
            await self._encoders.start()
        await self._engines.start()

    async def drain(self) -> None:
        """Refuses new requests; returns when the accepted ones have ended."""
        self._accepting = False
        while self._requests or self._rooms or self._hidden_states.outstanding:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Ends all requests with Unavailable and detaches."""
        self._accepting, self._closed = False, True
        for routed in list(self._requests):
            routed.fail(Unavailable("the server shuts down"))
        await self._encoders.close()
        await self._engines.close()

    def check_room(
        self, sequences: int = 1, media_bytes: int = 0, audio_s: float = 0.0, *, priority: int | None = 0
    ) -> None:
        """Raises Overloaded where so many more sequences, bytes of media or seconds of recordings would
        exceed a limit, or would wait too long for a slot; Unavailable where the server shuts down. Without a
        `priority` they want none."""
        if not self._accepting:
            raise Unavailable("the server shuts down", refused="shutdown")
        limits = self._config.limits
        caller = CALLER.get()
        if self._has_share(caller, sequences):
            sequences = 0  # accepted, whatever of the queue other callers have
        wait_s = None if priority is None else self._forecast.wait_s(priority, caller)
        there: float
        reason: Refusal
        for reason, there, more, limit, what in (
            ("queue", self._outstanding, sequences, limits.queued_requests, "sequences"),
            ("media", self._media_bytes, media_bytes, limits.queued_media_bytes, "bytes of media"),
            ("audio", self._audio_s, audio_s, limits.queued_audio_seconds, "s of audio"),
        ):
            # A recording beyond the limit goes alone.
            if more and there + more > limit and not (audio_s and not there):
                raise Overloaded(
                    f"{there:.0f} {what} are in work and {more:.0f} more exceed {limit:g}",
                    refused=reason,
                    retry_after_s=wait_s or None,
                )
        longest_s = self._config.max_queue_wait_s
        if wait_s is not None and WAIT_MARGIN * wait_s > longest_s:
            raise Overloaded(
                f"a request would wait {wait_s:.1f} s, max_queue_wait_s is {longest_s:g}",
                refused="wait",
                retry_after_s=wait_s,
            )

    @contextmanager
    def keep_room(self, media_bytes: int, audio_s: float, *, priority: int = 0) -> Iterator[Room]:
        """Room for a recording of this length while the block runs: requests that are accepted `within` it
        are not refused, however full the queue is by then or if the server begins to shut down. Raises what
        `check_room` raises."""
        self.check_room(1, media_bytes, audio_s, priority=priority)
        room = Room(audio_s)
        self._rooms.add(room)
        self._media_bytes += media_bytes
        try:
            yield room
        finally:
            self._media_bytes -= media_bytes
            self._rooms.discard(room)

    @contextmanager
    def accept(
        self,
        requests: Sequence[EngineRequest],
        *,
        arrival: Arrival | None = None,
        within: Room | None = None,
    ) -> Iterator[list[RoutedRequest]]:
        """Accepts all of the requests, each for one call of `deltas`, or none; they are `CALLER`'s. Their
        `timeout_s` counts from their `arrival`, which is now where it is None; leaving the block cancels the
        requests that have not ended.

        Raises what `check_room` raises, and DeadlineExceeded where the answers would not be whole in time;
        `within` a room only Unavailable, where the server is gone; InvalidRequest for a priority beyond the
        caller's.
        """
        caller = CALLER.get()
        for request in requests:
            caller.check_priority(request.priority)
        now = Arrival.now()
        arrival = now if arrival is None else arrival
        deadlines = [min(arrival.at + self._timeout_s(one), arrival.deadline) for one in requests]
        if within is None:
            self.check_room(len(requests), _media_bytes(requests), priority=requests[0].priority)
            self._check_deadline(requests, caller, min(deadlines) - now.at)
        elif self._closed:
            raise Unavailable("the server shuts down")
        routed_requests = [
            RoutedRequest(_own(request, caller), arrival.at, deadline, self._forecast, self._ended, caller)
            for request, deadline in zip(requests, deadlines, strict=True)
        ]
        self._requests.update(routed_requests)
        self._accepted[caller] += len(routed_requests)
        self._media_bytes += (media_bytes := _media_bytes(requests))
        try:
            yield routed_requests
        finally:
            self._media_bytes -= media_bytes
            for routed in routed_requests:
                routed.close()

    async def deltas(
        self, routed: RoutedRequest, gather_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[Delta]:
        """The answer to an accepted request: each delta has all tokens since the one before, however slowly
        they are read, and the last has a `finish_reason`. Between two deltas tokens gather for `gather_s()`
        seconds; the last delta comes at once.

        Close the generator or cancel its task to cancel the request. Raises Unavailable where workers are
        missing for too long or keep failing; InvalidRequest where the engine refuses the request.
        """
        loop, taken_at = asyncio.get_running_loop(), 0.0
        joined_at: float | None = None  # an engine's batch
        try:
            while True:
                delta = await routed.take(taken_at + gather_s() if taken_at else 0.0)
                if delta is None:
                    await self._place(routed)
                    continue
                if delta.error is not None:
                    raise delta.error
                taken_at = loop.time()
                if routed.trace is not None and delta.queued_s is not None:
                    joined_at = routed.arrived_at + delta.queued_s
                    waited = "queue" if routed.ready_at == routed.arrived_at else "handoff"
                    routed.trace.add(waited, routed.ready_at, joined_at)
                self._generated_tokens += len(delta.token_ids)
                self._generated_tokens += sum(len(found.token_ids) for found in delta.hypotheses or ())
                yield delta
                if delta.last:
                    return
        finally:
            if routed.trace is not None and joined_at is not None:
                routed.trace.add("decode", joined_at, loop.time(), generated_tokens=len(routed.received))
            routed.close()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Delta]:
        """Accepts one request and yields its deltas."""
        with self.accept([request]) as [routed]:
            async with aclosing(self.deltas(routed)) as deltas:
                async for delta in deltas:
                    yield delta

    async def hidden_states(
        self, requests: Sequence[EncodeRequest], *, arrival: Arrival | None = None
    ) -> list[torch.Tensor]:
        """The hidden states [length, d_model] of each input, float32 or bfloat16 on the CPU, which are not to
        be written to. Their time counts as `accept`'s. Cancel the caller's task to give them up.

        Raises what `check_room` raises; Unavailable where workers are missing for too long or keep failing;
        DeadlineExceeded; InvalidRequest where a worker refuses an input.
        """
        media_bytes = _media_bytes(requests)
        self.check_room(len(requests), media_bytes, priority=None)
        caller = CALLER.get()
        for request in requests:
            caller.check_priority(request.priority)
        own = [_own(request, caller) for request in requests]
        self._media_bytes += media_bytes
        self._accepted[caller] += len(own)
        try:
            return await self._hidden_states.of(own, Arrival.now() if arrival is None else arrival, caller)
        finally:
            self._media_bytes -= media_bytes
            self._leave(caller, len(own))

    async def ready(self) -> bool:
        """Whether a request would find an encoder and an engine."""
        encoders = self._colocated or self._encoders.replicas > 0
        return self._accepting and self._engines.ready and encoders

    def stats(self) -> RouterStats:
        encoders = self._encoders
        engines = [link for link in self._engines.links if link.accepting]
        return RouterStats(
            encoder_replicas=0 if self._colocated else encoders.replicas,
            engines={link.engine_id: link.stats for link in engines if link.stats},
            handoffs={link.engine_id: link.handoff for link in engines},
            messages={link.engine_id: link.messages for link in engines},
            outstanding=self._outstanding,
            waiting=self._staging.waiting + self._engines.waiting,
            queued_encoder_tokens=encoders.queued_tokens,
            encoder=encoders.counters,
            encoder_cache_bytes=encoders.cache_bytes,
            media_cache_bytes=encoders.media_cache_bytes,
            resubmitted=self._resubmitted,
            generated_tokens=self._generated_tokens,
        )

    def _has_share(self, caller: Caller, sequences: int) -> bool:
        """Whether so many more sequences are within the caller's share of the queue, by its weight among the
        callers that have any."""
        if caller is ANYBODY:
            return False  # all are one caller
        weights = sum(each.quotas.weight for each in {caller, *self._accepted})
        share = self._config.limits.queued_requests * caller.quotas.weight / weights
        return self._accepted[caller] + sequences <= share

    def _ended(self, routed: RoutedRequest) -> None:
        self._requests.discard(routed)
        self._leave(routed.caller, 1)

    def _leave(self, caller: Caller, sequences: int) -> None:
        self._accepted[caller] -= sequences
        if not self._accepted[caller]:
            del self._accepted[caller]

    @property
    def _outstanding(self) -> int:
        return len(self._requests) + self._hidden_states.outstanding

    @property
    def _audio_s(self) -> float:
        return sum(room.audio_s for room in self._rooms)

    def _timeout_s(self, request: EngineRequest) -> float:
        return self._config.limits.timeout_s if request.timeout_s is None else request.timeout_s

    def _check_deadline(self, requests: Sequence[EngineRequest], caller: Caller, left_s: float) -> None:
        whole_s = self._forecast.whole_s(requests, caller)
        if left_s <= 0:
            raise DeadlineExceeded("the request's time was over before it could begin", refused="deadline")
        if whole_s is not None and whole_s > left_s:
            raise DeadlineExceeded(
                f"the whole answer would take {whole_s:.2g} s, the request has {left_s:.2g} s left",
                refused="deadline",
                retry_after_s=self._forecast.wait_s(requests[0].priority, caller) or None,
            )

    def _heard(self, link: EngineLink) -> None:
        waiting = link.stats is not None and link.stats.waiting > 0
        self._forecast.heard(
            waiting or bool(self._staging.waiting or self._engines.waiting or self._encoders.queued_tokens)
        )

    async def _place(self, routed: RoutedRequest) -> None:
        """Has the input encoded and the request sent to an engine, both again where that was lost. A request
        whose time is over meanwhile is ended."""
        if routed.hidden is not None and routed.hidden_lost:
            self._encoders.forget(routed.hidden)
            routed.hidden, routed.hidden_lost = None, False
            routed.encodings += 1
        if routed.losses >= MAX_LOSSES:
            # Not Unavailable: clients try that again.
            raise InternalError(f"{routed.losses} decoders died while they worked on this request")
        if routed.encodings >= self._config.encoder_attempts:
            raise Unavailable(f"the encoder's output was lost {routed.encodings} times")
        self._resubmitted += bool(routed.losses or routed.encodings)
        try:
            async with asyncio.timeout_at(routed.deadline), self._staging.room(routed):
                announced = False
                encoder_input = routed.request.encoder
                if not self._colocated and routed.hidden is None and encoder_input.token_ids:
                    begun = asyncio.get_running_loop().time()
                    tried = self._encoders.encode(encoder_input, routed.order, routed.deadline, routed.caller)
                    async with aclosing(tried) as tries:
                        async for hidden in tries:  # one, unless it fails
                            routed.withdraw()
                            if routed.ended:
                                return
                            routed.hidden, routed.hidden_lost = hidden, False
                            announced = self._engines.announce(routed)  # the loop ends once it is encoded
                    routed.ready_at = asyncio.get_running_loop().time()
                    if routed.trace is not None:
                        tokens = len(encoder_input.token_ids)
                        routed.trace.add("encode", begun, routed.ready_at, prompt_tokens=tokens)
                if not announced:
                    await self._engines.submit(routed)
        except TimeoutError:
            routed.expire()


def _own(request: RequestT, caller: Caller) -> RequestT:
    """The request with an input that no other caller's equals: who asks for what another has asked for would
    see by the time it takes that it is in a cache."""
    if caller is ANYBODY:
        return request
    key = f"{caller.name}/{request.encoder.key}"
    encoder = dataclasses.replace(request.encoder, key=key, owner=caller.name)
    return dataclasses.replace(request, encoder=encoder)


def _media_bytes(requests: Sequence[EngineRequest | EncodeRequest]) -> int:
    """What the requests' files take, those of one input once."""
    inputs = {request.encoder.key: request.encoder for request in requests}
    return sum(len(media.data) for one in inputs.values() for media in one.media)
