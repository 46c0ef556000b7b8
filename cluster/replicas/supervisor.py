"""A Serve replica that keeps a group of actors: the common part of encoder and decoder replicas.

The actors do the work, and routers talk to them directly; Serve places, watches, replaces and scales the
replicas. The actors are children of the replica's process: when it ends, however it ends, Ray ends them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from abc import ABC, abstractmethod
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.identity import identity_of
from tandem.cluster.telemetry import disk, logs
from tandem.errors import InternalError

logger = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 10.0  # for the group's answers to one health check
CALLS = 1000  # calls that one actor serves at a time; a router's link is one


class Supervisor(ABC):
    """Starts a group, answers health checks from its progress, drains it, and ends it.

    Every actor of the group has `watch`, which returns or raises when the actor can work no more, and
    `progress`, which raises when it has work and makes no progress. Routers talk to the first actor, which
    also has `drain`.
    """

    def __init__(self, config: ServeConfig) -> None:
        logs.start(config.log_format, calls=False)
        self._config = config
        self._disk = disk.DiskWatch()
        self._identity = identity_of(config)
        self._id = uuid.uuid4().hex[:8]
        self._group: list[Any] = []
        self._progress: Any = None  # the first actor's answer at the last health check
        self._background = Background()
        self._starting: asyncio.Task[None] | None = None

    @abstractmethod
    async def _start(self) -> None:
        """Has the actors, all of them spawned already, load their models."""

    def _spawn(self, kind: type, cpus: float, gpus: float, *args: object) -> None:
        """Adds an actor to the group, in the placement group's bundle of its number."""
        placement_group = ray.util.get_current_placement_group()  # the replica's own: see app.py
        if placement_group is None:
            raise InternalError("the replica was deployed without its placement group")
        strategy = PlacementGroupSchedulingStrategy(placement_group, len(self._group))
        actor_class: Any = ray.remote(kind)
        actor = actor_class.options(
            num_cpus=cpus,
            num_gpus=gpus if self._config.device == "cuda" else 0,
            max_concurrency=CALLS,
            scheduling_strategy=strategy,
        ).remote(*args)
        self._group.append(actor)

    async def describe(self) -> tuple[str, Any, str]:
        """For routers: this replica's id, which a replacement does not share, its first actor, and its
        identity (see `identity.identity_of`)."""
        return self._id, self._group[0], self._identity

    async def check_health(self) -> None:
        """Serve's health check. The first one is part of starting and may take long.

        Serve replaces the replica at once after an ActorDiedError, and after several failures of other kinds.
        """
        if self._starting is None:
            self._starting = self._background.start(self._start_and_watch(), "start the group")
        await asyncio.shield(self._starting)
        self._disk.look()
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            self._progress, *_ = await asyncio.gather(*(actor.progress.remote() for actor in self._group))

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop: running requests end first."""
        await self._background.close()  # the actors' ends that follow are no failures
        try:
            await asyncio.wait_for(self._group[0].drain.remote(), self._config.drain_timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("%s stops without having drained: %s", self._id, logs.cause(error))
        finally:
            self._kill()

    async def _start_and_watch(self) -> None:
        await self._start()
        self._background.start(self._watch(), "watch the group")

    async def _watch(self) -> None:
        """Ends the whole group as soon as one actor has ended: the others would wait for it for ever. Routers
        see the first actor's end at once and go elsewhere; Serve sees it at the next health check."""
        watches: list[asyncio.Future[Any]] = [
            asyncio.wrap_future(actor.watch.remote().future()) for actor in self._group
        ]
        try:
            ended, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()
        for watch in ended:
            why, room = logs.cause(watch.exception() or watch.result()), disk.problem()
            hint = f" ({room})" if room else ""
            logger.error("%s %s: a worker process ended: %s%s", type(self).__name__, self._id, why, hint)
        self._kill()

    def _kill(self) -> None:
        for actor in self._group:
            ray.kill(actor)
