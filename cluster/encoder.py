"""The encoder deployment: packed forwards of the encoder stack, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import torch

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, PackedHidden, pack
from tandem.cluster.threads import use_cpus
from tandem.errors import Unavailable
from tandem.workers.encoder import Encoder as EncoderStack

QUEUE_REPORT_S = 10.0  # how long a router's last report of its queue counts


class Encoder:
    """A Serve replica with one encoder. Batches wait here in order; routers keep the queue short."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        # One thread: batches would only slow each other down, and a CUDA device is chosen per thread.
        self._thread = ThreadPoolExecutor(1, "encoder", use_cpus, (config.encoder_cpus,))
        self._encoder = self._thread.submit(EncoderStack, config.engine_config()).result()
        self._waiting: dict[int, int] = {}  # batch number -> tokens, in order of arrival
        self._batches = 0
        self._progress_at = time.monotonic()
        self._queued: dict[str, tuple[float, int]] = {}  # router -> when it said, tokens in its queue

    async def encode(
        self, inputs: list[list[int]], router_id: str, queued_tokens: int
    ) -> AsyncIterator[PackedHidden | BatchSummary]:
        """Yields the packed hidden states of the inputs, which the caller owns, then the summary.

        Two items, so that the caller learns of a failure without fetching the hidden states.
        `queued_tokens` is what still waits in the caller's queue: the autoscaler's signal.
        """
        tokens = sum(map(len, inputs))
        self._queued[router_id] = (time.monotonic(), queued_tokens)
        self._batches += 1
        number = self._batches
        if not self._waiting:
            self._progress_at = time.monotonic()
        self._waiting[number] = tokens
        try:
            loop = asyncio.get_running_loop()
            packed, seconds = await loop.run_in_executor(self._thread, self._forward, inputs)
        finally:
            del self._waiting[number]
            self._progress_at = time.monotonic()
        yield packed
        yield BatchSummary(tokens=tokens, nbytes=packed["rows"].nbytes, seconds=seconds)

    def _forward(self, inputs: list[list[int]]) -> tuple[PackedHidden, float]:
        started = time.monotonic()
        with torch.inference_mode():
            packed = pack(self._encoder.encode(inputs))
        return packed, time.monotonic() - started

    async def describe(self) -> None:
        """For routers, who count the answers to know how many batches to send at a time."""

    async def check_health(self) -> None:
        """Raises Unavailable where batches wait and none has ended for too long."""
        stalled = time.monotonic() - self._progress_at
        if self._waiting and stalled > self._config.stall_timeout_s:
            raise Unavailable(f"the encoder has work and ended no batch for {stalled:.0f} s")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.encoder_policy` reads."""
        now = time.monotonic()
        queued = sum(tokens for at, tokens in self._queued.values() if now - at < QUEUE_REPORT_S)
        return {"queued_tokens": queued, "running_tokens": sum(self._waiting.values())}
