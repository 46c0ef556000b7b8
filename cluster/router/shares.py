"""How much of the engines a caller may hold while there are others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tandem.cluster.callers import Caller

_RECENT_S: Final = 10.0  # since its latest request: whoever is gone for longer is not waited for


class Shares:
    """The parts of the callers that have asked for something lately, by their weights."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: in seconds."""
        self._clock = clock
        self._seen: dict[Caller, tuple[float, float]] = {}  # when, with which weight; the latest one last
        self._weights = 0.0  # of all of them

    def saw(self, caller: Caller) -> None:
        """A request of the caller has come."""
        now = self._clock()
        self._forget(caller)
        self._seen[caller] = now, caller.quotas.weight
        self._weights += caller.quotas.weight
        while self._seen[oldest := next(iter(self._seen))][0] < now - _RECENT_S:
            self._forget(oldest)

    def of(self, caller: Caller) -> float:
        """The caller's part, 1 where it is alone."""
        others = self._weights - (self._seen[caller][1] if caller in self._seen else 0.0)
        if len(self._seen) == (caller in self._seen):
            return 1.0
        return caller.quotas.weight / (caller.quotas.weight + others)

    def _forget(self, caller: Caller) -> None:
        if caller in self._seen:
            self._weights -= self._seen.pop(caller)[1]
