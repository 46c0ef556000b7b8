"""How a router finds the actors of a deployment: Serve knows the replicas, each names its actor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from tandem.cluster.background import Background

logger = logging.getLogger(__name__)

PERIOD_S = 5.0  # new replicas are found this late at most
RETRY_S = 0.2  # after a loss, and while there is none
TIMEOUT_S = 10.0


class Discovery:
    """Tells `found(replica id, actor)` of every replica of this identity at each look, and `listed(ids)`
    that these are all. `enough` says whether there is anybody to work with meanwhile."""

    def __init__(
        self,
        identity: str,
        handle: DeploymentHandle[Any],
        found: Callable[[str, Any], None],
        enough: Callable[[], bool],
        listed: Callable[[set[str]], None] = lambda _: None,
    ) -> None:
        self._identity = identity
        self._handle, self._found, self._listed, self._enough = handle, found, listed, enough
        self._look_now = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        """Looks once, and goes on looking."""
        await self._look()
        self._background.start(self._keep_looking(), "discovery")

    async def close(self) -> None:
        await self._background.close()

    def look_soon(self) -> None:
        """Something changed."""
        self._look_now.set()

    async def _keep_looking(self) -> None:
        while True:
            try:
                async with asyncio.timeout(PERIOD_S if self._enough() else RETRY_S):
                    await self._look_now.wait()
                await asyncio.sleep(RETRY_S)
            except TimeoutError:
                pass
            self._look_now.clear()
            try:
                await self._look()
            except Exception:  # whatever it is: a router that no longer looks would never find a replacement
                logger.exception("the replicas could not be listed")

    async def _look(self) -> None:
        try:
            broadcast = self._handle.broadcast("describe")
            answers = await broadcast.results_async(timeout_s=TIMEOUT_S, return_exceptions=True)
        except RayServeException:  # none is running
            self._listed(set())
            return
        except (RayError, TimeoutError) as error:
            logger.warning("the replicas could not be listed: %r", error)
            return
        living = [answer for answer in answers if not isinstance(answer, BaseException)]
        ours = {}
        for answer in living:
            match answer:
                case [str(replica_id), actor, self._identity]:
                    ours[replica_id] = actor
                # Any other is of another model, or of a version that answers otherwise.
        for replica_id, actor in ours.items():
            self._found(replica_id, actor)
        if len(living) == len(answers):  # one that did not answer in time may be alive
            self._listed(set(ours))
