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

PERIOD_S = 5.0  # between looks: new replicas are found this late at most
RETRY_S = 0.2  # before the next look after a loss, and while there is no replica
TIMEOUT_S = 10.0  # one look at the engines takes so long at most


class Discovery:
    """Looks for a deployment's replicas, again and again.

    At each look it calls `found(replica id, actor)` for every replica of this identity, then `listed(ids)`
    where these are all of them. `enough` says whether there is a replica to work with meanwhile.
    """

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
        """Has the next look at once. Call it when a replica is lost."""
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
            except Exception:  # whatever it is: a router that stops looking never finds a replacement
                logger.exception("the replicas could not be listed")

    async def _look(self) -> None:
        try:
            broadcast = self._handle.broadcast("describe")
            answers = await broadcast.results_async(timeout_s=TIMEOUT_S, return_exceptions=True)
        except RayServeException:  # no replica is running
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
                # Any other answer is from another model, or from a version that answers otherwise.
        for replica_id, actor in ours.items():
            self._found(replica_id, actor)
        if len(living) == len(answers):  # a replica that did not answer in time may be alive
            self._listed(set(ours))
