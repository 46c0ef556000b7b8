"""The actor of a decoder group's rank 0: routers attach to it, submit to it and hear from it.

Every router has a link: a stream of step messages one way, `exchange` calls the other way, and a lease. When
a router goes away, however it does, its link ends, and its requests free their pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, HiddenLoader, HiddenSlice, PackedHidden, fetch
from tandem.cluster.messages import LEASE_S, HandoffTotals, Submission, packed_message, read_input
from tandem.cluster.replicas.encoding import accepted, packed_batch, prepare_inputs
from tandem.cluster.replicas.engine_thread import EngineThread, StepEngine
from tandem.cluster.replicas.router_link import RouterLink
from tandem.cluster.replicas.step_inbox import StepInbox
from tandem.cluster.replicas.threads import use_cpus
from tandem.cluster.telemetry import logs
from tandem.errors import HiddenStatesLost, InternalError, TandemError, Unavailable
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group, open_meeting
from tandem.workers.engine import Engine
from tandem.workers.execution.runner import Runner
from tandem.workers.request import Delta, EncoderInput, EngineRequest, EngineStats

logger = logging.getLogger(__name__)

MEDIA_THREADS = 2
STOP_TIMEOUT_S = 5.0  # for the routers to read their last messages; then for the engine to close

_Arrival = tuple[EngineRequest, HiddenSlice]


@dataclasses.dataclass(slots=True)
class _Live:
    """A request between its submission and its last delta."""

    link: RouterLink
    arriving: bool  # its hidden states or media are on their way; the engine does not have it yet
    hidden: HiddenLoader | None = None  # set when it goes to the engine


def make_engine(
    config: ServeConfig, rendezvous: str, make_runner: Callable[[EngineConfig, Group], Runner] = Runner
) -> Engine:
    """Rank 0's engine. Returns when all ranks have met."""
    engine_config = config.engine_config()
    size = engine_config.tensor_parallel_size
    use_cpus(config.decoder_cpus, config.workers_at_once)
    group = Group.create(0, size, rendezvous, engine_config.torch_device())
    return Engine(engine_config, group, make_runner)


