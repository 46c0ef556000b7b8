"""The actor of an encoder: packed forwards of the encoder stack, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, PackedHidden, pack
from tandem.cluster.replicas.threads import use_cpus
from tandem.errors import Unavailable
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import Encoder

QUEUE_REPORT_S = 10.0  # how long a router's last report of its queue counts


class EncoderLoad(NamedTuple):
    """Tokens, for the autoscaler."""

    queued_tokens: int  # at the routers, as they last said
    running_tokens: int  # here: in the running batch and in those behind it


class PackedEncoder(Protocol):
    """The part of `workers.execution.encoder.Encoder` that is used here."""

    def encode(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor: ...


class EncoderActor:
    """An async actor. Batches wait here in order of arrival; routers keep that queue short."""

    def __init__(
        self, config: ServeConfig, make_encoder: Callable[[EngineConfig], PackedEncoder] = Encoder
    ) -> None:
        self._config, self._make_encoder = config, make_encoder
        # One thread: batches would only slow each other down, and a CUDA device is chosen per thread.
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._waiting: dict[int, int] = {}  # batch number -> tokens, the running one first
        self._batches = 0
        self._progress_at = time.monotonic()
        self._queued: dict[str, tuple[float, int]] = {}  # router -> when it said, tokens in its queue
        self._draining = False

    async def start(self) -> None:
        """Loads the model. Raises ModelLoadError."""
        loop = asyncio.get_running_loop()
        self._encoder = await loop.run_in_executor(self._thread, self._load)

    def _load(self) -> PackedEncoder:
        use_cpus(self._config.encoder_cpus, self._config.workers_at_once)
        return self._make_encoder(self._config.engine_config())

    async def encode(
        self, inputs: list[list[int]], router_id: str, queued_tokens: int
    ) -> tuple[PackedHidden, BatchSummary]:
        """The packed hidden states of the inputs, and what there is to say about them.

        To be called with `num_returns=2`: two objects, so that the caller, who owns both, learns of a
        failure without fetching the hidden states. `queued_tokens` is what still waits at the caller.
        Raises Unavailable when draining.
        """
        if self._draining:
            raise Unavailable("the encoder is draining")
        self._queued[router_id] = (time.monotonic(), queued_tokens)
        self._batches += 1
        number = self._batches
        if not self._waiting:
            self._progress_at = time.monotonic()
        self._waiting[number] = sum(map(len, inputs))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._forward, inputs)
        finally:
            del self._waiting[number]
            self._progress_at = time.monotonic()

    def _forward(self, inputs: list[list[int]]) -> tuple[PackedHidden, BatchSummary]:
        started = time.monotonic()
        with torch.inference_mode():
            hidden = self._encoder.encode(inputs)
            packed = pack(hidden)
        seconds = time.monotonic() - started
        return packed, BatchSummary(tokens=len(hidden), nbytes=hidden.nbytes, seconds=seconds)

    async def watch(self) -> None:
        """Returns never: only this process's end ends an encoder."""
        await asyncio.Event().wait()

    async def progress(self) -> EncoderLoad:
        """Raises Unavailable where batches wait and none has ended for too long."""
        now = time.monotonic()
        if self._waiting and (stalled := now - self._progress_at) > self._config.stall_timeout_s:
            raise Unavailable(f"the encoder has work and ended no batch for {stalled:.0f} s")
        queued = sum(tokens for at, tokens in self._queued.values() if now - at < QUEUE_REPORT_S)
        return EncoderLoad(queued, sum(self._waiting.values()))

    async def drain(self) -> None:
        """Refuses new batches; returns when those that are here have ended."""
        self._draining = True
        while self._waiting:
            await asyncio.sleep(0.02)
