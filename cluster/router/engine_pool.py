"""The engines a router knows, and the choice of one for each request."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background
from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.config import ServeConfig
from tandem.cluster.router.discovery import Discovery
from tandem.cluster.router.engine_link import EngineLink
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.shares import Shares
from tandem.cluster.router.waiting import Gate

# The most work sent to one engine, as `EngineLink.load` measures it: a batch that runs and one that is ready
# to follow. More waits in the router, where an engine that joins or becomes free can take it. Requests whose
# inputs are being encoded get half of it at most: see `announce`.
FULL = 2.0
# The same for a request of a caller with a key: what is on an engine goes before the later requests of all
# other callers, so little waits there.
FULL_FOR_ONE = 1.25
# The part of an engine's slots, one at least, that a caller leaves free while there are others and it has its
# share or more: whoever has less need not wait for the end of another one's answers.
SPARE = 1 / 8
# How much fuller an engine may be and still be preferred because it holds the same encoder input: the two
# requests share their cross-attention pages.
AFFINITY = 0.25
CHOICES = 2  # engines drawn at random, of which a request gets the less loaded


class EnginePool:
    """One link to every engine that `describe` names, from discovery to loss."""

    def __init__(
        self,
        config: ServeConfig,
        identity: str,
        handle: DeploymentHandle[Any],
        heard: Callable[[EngineLink], None],
    ) -> None:
        """`heard` is called with an engine's link for each of its messages, and when it is lost."""
        self._config, self._heard = config, heard
        self._links: dict[str, EngineLink] = {}  # by engine id
        self._shares = Shares(time.monotonic)
        self._gate = Gate(self._send, config.replica_wait_s, lambda: self.ready, apart=True)
        self._background = Background()
        self._discovery = Discovery(identity, handle, self._found, lambda: self.ready)

    @property
    def ready(self) -> bool:
        return any(link.accepting for link in self._links.values())

    @property
    def links(self) -> list[EngineLink]:
        return list(self._links.values())

    @property
    def waiting(self) -> int:
        return self._gate.waiting

    @property
    def free_slots(self) -> int:
        """Slots of all engines that are neither taken nor waited for."""
        accepting = (link for link in self._links.values() if link.accepting)
        return sum(link.free_slots for link in accepting)

    async def start(self) -> None:
        """Looks for the engines once, and goes on looking."""
        await self._discovery.start()

    async def close(self) -> None:
        await self._discovery.close()
        await self._background.close()

    async def submit(self, routed: RoutedRequest) -> None:
        """Sends a request to the best engine, by priority and arrival where all are full.

        Raises what `Gate.enter` raises.
        """
        self._shares.saw(routed.caller)
        await self._gate.enter(routed)

    def announce(self, routed: RoutedRequest) -> bool:
        """Sends a request whose input is still being encoded to the best engine that could begin at once, and
        says whether there is one. The rest of the engines' room is for requests that are ready."""
        self._shares.saw(routed.caller)
        return not self._gate.waiting and self._send(routed, FULL / 2)

    # --- Within ---

    def _send(self, routed: RoutedRequest, most: float = FULL) -> bool:
        """Sends a request at once, so that the next one sees the load, unless all engines have a load of
        `most`, or are full for its caller."""
        link = self._choose(routed, most)
        if link is not None:
            link.submit(routed)
        return link is not None

    def _choose(self, routed: RoutedRequest, most: float) -> EngineLink | None:
        """The least loaded of two engines that have room, drawn at random, and of those with the
        same encoder input. All routers have much the same, somewhat old news of the engines' load: if each
        took the least loaded of all, they would send their requests to the same one."""
        key, share = routed.request.encoder.key, self._shares.of(routed.caller)
        roomy = [
            link
            for link in self._links.values()
            if link.accepting and link.load() < min(most, _full(link, routed.caller, share))
        ]
        some = random.sample(roomy, min(CHOICES, len(roomy)))
        some += [link for link in roomy if link.holds(key)]
        return min(some, key=lambda link: link.load() - AFFINITY * link.holds(key), default=None)

    def _found(self, engine_id: str, actor: Any) -> None:
        if engine_id not in self._links:
            link = EngineLink(engine_id, actor, self._config.engine_silence_s, self._news)
            self._links[engine_id] = link
            self._background.start(self._follow(link), f"engine {engine_id}")

    def _news(self, link: EngineLink) -> None:
        self._heard(link)
        self._gate.admit_waiting()

    async def _follow(self, link: EngineLink) -> None:
        try:
            await link.run()
        finally:
            del self._links[link.engine_id]
            self._discovery.look_soon()


def _full(link: EngineLink, caller: Caller, share: float) -> float:
    """The load from which on an engine takes no more requests of a caller. `share`: its part of all engines,
    1 where it is alone."""
    if caller is ANYBODY:
        return FULL
    slots = 1 if link.stats is None else link.stats.max_running
    if share == 1 or link.callers[caller] < share * slots:
        return FULL_FOR_ONE
    return 1 - max(SPARE, 1 / slots)
