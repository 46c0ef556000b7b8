"""A router's way to the encoders: every input is encoded once, in batches, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.encoder_cache import EncoderCache
from tandem.cluster.encoder_queue import EncodeJob, EncoderQueue
from tandem.cluster.handoff import BatchSummary, HiddenSlice, PackedHidden
from tandem.errors import InternalError, InvalidRequest, TandemError, Unavailable
from tandem.workers.request import EncoderInput

logger = logging.getLogger(__name__)

COUNT_PERIOD_S = 5.0  # between counts of the encoder replicas
COUNT_TIMEOUT_S = 10.0
RETRY_AFTER_S = 0.2  # a failed replica is known to Serve's routing by then


@dataclass(slots=True)
class EncoderCounters:
    """These only grow."""

    batches: int = 0
    batch_tokens: int = 0
    seconds: float = 0.0  # from sending batches to their answers
    retries: int = 0  # inputs encoded again
    cache_hits: int = 0  # joining an encode under way included
    cache_misses: int = 0


class EncoderPool:
    """Drain after step: a batch leaves whenever a replica has room and takes what has arrived by then.
    Nothing waits while an encoder idles, and under load batches grow by themselves."""

    def __init__(self, config: ServeConfig, handle: DeploymentHandle[Any], router_id: str) -> None:
        self._config, self._handle, self._router_id = config, handle, router_id
        self._encode: Any = handle.options(method_name="encode", stream=True)
        self._cache = EncoderCache(config.encoder_cache_bytes)
        self._queue = EncoderQueue()
        self._jobs: dict[str, EncodeJob] = {}  # by key: queued or being encoded
        self._in_flight = 0  # batches
        self._background = Background()
        self._closed = False
        self.replicas = 0
        self.counters = EncoderCounters()

    @property
    def queued_tokens(self) -> int:
        return self._queue.tokens

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    async def start(self) -> None:
        """Counts the replicas, and goes on counting."""
        await self._count()
        # The first calls between two processes take ten times as long; these are nobody's.
        for _ in range(self.replicas):
            self._background.start(self._warm_up(), "warm up")
        self._background.start(self._keep_counting(), "count encoders")

    async def close(self) -> None:
        """Fails what waits with Unavailable and lets all references go."""
        self._closed = True
        for job in list(self._jobs.values()):
            self._end(job, Unavailable("the router closes"))
        await self._background.close()
        self._cache.clear()

    async def encode(self, encoder_input: EncoderInput) -> HiddenSlice:
        """Where the hidden states of an input are. Holding the result keeps them alive.

        Raises Unavailable after the configured attempts or without any encoder, InvalidRequest where the
        encoder refuses the input.
        """
        key = encoder_input.key
        if (where := self._cache.get(key)) is not None:
            self.counters.cache_hits += 1
            return where
        job = self._jobs.get(key)
        if job is not None:
            self.counters.cache_hits += 1
        elif self._closed:
            raise Unavailable("the router closes")
        else:
            self.counters.cache_misses += 1
            job = EncodeJob(key, encoder_input.token_ids, asyncio.get_running_loop().create_future())
            self._jobs[key] = job
            self._queue.put(job)
            self._send_what_fits()
        job.waiters += 1
        try:
            return await asyncio.shield(job.done)
        finally:
            job.waiters -= 1
            if not job.waiters and self._queue.remove(job):  # nobody wants it any more
                del self._jobs[key]

    def forget(self, where: HiddenSlice) -> None:
        """The object was lost: the next `encode` makes another."""
        self._cache.forget(where)

    # --- Within ---

    def _send_what_fits(self) -> None:
        most = self._config.encoder_batches_in_flight * max(1, self.replicas)
        while self._queue and self._in_flight < most and not self._closed:
            batch = self._queue.take(self._config.max_encoder_tokens)
            self._in_flight += 1
            self._background.start(self._send(batch), "encode")

    async def _send(self, batch: list[EncodeJob]) -> None:
        started = time.monotonic()
        try:
            reference, summary = await self._call([list(job.token_ids) for job in batch])
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            await self._retry(batch, error)  # not ours: this is how Serve tells that it ended the call
        except Exception as error:
            await self._retry(batch, error)
        else:
            self.counters.batches += 1
            self.counters.batch_tokens += summary["tokens"]
            self.counters.seconds += time.monotonic() - started
            slices, start = {}, 0
            for job in batch:
                stop = start + len(job.token_ids)
                slices[job.key] = HiddenSlice(reference, start, stop)
                start = stop
            self._cache.add(slices, summary["nbytes"])
            for job in batch:
                self._end(job, slices[job.key])
        finally:
            self._in_flight -= 1
            self._send_what_fits()

    async def _call(self, inputs: list[list[int]]) -> tuple[ray.ObjectRef[PackedHidden], BatchSummary]:
        """Has one batch encoded; see `Encoder.encode` for the two items."""
        response = self._encode.remote(inputs, self._router_id, self._queue.tokens)
        try:
            async with asyncio.timeout(self._config.replica_wait_s):
                stream = await response._to_object_ref_gen()  # once a replica has taken it
            # An encoder that hangs is found by its health check; this is only so that no wait is endless.
            async with asyncio.timeout(self._config.limits.timeout_s):
                reference = await anext(stream)
                try:
                    summary = await (await anext(stream))
                except StopAsyncIteration:
                    await reference  # which is the exception then
                    raise InternalError("the encoder sent no summary") from None
        except BaseException:
            response.cancel()
            raise
        return reference, summary

    async def _retry(self, batch: list[EncodeJob], error: BaseException) -> None:
        logger.warning("a batch of %d inputs was not encoded: %r", len(batch), error)
        cause = error.cause if isinstance(error, RayTaskError) else error
        if len(batch) == 1 and isinstance(cause, InvalidRequest):
            self._end(batch[0], cause)
            return
        # An encoder that died was perhaps just stopped; one that raised met something in this batch.
        raised = isinstance(error, RayTaskError) and not isinstance(error, RayActorError)
        again = []
        for job in batch:
            job.attempts += 1
            job.alone = job.alone or raised or job.attempts > 1
            waited_s = time.monotonic() - job.arrived_at
            if job.attempts >= self._config.encoder_attempts or waited_s > self._config.replica_wait_s:
                self._end(job, Unavailable(f"no encoder could take the input, {job.attempts} tries"))
            elif not job.waiters:
                del self._jobs[job.key]
            else:
                again.append(job)
        await asyncio.sleep(RETRY_AFTER_S)
        for job in again:
            if not self._closed:
                self.counters.retries += 1
                self._queue.put(job)

    def _end(self, job: EncodeJob, result: HiddenSlice | TandemError) -> None:
        self._jobs.pop(job.key, None)
        if job.done.done():
            return
        if isinstance(result, HiddenSlice):
            job.done.set_result(result)
        else:
            job.done.set_exception(result)
            job.done.exception()  # seen: perhaps nobody waits any more

    async def _warm_up(self) -> None:
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            await self._call([[0]])

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(COUNT_PERIOD_S if self.replicas else COUNT_PERIOD_S / 10)
            await self._count()

    async def _count(self) -> None:
        try:
            broadcast = self._handle.broadcast("describe")
            answers = await broadcast.results_async(timeout_s=COUNT_TIMEOUT_S, return_exceptions=True)
        except RayServeException:  # none is running
            self.replicas = 0
        except (RayError, TimeoutError) as error:  # the last count is the best there is
            logger.warning("the encoders could not be counted: %r", error)
        else:
            self.replicas = sum(not isinstance(answer, BaseException) for answer in answers)
        self._send_what_fits()
