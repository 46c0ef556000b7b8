"""The encoders a router knows: every input is encoded once, in batches, whatever fails."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background
from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, HiddenSlice, PackedHidden
from tandem.cluster.messages import packed_input
from tandem.cluster.router.discovery import Discovery
from tandem.cluster.router.encoder_cache import EncoderCache
from tandem.cluster.router.encoder_queue import EncodeJob, EncoderQueue, Sent
from tandem.cluster.router.waiting import wait_for_worker
from tandem.errors import InvalidRequest, TandemError, Unavailable
from tandem.workers.request import EncoderInput

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class EncoderCounters:
    """Totals since the router's start."""

    batches: int = 0  # encoded
    batch_tokens: int = 0  # in them
    seconds: float = 0.0  # from sending batches to their answers
    retries: int = 0  # inputs encoded again
    cache_hits: int = 0  # inputs not encoded again; includes those that join a job under way
    cache_misses: int = 0  # inputs that became a job


@dataclass(eq=False, slots=True)
class _Replica:
    encoder_id: str
    actor: Any
    batches: int = 0  # sent and not answered
    tokens: int = 0  # in these batches


class EncoderPool:
    """A batch is sent whenever a replica has room, with the inputs that have arrived by then. Nothing waits
    while an encoder idles, and under load batches grow by themselves."""

    def __init__(
        self, config: ServeConfig, identity: str, handle: DeploymentHandle[Any], router_id: str
    ) -> None:
        self._config, self._router_id = config, router_id
        self._discovery = Discovery(identity, handle, self._found, lambda: bool(self._replicas), self._listed)
        self._replicas: dict[str, _Replica] = {}
        self._ended: set[str] = set()  # ids of replicas that ended: Serve may list them for a moment longer
        self._cache = EncoderCache(config.encoder_cache_bytes)
        self._queue = EncoderQueue()
        self._jobs: dict[str, EncodeJob] = {}  # by key: queued or being encoded
        self._background = Background()
        self._started: asyncio.Task[None] | None = None
        self._closed = False
        self.counters = EncoderCounters()

    @property
    def replicas(self) -> int:
        return len(self._replicas)

    @property
    def queued_tokens(self) -> int:
        return self._queue.tokens

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    async def start(self) -> None:
        """Looks for the encoders once, and goes on looking. Calling it again waits for that first look."""
        if self._started is None:
            self._started = asyncio.create_task(self._discovery.start())
        await asyncio.shield(self._started)

    async def close(self) -> None:
        """Fails all jobs with Unavailable and drops all references."""
        self._closed = True
        if self._started is not None:
            self._started.cancel()
        await self._discovery.close()
        for job in list(self._jobs.values()):
            self._end(job, Unavailable("the router closes"))
        await self._background.close()
        self._cache.clear()

    async def encode(
        self,
        encoder_input: EncoderInput,
        order: tuple[float, int],
        deadline: float,
        caller: Caller = ANYBODY,
    ) -> AsyncGenerator[HiddenSlice]:
        """Yields where the hidden states of an input will be, as soon as an encoder is asked for them, so
        that a decoder can be told meanwhile. After each try that fails, it yields the next one's place. Ends
        when the hidden states are there. Holding a slice keeps them alive. `order`, `deadline`, in the event
        loop's time, and `caller` are those of the request that waits.

        Raises Unavailable after the configured attempts or without any encoder, InvalidRequest where the
        encoder refuses the input.
        """
        key = encoder_input.key
        if (where := self._cache.get(key)) is not None:
            self.counters.cache_hits += 1
            yield where
            return
        job = self._jobs.get(key)
        if job is not None:
            self.counters.cache_hits += 1
            job.order, job.deadline = min(job.order, order), max(job.deadline, deadline)
        elif self._closed:
            raise Unavailable("the router closes")
        else:
            self.counters.cache_misses += 1
            job = self._jobs[key] = EncodeJob(encoder_input, order, deadline, caller=caller)
            self._queue.put(job)
            self._send_what_fits()
        job.waiters += 1
        try:
            encoded = False
            while not encoded:
                sent = await wait_for_worker(
                    job.sent, self._config.replica_wait_s, lambda: bool(self._replicas), "there is no encoder"
                )
                yield sent.hidden
                await asyncio.wait([sent.encoded])
                encoded = sent.encoded.result()
        finally:
            job.waiters -= 1
            if not job.waiters and self._queue.remove(job):  # nobody wants it any more
                self._jobs.pop(key, None)  # absent where the router closes

    def forget(self, where: HiddenSlice) -> None:
        """Drops a slice whose object was lost: the next `encode` makes another."""
        self._cache.forget(where)

    # --- Within ---

    def _found(self, encoder_id: str, actor: Any) -> None:
        if encoder_id not in self._replicas and encoder_id not in self._ended:
            replica = self._replicas[encoder_id] = _Replica(encoder_id, actor)
            self._background.start(self._warm_up(replica), "warm up")
            self._send_what_fits()

    def _listed(self, encoder_ids: set[str]) -> None:
        """Forgets idle replicas that are gone. Otherwise the next batch sent there would tell, and fail."""
        for encoder_id, replica in list(self._replicas.items()):
            if encoder_id not in encoder_ids and not replica.batches:
                del self._replicas[encoder_id]

    async def _warm_up(self, replica: _Replica) -> None:
        """The first calls between two processes take ten times as long: no request should wait for them."""
        try:
            for _ in range(2):
                _, said = self._call(replica, [])
                await self._answer(said)
        except Exception as error:  # the first batch will meet it again
            logger.info("encoder %s did not warm up: %r", replica.encoder_id, error)

    def _send_what_fits(self) -> None:
        while self._queue and not self._closed and (replica := self._roomiest()) is not None:
            batch = self._queue.take(self._config.max_encoder_tokens, asyncio.get_running_loop().time())
            if not batch:
                return
            self._background.start(self._send(batch, replica), "encode")
            replica.batches += 1
            replica.tokens += sum(job.length for job in batch)

    def _roomiest(self) -> _Replica | None:
        most = self._config.encoder_batches_in_flight
        return min(
            (replica for replica in self._replicas.values() if replica.batches < most),
            # Equals are drawn at random: all routers know the replicas in much the same order.
            key=lambda replica: (replica.batches, replica.tokens, random.random()),
            default=None,
        )

    async def _send(self, batch: list[EncodeJob], replica: _Replica) -> None:
        started = time.monotonic()
        # For each job: False only once it has another try, or has ended.
        loop = asyncio.get_running_loop()
        encoded: dict[str, asyncio.Future[bool]] = {job.key: loop.create_future() for job in batch}
        try:
            reference, said = self._call(replica, [job.encoder_input for job in batch])
            slices, start = {}, 0
            for job in batch:
                stop = start + job.length
                slices[job.key] = HiddenSlice(reference, start, stop)
                job.sent.set_result(Sent(slices[job.key], encoded[job.key]))
                start = stop
            summary = await self._answer(said)
            self.counters.batches += 1
            self.counters.batch_tokens += summary["tokens"]
            self.counters.seconds += time.monotonic() - started
            for number, error in summary["refused"].items():
                self._end(batch[number], error)
                encoded[batch[number].key].set_result(False)
                del slices[batch[number].key]
            self._cache.add(slices, summary["nbytes"])
        except Exception as error:
            self._retry(batch, replica, error)
        else:
            for key in slices:
                del self._jobs[key]
                encoded[key].set_result(True)
        finally:
            for one in encoded.values():
                if not one.done():
                    one.set_result(False)
            replica.batches -= 1
            replica.tokens -= sum(job.length for job in batch)
            self._send_what_fits()

    def _call(
        self, replica: _Replica, inputs: list[EncoderInput]
    ) -> tuple[ray.ObjectRef[PackedHidden], ray.ObjectRef[BatchSummary]]:
        """Sends one batch; see `EncoderActor.encode` for the two objects."""
        encode = replica.actor.encode.options(num_returns=2)
        hidden, said = encode.remote(list(map(packed_input, inputs)), self._router_id, self._queue.tokens)
        return hidden, said

    async def _answer(self, said: ray.ObjectRef[BatchSummary]) -> BatchSummary:
        # An encoder that hangs fails its health check; the timeout is only so that no wait is endless.
        async with asyncio.timeout(self._config.limits.timeout_s):
            return await said

    def _retry(self, batch: list[EncodeJob], replica: _Replica, error: Exception) -> None:
        logger.warning("encoder %s: a batch of %d failed: %r", replica.encoder_id, len(batch), error)
        cause = error.cause if isinstance(error, RayTaskError) else error
        if len(batch) == 1 and isinstance(cause, InvalidRequest):
            self._end(batch[0], cause)
            return
        draining = isinstance(cause, Unavailable)
        ended = draining or isinstance(error, RayActorError | TimeoutError)
        if ended:
            self._replicas.pop(replica.encoder_id, None)
            if not isinstance(error, ActorUnavailableError):
                self._ended.add(replica.encoder_id)
            self._discovery.look_soon()
        for job in batch:
            job.again()
            job.attempts += not draining
            # An error may come from one input of the batch, and so may a death, if it is the second.
            job.alone = job.alone or not ended or job.attempts > 1
            if job.attempts >= self._config.encoder_attempts:
                self._end(job, Unavailable(f"no encoder could take the input, {job.attempts} tries"))
            elif not job.waiters:
                del self._jobs[job.key]
            elif not self._closed:
                self.counters.retries += 1
                self._queue.put(job)

    def _end(self, job: EncodeJob, error: TandemError) -> None:
        self._jobs.pop(job.key, None)
        job.fail(error)
