"""An engine's end of the link to one router: the deltas to send, the router's requests, the lease."""

from __future__ import annotations

import asyncio
import time

from tandem.cluster.messages import HEARTBEAT_S, LEASE_S


class RouterLink:
    """Lives in the engine actor's event loop.

    Deltas for a slow router wait, bounded by the tokens that its own requests may generate, and go out as one
    message when the router reads again. No other router waits for it.
    """

    def __init__(self) -> None:
        self.requests: set[str] = set()  # live on the engine
        self.closed = False
        self._deltas: list[list[object]] = []
        self._wake = asyncio.Event()
        self._renewed_at = time.monotonic()

    def push(self, delta: list[object]) -> None:
        """Adds a packed delta to the next message."""
        if not self.closed:
            self._deltas.append(delta)
            self._wake.set()

    def wake(self) -> None:
        """Sends a message at once, with the deltas there are."""
        self._wake.set()

    async def take(self) -> list[list[object]] | None:
        """The next message's deltas, empty for a heartbeat; None after the last message."""
        if self.closed and not self._deltas:
            return None
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()
        deltas, self._deltas = self._deltas, []
        return deltas

    def renew(self) -> None:
        self._renewed_at = time.monotonic()

    def expired(self) -> bool:
        return time.monotonic() - self._renewed_at > LEASE_S

    def close(self) -> None:
        """Ends the stream once the waiting deltas have been sent."""
        self.closed = True
        self._wake.set()
