"""The decoder deployment: a Serve replica that supervises one tensor-parallel group of engine actors."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.engine_actor import EngineActor
from tandem.cluster.shard_actor import ShardActor
from tandem.errors import InternalError
from tandem.workers.request import EngineStats

logger = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 10.0  # for the group's answers to one health check
ROUTERS = 1000  # links and calls that an engine actor serves at a time


class Decoder:
    """Starts the group, answers health from its progress, drains it, ends it.

    The first rank is the engine, which routers talk to directly; no request passes through here. The
    ranks are children of this process: when it ends, however it ends, Ray ends them.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._engine_id = uuid.uuid4().hex[:8]
        self._background = Background()
        self._starting: asyncio.Task[None] | None = None
        self._stats: EngineStats | None = None  # as of the last health check
        self._engine = self._spawn(EngineActor, 0, config)
        self._shards = [
            self._spawn(ShardActor, rank, config, rank) for rank in range(1, config.tensor_parallel_size)
        ]

    def _spawn(self, kind: type, rank: int, *args: object) -> Any:
        group = ray.util.get_current_placement_group()  # this replica's own: see app.py
        if group is None:
            raise InternalError("the decoder was deployed without its placement group")
        actor_class: Any = ray.remote(kind)
        return actor_class.options(
            num_cpus=self._config.decoder_cpus,
            num_gpus=self._config.decoder_gpus if self._config.device == "cuda" else 0,
            max_concurrency=ROUTERS,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(*args)

    async def describe(self) -> tuple[str, Any]:
        """For routers: the engine's id, which a replacement does not share, and its actor."""
        return self._engine_id, self._engine

    async def check_health(self) -> None:
        """Serve's health check, of which the first is part of starting and may take its time.

        An ActorDiedError goes through to Serve, which then replaces this replica without waiting for
        further failures.
        """
        if self._starting is None:
            self._starting = self._background.start(self._start(), "start the group")
        await asyncio.shield(self._starting)
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            self._stats, *_ = await asyncio.gather(*(rank.progress.remote() for rank in self._group))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.decoder_policy` reads, as of the last health check."""
        stats = self._stats
        if stats is None:
            return {}
        return {
            "slots": (stats.running + stats.waiting) / stats.max_running,
            "pages": 1 - stats.free_pages / stats.total_pages,
        }

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop: running requests end first."""
        await self._background.close()  # the ends that follow are no failures
        try:
            await asyncio.wait_for(self._engine.drain.remote(), self._config.drain_timeout_s)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("engine %s stops without having drained: %r", self._engine_id, error)
        finally:
            self._kill()

    @property
    def _group(self) -> list[Any]:
        return [self._engine, *self._shards]

    async def _start(self) -> None:
        rendezvous = await self._engine.rendezvous.remote()
        await asyncio.gather(
            self._engine.start.remote(rendezvous, self._shards),
            *(shard.start.remote(rendezvous) for shard in self._shards),
        )
        self._background.start(self._watch(), "watch the group")

    async def _watch(self) -> None:
        """Ends the whole group as soon as one rank has ended: the others would wait for it for ever.
        Routers see the engine's end at once and go elsewhere, Serve sees it at the next health check."""
        watches: list[asyncio.Future[Any]] = [
            asyncio.wrap_future(rank.watch.remote().future()) for rank in self._group
        ]
        try:
            ended, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()
        for watch in ended:
            logger.error(
                "a rank of engine %s ended: %r", self._engine_id, watch.exception() or watch.result()
            )
        self._kill()

    def _kill(self) -> None:
        for rank in self._group:
            ray.kill(rank)
