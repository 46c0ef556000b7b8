"""Whether this ingress replica can serve: it does not only answer, there are workers for its requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from tandem.cluster.router.router import RouterStats


class Workers(Protocol):
    """The part of the router that health needs."""

    async def ready(self) -> bool: ...
    def stats(self) -> RouterStats: ...


class Health:
    """Probes ask for it. An engine that has work and has made no step for `stall_timeout_s` is
    stuck, even if its process answers."""

    def __init__(
        self, workers: Workers, stall_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers, self._stall_timeout_s, self._clock = workers, stall_timeout_s, clock
        self._seen: dict[str, tuple[int, float]] = {}  # by engine: its steps, and since when

    async def problem(self) -> str | None:
        """Why the replica cannot serve, or None where it can: one engine that makes progress is enough."""
        stuck = self._stuck()  # at every call, so that no stretch of time goes unseen
        if not await self._workers.ready():
            return "no encoder or no engine is ready"
        if stuck and len(stuck) == len(self._seen):
            return f"no engine has made a step for {self._stall_timeout_s:g} s: {', '.join(stuck)}"
        return None

    def _stuck(self) -> list[str]:
        now = self._clock()
        seen: dict[str, tuple[int, float]] = {}
        for engine_id, stats in self._workers.stats().engines.items():
            steps, since = self._seen.get(engine_id, (-1, now))
            idle = stats.running + stats.waiting == 0
            seen[engine_id] = (stats.steps, now if idle or stats.steps != steps else since)
        self._seen = seen
        return [e for e, (_, since) in seen.items() if now - since >= self._stall_timeout_s]