class EngineActor:
    """An async actor. The engine steps in a thread of its own; everything else runs in the event loop."""

    def __init__(
        self, config: ServeConfig, make: Callable[[ServeConfig, str], StepEngine] = make_engine
    ) -> None:
        logs.start(config.log_format, calls=False)
        self._config, self._make = config, make
        self._background = Background()
        self._media_threads = ThreadPoolExecutor(MEDIA_THREADS, "media")  # decode while the engine steps
        self._shards: list[Any] = []
        self._links: dict[str, RouterLink] = {}
        self._live: dict[str, _Live] = {}  # every request accepted and not ended
        self._encodings = 0  # batches that `encode` is at
        self._next_handle = itertools.count()
        self._handoff = HandoffTotals()
        self._failure: str | None = None
        self._failed = asyncio.Event()
        self._accepting = False

    # --- For the supervisor ---

    async def rendezvous(self) -> str:
        """The address where the ranks of this group, which share a node, can meet."""
        where, self._meeting = open_meeting()
        return where

    async def start(self, rendezvous: str, shards: list[Any]) -> None:
        """Loads the model and begins to accept requests. Returns when all ranks have met.

        Raises ModelLoadError, InvalidRequest.
        """
        loop = asyncio.get_running_loop()

        def fail(error: BaseException) -> None:
            loop.call_soon_threadsafe(self._fail, error)

        self._shards = shards
        inbox = StepInbox(loop, self._deliver, lambda: len(self._live))
        self._thread = EngineThread(
            lambda: self._make(self._config, rendezvous),
            on_step=inbox.put,
            on_failure=fail,
        )
        self._stats = await asyncio.wrap_future(self._thread.start())
        self._background.start(self._expire_links(), "expire links")
        self._accepting = True

    async def watch(self) -> str:
        """Returns, with the reason, when the engine has failed for good."""
        await self._failed.wait()
        return self._failure or ""

    async def progress(self) -> EngineStats:
        """The engine's stats. Raises Unavailable where it has failed, or has work and makes no step."""
        if self._failure is not None:
            raise Unavailable(f"the engine failed: {self._failure}")
        if (stalled := self._thread.stalled_s()) > self._config.stall_timeout_s:
            raise Unavailable(f"the engine has work and made no step for {stalled:.0f} s")
        return self._stats

    async def drain(self) -> None:
        """Refuses new requests and those whose hidden states are not here, waits until the running ones have
        ended, and closes the engine."""
        self._accepting = False
        refused = Unavailable("the engine drains")
        arriving = [request_id for request_id, live in self._live.items() if live.arriving]
        self._deliver([Delta(request_id, [], error=refused) for request_id in arriving], self._stats)
        for link in self._links.values():
            link.wake()
        while (self._live or self._encodings) and self._failure is None:
            await asyncio.sleep(0.05)
        for link in self._links.values():
            link.close()
        # Routers detach when they have read the last message, and this process ends after that.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                while self._links:
                    await asyncio.sleep(0.01)
        await self._background.close()
        self._thread.stop()
        await asyncio.to_thread(self._thread.join, STOP_TIMEOUT_S)

    # --- For the routers ---

    async def attach(self, link_id: str) -> AsyncIterator[list[object]]:
        """Opens a link and yields packed messages, see `read_message`. The first comes at once: from then on
        the link can submit."""
        link = self._links[link_id] = RouterLink()
        try:
            yield packed_message(self._accepting, self._stats, self._handoff, [])
            while (deltas := await link.take()) is not None:
                yield packed_message(self._accepting, self._stats, self._handoff, deltas)
        finally:
            self._end(link)

    async def exchange(
        self,
        link_id: str,
        submissions: list[Submission],
        cancelled: list[str],
    ) -> bool:
        """Accepts requests and cancels others; also renews the lease.

        False: draining or an unknown link, none of the submissions was accepted.
        """
        link = self._links.get(link_id)
        if link is None or link.closed:
            return False
        link.renew()
        self._cancel(cancelled)
        if not submissions:
            return True
        if not self._accepting:
            return False
        arrivals: defaultdict[ray.ObjectRef[PackedHidden], list[_Arrival]] = defaultdict(list)
        recordings: defaultdict[str, list[EngineRequest]] = defaultdict(list)
        for request, hidden in submissions:
            link.requests.add(request.request_id)
            media = hidden is None and bool(request.encoder.media)
            self._live[request.request_id] = _Live(link, arriving=media or hidden is not None)
            if media:
                recordings[request.encoder.key].append(request)
            elif hidden is None:
                self._thread.submit(request)
            else:
                arrivals[hidden.reference].append((request, hidden))
        for reference, group in arrivals.items():
            self._background.start(self._admit(reference, group), "admit")
        for requests in recordings.values():
            self._background.start(self._admit_media(requests), "admit media")
        return True

    async def detach(self, link_id: str) -> None:
        """Ends a router's link and cancels its requests."""
        if (link := self._links.pop(link_id, None)) is not None:
            self._end(link)

    async def encode(
        self, packed_inputs: list[list[Any]], router_id: str, queued_tokens: int
    ) -> tuple[PackedHidden, BatchSummary]:
        """`EncoderActor.encode`, for routers that want hidden states of a decoder that encodes by itself: one
        batch between two steps. Raises Unavailable when draining."""
        del router_id, queued_tokens  # for the encoders' autoscaler
        if not self._accepting:
            raise Unavailable("the engine drains")
        started = time.monotonic()
        inputs = list(map(read_input, packed_inputs))
        self._encodings += 1
        try:
            prepared = await prepare_inputs(inputs, self._thread.prepare, self._media_threads)
            good = accepted(prepared)
            hidden = await asyncio.wrap_future(self._thread.encode(good)) if good else torch.zeros(0, 1)
            return packed_batch(inputs, prepared, hidden, started)
        finally:
            self._encodings -= 1

    # --- Within ---

    async def _admit_media(self, requests: list[EngineRequest]) -> None:
        """Submits requests of one encoder input to the engine once its media are decoded."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            encoder_input = await loop.run_in_executor(self._media_threads, self._prepare, requests)
        except Exception as failure:
            error = failure if isinstance(failure, TandemError) else InternalError("media were not decoded")
            if error is not failure:
                logger.exception("the media of %d requests were not decoded", len(requests))
            self._deliver([Delta(request.request_id, [], error=error) for request in requests], self._stats)
            return
        waited_s = time.monotonic() - started
        for request in requests:
            if (live := self._live.get(request.request_id)) is not None:  # else it was cancelled meanwhile
                live.arriving = False
                self._thread.submit(_later(dataclasses.replace(request, encoder=encoder_input), waited_s))

    def _prepare(self, requests: list[EngineRequest]) -> EncoderInput:
        """In a thread. Nothing is decoded for requests that were all cancelled."""
        encoder_input = requests[0].encoder
        wanted = any(request.request_id in self._live for request in requests)
        return self._thread.prepare(encoder_input) if wanted else encoder_input

    async def _admit(self, reference: ray.ObjectRef[PackedHidden], group: list[_Arrival]) -> None:
        """Submits requests to the engine once every rank has their hidden states. An encoder may still be at
        work on them; the router cancels requests that it gives up or whose time is over meanwhile."""
        started = time.monotonic()
        try:
            fetched = await fetch(reference)
            slices = {
                next(self._next_handle): arrival for arrival in group if arrival[0].request_id in self._live
            }
            await self._register({handle: where for handle, (_, where) in slices.items()})
        except Exception as error:
            # Whatever the error is, no request may wait for ever.
            if not isinstance(error, HiddenStatesLost):
                logger.exception("hidden states of %d requests were not accepted", len(group))
            lost = HiddenStatesLost(str(error))
            self._deliver([Delta(request.request_id, [], error=lost) for request, _ in group], self._stats)
            return
        waited_s = time.monotonic() - started
        self._handoff = HandoffTotals(
            self._handoff.reads + 1,
            self._handoff.nbytes + sum(fetched[w.start : w.stop].nbytes for _, w in slices.values()),
            self._handoff.seconds + waited_s,
        )
        for handle, (request, where) in slices.items():
            live = self._live.get(request.request_id)
            if live is None:  # cancelled meanwhile
                self._unregister([handle])
                continue
            live.arriving, live.hidden = False, HiddenLoader(handle, where, fetched)
            encoder = dataclasses.replace(request.encoder, hidden=live.hidden)
            self._thread.submit(_later(dataclasses.replace(request, encoder=encoder), waited_s))

    async def _register(self, registrations: dict[int, HiddenSlice]) -> None:
        """Makes hidden states known to all other ranks, or to none of them."""
        if not registrations:
            return
        calls = [shard.register.remote(registrations) for shard in self._shards]
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, BaseException):
                self._unregister(list(registrations))
                raise result

    def _deliver(self, deltas: list[Delta], stats: EngineStats) -> None:
        self._stats = stats
        handles = []
        for delta in deltas:
            if (live := self._live.get(delta.request_id)) is None:
                continue
            live.link.push(list(delta))
            if delta.last:
                del self._live[delta.request_id]
                live.link.requests.discard(delta.request_id)
                if live.hidden is not None:
                    live.hidden.let_go()  # the engine may keep the request for a while
                    handles.append(live.hidden.handle)
        self._unregister(handles)

    def _cancel(self, request_ids: Iterable[str]) -> None:
        for request_id in request_ids:
            live = self._live.get(request_id)
            if live is None:
                continue
            if live.arriving:  # the engine does not have it
                del self._live[request_id]
                live.link.requests.discard(request_id)
            else:
                self._thread.cancel(request_id)

    def _unregister(self, handles: list[int]) -> None:
        if handles:
            for shard in self._shards:
                shard.unregister.remote(handles)

    def _end(self, link: RouterLink) -> None:
        link.close()
        self._cancel(list(link.requests))

    async def _expire_links(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 5)
            for link_id, link in list(self._links.items()):
                if link.expired():
                    logger.warning("a router with %d requests is gone", len(link.requests))
                    del self._links[link_id]
                    self._end(link)

    def _fail(self, error: BaseException) -> None:
        self._accepting = False
        self._failure = repr(error)
        self._failed.set()


def _later(request: EngineRequest, waited_s: float) -> EngineRequest:
    """The request, this much later."""
    left_s = None if request.timeout_s is None else max(0.0, request.timeout_s - waited_s)
    return dataclasses.replace(request, timeout_s=left_s, waited_s=request.waited_s + waited_s)
