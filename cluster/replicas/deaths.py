"""Lines about the ends of processes that have no supervisor of ours: the replicas themselves, Serve's proxies
and Serve's controller. Of the decoder replicas the oldest writes them; the next takes over where it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from tandem.cluster.serve_compat.actors import STARTED_AGAIN, Actor, living_actors, unasked_end
from tandem.cluster.telemetry.logs import short_cause

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_REPLICA: Final = "ServeReplica"
_OTHERS: Final = {"ProxyActor": "Serve's proxy", "ServeController": "Serve's controller"}


class DeathWatch:
    """Compares what lives with what lived at the last look.

    Every decoder replica looks, at moments of its own, and one writes. An end is told at least once as long
    as one of them lives: the others keep it in mind until the writer has lived through a look of theirs, and
    so has seen it. A writer that ends within that time may have told it already.
    """

    def __init__(
        self,
        application: str,
        writer: str,
        own_id: str,
        *,
        living: Callable[[], Mapping[str, Actor]] = living_actors,
        unasked: Callable[[str], str | None] = unasked_end,
    ) -> None:
        """`writer`: the deployment whose oldest living replica writes the lines; `own_id`: this replica's
        actor."""
        self._replicas = f"{_REPLICA}:{application}:"
        self._writers, self._own_id = self._replicas + writer, own_id
        self._living, self._unasked = living, unasked
        self._before: dict[str, Actor] = {}
        self._writer: str | None = None  # as of the last look
        self._untold: list[str] = []

    async def run(self) -> None:
        while True:
            # In a thread: it waits while the control plane is away.
            await asyncio.to_thread(self.look)
            await asyncio.sleep(_PERIOD_S)

    def look(self) -> None:
        """Logs the ends since the last look."""
        now = {each: actor for each, actor in self._living().items() if self._is_watched(actor)}
        before, self._before = self._before, now
        writer = self._oldest_writer({each: actor for each, actor in before.items() if each in now})
        if writer == self._writer:
            self._untold.clear()
        self._writer = writer
        for each, was in before.items():
            if (why := self._end(each, was, now.get(each))) is not None:
                self._untold.append(f"{self._title(was)}: its process ended: {short_cause(why)}")
        if writer == self._own_id:
            for line in self._untold:
                logger.error("%s", line)
            self._untold.clear()

    def _oldest_writer(self, actors: Mapping[str, Actor]) -> str | None:
        writers = [each for each, actor in actors.items() if actor.kind == self._writers]
        return min(writers, key=lambda each: (actors[each].since_ms, each), default=None)

    def _end(self, each: str, was: Actor, now: Actor | None) -> str | None:
        if now is None:
            return self._unasked(each)
        return STARTED_AGAIN if now.pid != was.pid else None

    def _is_watched(self, actor: Actor) -> bool:
        return actor.kind in _OTHERS or actor.kind.startswith(self._replicas)

    def _title(self, actor: Actor) -> str:
        known = _OTHERS.get(actor.kind)
        what = known or f"{actor.kind.rpartition(':')[2]} replica {actor.name.rpartition('#')[2]}"
        return f"{what}, process {actor.pid} on {actor.machine}"
