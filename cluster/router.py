"""The router of one ingress replica: which worker does what, and what happens when one is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from tandem.cluster.config import ServeConfig
from tandem.workers.request import Delta, EngineRequest


@dataclass(frozen=True, slots=True)
class RouterStats:
    """A snapshot for metrics. Counters only grow."""

    encoders_ready: bool
    engines: int  # attached and accepting
    outstanding: int  # sequences accepted and not ended
    waiting: int  # of these, without an engine yet
    queued_encoder_tokens: int
    encoder_batches: int  # counter: sent
    encoder_batch_tokens: int  # counter: tokens in them
    encoder_time_s: float  # counter: from sending a batch to its reference
    encoder_retries: int  # counter
    encoder_cache_hits: int  # counter
    encoder_cache_misses: int  # counter
    encoder_cache_bytes: int
    resubmitted: int  # counter: requests moved to another engine
    generated_tokens: int  # counter: delivered


class Router:
    """Turns requests into streams of deltas."""

    def __init__(self, config: ServeConfig, encoder: Any | None, decoder: Any) -> None:
        self._config, self._encoder, self._decoder = config, encoder, decoder

    async def start(self) -> None:
        """Finds the engines and attaches to them. Call once, in the ingress' event loop."""
        raise NotImplementedError

    async def close(self) -> None:
        """Ends all requests with Unavailable and detaches."""
        raise NotImplementedError

    def generate(self, request: EngineRequest) -> AsyncIterator[Delta]:
        """The request's deltas; the last has a finish reason. Raises a TandemError instead of a delta
        with `error`. Closing the iterator or cancelling its task frees the request on the engine."""
        raise NotImplementedError

    async def ready(self) -> bool:
        """Whether a request sent now would find an encoder and an engine."""
        raise NotImplementedError

    def stats(self) -> RouterStats:
        raise NotImplementedError
