"""The encoder deployment: a replica keeps one actor, which runs packed forwards of the encoder stack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple, Protocol

import torch

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import BatchSummary, PackedHidden
from tandem.cluster.messages import read_input
from tandem.cluster.replicas.encoding import Prepared, accepted, packed_batch, prepare_inputs
from tandem.cluster.replicas.supervisor import Supervisor
from tandem.cluster.replicas.threads import use_cpus
from tandem.cluster.telemetry import logs
from tandem.errors import Unavailable
from tandem.workers.config import EngineConfig
from tandem.workers.execution import encoder
from tandem.workers.request import EncoderInput, MediaCounts

MEDIA_THREADS = 2
QUEUE_REPORT_S = 10.0  # a router's last report of its queue counts this long


class EncoderLoad(NamedTuple):
    """Tokens, for the autoscaler."""

    queued_tokens: int  # at the routers, as they last said
    running_tokens: int  # at the encoder: in the running batch and in those that wait for it


class PackedEncoder(Protocol):
    """The part of `workers.execution.encoder.Encoder` that is used here."""

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput: ...
    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor: ...
    @property
    def media(self) -> MediaCounts: ...


class Encoder(Supervisor):
    """A replica. Its group is one `EncoderActor`."""

    # What encodes. Measurements derive a class with something else in its place, like `Decoder.make_runner`.
    make_encoder: ClassVar[Callable[[EngineConfig], PackedEncoder]] = encoder.Encoder
    _progress: EncoderLoad | None

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        self._spawn(EncoderActor, config.encoder_cpus, config.encoder_gpus, config, type(self).make_encoder)

    async def _start(self) -> None:
        await self._group[0].start.remote()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.EncoderPolicy` reads, as of the last health check."""
        load = self._progress
        return {} if load is None else dict(load._asdict())


class EncoderActor:
    """An async actor. Batches run one at a time, in order of arrival; routers keep that queue short."""

    def __init__(
        self, config: ServeConfig, make_encoder: Callable[[EngineConfig], PackedEncoder] = encoder.Encoder
    ) -> None:
        logs.start(config.log_format, calls=False)
        self._config, self._make_encoder = config, make_encoder
        # One thread: batches in parallel would slow each other down, and a CUDA device is chosen per thread.
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._media_threads = ThreadPoolExecutor(MEDIA_THREADS, "media")  # decode while a batch runs
        self._waiting: dict[int, int] = {}  # batch number -> tokens, the running one first
        self._batches = 0
        self._progress_at = time.monotonic()
        self._queued: dict[str, tuple[float, int]] = {}  # router -> time of its report, tokens in its queue
        self._draining = False

    async def start(self) -> None:
        """Loads the model. Raises ModelLoadError."""
        loop = asyncio.get_running_loop()
        self._encoder = await loop.run_in_executor(self._thread, self._load)

    def _load(self) -> PackedEncoder:
        use_cpus(self._config.encoder_cpus, self._config.workers_at_once)
        return self._make_encoder(self._config.engine_config())

    async def encode(
        self, packed_inputs: list[list[Any]], router_id: str, queued_tokens: int
    ) -> tuple[PackedHidden, BatchSummary]:
        """The packed hidden states of the inputs, in order, and a summary. Nothing is computed for no inputs.

        The inputs come as `messages.packed_input` makes them. Call it with `num_returns=2`: as these are two
        objects, the caller, who owns both, learns of a failure without fetching the hidden states.
        `queued_tokens` is the length of the caller's queue. Raises Unavailable when draining.
        """
        if self._draining:
            raise Unavailable("the encoder is draining")
        inputs = list(map(read_input, packed_inputs))
        self._queued[router_id] = (time.monotonic(), queued_tokens)
        self._batches += 1
        number = self._batches
        if not self._waiting:
            self._progress_at = time.monotonic()
        self._waiting[number] = sum(len(each.token_ids) for each in inputs)
        try:
            prepared = await prepare_inputs(inputs, self._encoder.prepare, self._media_threads)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._forward, inputs, prepared)
        finally:
            del self._waiting[number]
            self._progress_at = time.monotonic()

    def _forward(self, inputs: list[EncoderInput], prepared: Prepared) -> tuple[PackedHidden, BatchSummary]:
        started = time.monotonic()
        good, before = accepted(prepared), self._encoder.media
        with torch.inference_mode():
            hidden = self._encoder.encode(good) if good else torch.zeros(0, 1)
            return packed_batch(inputs, prepared, hidden, started, self._encoder.media.since(before))

    async def watch(self) -> None:
        """Never returns: only its process's end ends an encoder."""
        await asyncio.Event().wait()

    async def progress(self) -> EncoderLoad:
        """The load. Raises Unavailable where there are batches and none has ended for too long."""
        now = time.monotonic()
        if self._waiting and (stalled := now - self._progress_at) > self._config.stall_timeout_s:
            raise Unavailable(f"the encoder has work and ended no batch for {stalled:.0f} s")
        queued = sum(tokens for at, tokens in self._queued.values() if now - at < QUEUE_REPORT_S)
        return EncoderLoad(queued, sum(self._waiting.values()))

    async def drain(self) -> None:
        """Refuses new batches; returns when the accepted ones have ended."""
        self._draining = True
        while self._waiting:
            await asyncio.sleep(0.02)
