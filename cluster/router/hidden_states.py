"""Hidden states for clients: encoded like a generation's, then read by the router's process itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import torch

from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import fetch
from tandem.cluster.router.encoder_pool import EncoderPool
from tandem.cluster.router.routed_request import Arrival, order_of
from tandem.errors import DeadlineExceeded, HiddenStatesLost, Unavailable
from tandem.workers.request import EncodeRequest
from tandem.workers.requests.request_builder import naming_prompt


class HiddenStates:
    """They go through the encoders' queue, batches and cache, next to what engines wait for. What is read is
    made room for at once, so nothing has to be staged."""

    def __init__(self, encoders: EncoderPool, config: ServeConfig) -> None:
        self._encoders, self._config = encoders, config
        self.outstanding = 0  # inputs

    async def of(
        self, requests: Sequence[EncodeRequest], arrival: Arrival, caller: Caller = ANYBODY
    ) -> list[torch.Tensor]:
        """See `Router.hidden_states`. The first error ends them all."""
        self.outstanding += len(requests)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(request, arrival, caller)) for request in requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.outstanding -= len(requests)
        return [task.result() for task in tasks]

    async def _one(self, request: EncodeRequest, arrival: Arrival, caller: Caller) -> torch.Tensor:
        timeout_s = self._config.limits.timeout_s if request.timeout_s is None else request.timeout_s
        deadline = min(arrival.at + timeout_s, arrival.deadline)
        try:
            async with asyncio.timeout_at(deadline):
                order = order_of(arrival.at, request.priority)
                with naming_prompt(request.number, request.prompts):
                    return await self._encoded(request, order, deadline, caller)
        except TimeoutError:
            raise DeadlineExceeded("the request's time was over before its input was encoded") from None

    async def _encoded(
        self, request: EncodeRequest, order: tuple[float, int], deadline: float, caller: Caller
    ) -> torch.Tensor:
        await self._encoders.start()  # a router whose decoders encode by themselves has not looked yet
        attempts = self._config.encoder_attempts
        for _ in range(attempts):
            tried = self._encoders.encode(request.encoder, order, deadline, caller)
            async with aclosing(tried) as tries:
                async for hidden in tries:  # one, unless it fails
                    where = hidden
            try:
                return (await fetch(where.reference))[where.start : where.stop]
            except HiddenStatesLost:
                self._encoders.forget(where)
        raise Unavailable(f"the encoder's output was lost {attempts} times")
