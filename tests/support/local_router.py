"""A router over an engine in this process: what the ingress does with real answers, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from fake_router import FakeRouter

from tandem.workers.request import Delta, EngineRequest
from tandem.workers.shared_engine import SharedEngine


class LocalRouter(FakeRouter):
    def __init__(self, engine: SharedEngine) -> None:
        super().__init__([])
        self._engine = engine

    async def deltas(
        self, request: EngineRequest, gather_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncGenerator[Delta]:
        del gather_s
        self.requests.append(request)
        self.live.add(request.request_id)
        ended = False
        try:
            if self.stall_after is not None and len(self.requests) > self.stall_after:
                await asyncio.Event().wait()
            if self.error is not None and len(self.requests) > self.error[0]:
                raise self.error[1]
            for delta in await asyncio.to_thread(lambda: list(self._engine.deltas([request]))):
                ended = delta.last
                yield delta
        finally:
            self.live.discard(request.request_id)
            if not ended:
                self.cancelled.append(request.request_id)
