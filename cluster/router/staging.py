"""How much may be encoded ahead of the engines: hidden states are kept until an engine has room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.waiting import Gate


class Staging:
    """Room for `tokens` encoder tokens, from the start of their encoding until it has ended and an engine
    has their request.

    Without it, a burst on a cluster whose engines are full would fill the object store with hidden
    states that nobody can use yet. An input larger than all the room goes alone.
    """

    def __init__(self, tokens: int, patience_s: float, possible: Callable[[], bool]) -> None:
        """`possible` says whether there is an engine that may make room."""
        self._limit = tokens
        self._used = 0
        self._staged: dict[RoutedRequest, int] = {}  # tokens of each
        self._gate = Gate(self._admit, patience_s, possible)

    @property
    def waiting(self) -> int:
        return self._gate.waiting

    @asynccontextmanager
    async def room(self, routed: RoutedRequest) -> AsyncIterator[None]:
        """Room for a request's input while the block runs, by priority and arrival.

        Raises what `Gate.enter` raises.
        """
        try:
            await self._gate.enter(routed)
            yield
        finally:
            self._used -= self._staged.pop(routed, 0)
            self._gate.admit_waiting()

    def _admit(self, routed: RoutedRequest) -> bool:
        tokens = len(routed.request.encoder.token_ids)
        if self._used and self._used + tokens > self._limit:
            return False
        self._used += tokens
        self._staged[routed] = tokens
        return True
