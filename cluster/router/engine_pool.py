"""The engines a router knows: finding them, and choosing one for a request."""

from __future__ import annotations

import asyncio
import bisect
import random
from dataclasses import dataclass, field
from typing import Any

from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background
from tandem.cluster.router.discovery import Discovery
from tandem.cluster.router.engine_link import EngineLink
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.waiting import wait_for_worker

# Work sent to one engine, in batches' worth (see `EngineLink.load`): one that runs and one ready to
# follow. More waits here, where an engine that joins or gets free can still take it. Requests whose inputs
# are being encoded have half of it at most: see `announce`.
FULL = 2.0
# How much fuller an engine may be and still be preferred because it holds the same encoder input, whose
# cross-attention pages are then shared.
AFFINITY = 0.25
CHOICES = 2  # engines, drawn at random, of which a request gets the better


@dataclass(order=True, slots=True)
class _Waiter:
    order: tuple[float, int]  # the routed's
    routed: RoutedRequest = field(compare=False)
    granted: asyncio.Future[None] = field(compare=False)


class EnginePool:
    """One client for every engine that `describe` names, from discovery to loss."""

    def __init__(self, identity: str, handle: DeploymentHandle[Any], patience_s: float) -> None:
        self._patience_s = patience_s
        self._clients: dict[str, EngineLink] = {}
        self._waiting: list[_Waiter] = []  # sorted
        self._links = Background()
        self._discovery = Discovery(identity, handle, self._found, lambda: self.ready)

    @property
    def ready(self) -> bool:
        return any(client.accepting for client in self._clients.values())

    @property
    def clients(self) -> list[EngineLink]:
        return list(self._clients.values())

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def start(self) -> None:
        """Looks for the engines once, and goes on looking."""
        await self._discovery.start()

    async def close(self) -> None:
        await self._discovery.close()
        await self._links.close()

    async def submit(self, routed: RoutedRequest) -> None:
        """Sends a request to the best engine, by priority and arrival where all are full.

        Raises Unavailable where there is still no engine after `patience_s`.
        """
        if not self._waiting and (client := self._choose(routed)) is not None:
            client.submit(routed)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(routed.order, routed, granted)
        bisect.insort(self._waiting, waiter)
        self._grant()
        try:
            await wait_for_worker(
                granted, self._patience_s, lambda: self.ready, "no decoder accepts requests"
            )
        finally:
            if not granted.done():
                del self._waiting[bisect.bisect_left(self._waiting, waiter)]

    def announce(self, routed: RoutedRequest) -> bool:
        """Sends a request whose input is still being encoded to the best engine that could begin at once, and
        says whether there is one. What room there is behind is for those that are ready."""
        if self._waiting or (client := self._choose(routed, FULL / 2)) is None:
            return False
        client.submit(routed)
        return True

    # --- Within ---

    def _choose(self, routed: RoutedRequest, busy: float = FULL) -> EngineLink | None:
        """Of two engines that are less than `busy`, and of those with the same encoder input, the least
        loaded. All routers have much the same, somewhat old news of an engine that is not theirs: the least
        loaded of all would get the requests of all of them at once."""
        key = routed.request.encoder.key
        roomy = [client for client in self._clients.values() if client.accepting and client.load() < busy]
        some = random.sample(roomy, min(CHOICES, len(roomy)))
        some += [client for client in roomy if key in client.keys]
        return min(some, key=lambda client: client.load() - AFFINITY * (key in client.keys), default=None)

    def _grant(self) -> None:
        """Sends waiting requests as far as there is room."""
        while self._waiting:
            client = self._choose(self._waiting[0].routed)
            if client is None:
                return
            waiter = self._waiting.pop(0)
            client.submit(waiter.routed)  # here and now, so that the next one sees the load
            waiter.granted.set_result(None)

    def _found(self, engine_id: str, actor: Any) -> None:
        if engine_id not in self._clients:
            client = EngineLink(engine_id, actor, self._grant)
            self._clients[engine_id] = client
            self._links.start(self._follow(client), f"engine {engine_id}")

    async def _follow(self, client: EngineLink) -> None:
        try:
            await client.run()
        finally:
            del self._clients[client.engine_id]
            self._discovery.look_soon()
