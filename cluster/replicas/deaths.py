"""Lines about the ends of processes that have no supervisor of ours: the replicas themselves, Serve's proxies
and Serve's controller. One decoder replica writes them, so each is told once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from tandem.cluster.serve_compat.actors import Actor, living_actors, unasked_end
from tandem.cluster.telemetry.logs import short_cause

logger = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_REPLICA: Final = "ServeReplica"
_OTHERS: Final = {"ProxyActor": "Serve's proxy", "ServeController": "Serve's controller"}


class DeathWatch:
    """Compares what lives with what lived at the last look."""

    def __init__(
        self,
        application: str,
        writer: str,
        own_id: str,
        *,
        living: Callable[[], Mapping[str, Actor]] = living_actors,
        unasked: Callable[[str], str | None] = unasked_end,
    ) -> None:
        """`writer`: the deployment whose first living replica writes the lines; `own_id`: this replica's
        actor."""
        self._replicas = f"{_REPLICA}:{application}:"
        self._writers, self._own_id = self._replicas + writer, own_id
        self._living, self._unasked = living, unasked
        self._before: dict[str, Actor] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            # In a thread: it waits while the control plane is away.
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Logs the ends since the last look."""
        now = {each: actor for each, actor in self._living().items() if self._is_watched(actor)}
        before, self._before = self._before, now
        writers = [each for each, actor in now.items() if actor.kind == self._writers]
        if self._own_id != min(writers, default=self._own_id):
            return
        for each, was in before.items():
            if each not in now and (why := self._unasked(each)) is not None:
                logger.error("%s: its process ended: %s", self._title(was), short_cause(why))
            elif each in now and now[each].pid != was.pid:
                logger.error("%s: its process ended, and Ray has started another", self._title(was))

    def _is_watched(self, actor: Actor) -> bool:
        return actor.kind in _OTHERS or actor.kind.startswith(self._replicas)

    def _title(self, actor: Actor) -> str:
        known = _OTHERS.get(actor.kind)
        what = known or f"{actor.kind.rpartition(':')[2]} replica {actor.name.rpartition('#')[2]}"
        return f"{what}, process {actor.pid} on {actor.machine}"
