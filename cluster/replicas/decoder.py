"""The decoder deployment: a replica is one tensor-parallel group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import ray
from ray.serve import get_replica_context

from tandem.cluster.background import Background
from tandem.cluster.config import ServeConfig
from tandem.cluster.replicas.deaths import DeathWatch
from tandem.cluster.replicas.engine_actor import EngineActor, make_engine
from tandem.cluster.replicas.shard_actor import ShardActor
from tandem.cluster.replicas.supervisor import Supervisor
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.runner import Runner
from tandem.workers.request import EngineStats


class Decoder(Supervisor):
    """Rank 0's actor has the engine; the shards' actors follow it."""

    # What executes steps, on every rank.
    make_runner: ClassVar[Callable[[EngineConfig, Group], Runner]] = Runner
    _progress: EngineStats | None

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        # Until the process ends: while this replica drains, the others leave the writing to it.
        self._until_the_end = Background()
        cpus, gpus, make_runner = config.decoder_cpus, config.decoder_gpus, type(self).make_runner
        self._spawn(EngineActor, cpus, gpus, config, partial(make_engine, make_runner=make_runner))
        for rank in range(1, config.tensor_parallel_size):
            self._spawn(ShardActor, cpus, gpus, config, rank, make_runner)

    async def _start(self) -> None:
        here, own_id = get_replica_context(), ray.get_runtime_context().get_actor_id()
        watch = DeathWatch(here.app_name, here.deployment, str(own_id))
        self._until_the_end.start(watch.run(), "watch for deaths")
        engine, *shards = self._group
        rendezvous = await engine.rendezvous.remote()
        await asyncio.gather(
            engine.start.remote(rendezvous, shards), *(shard.start.remote(rendezvous) for shard in shards)
        )

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.DecoderPolicy` reads, as of the last health check."""
        stats = self._progress
        if stats is None:
            return {}
        return {
            "slots": (stats.running + stats.waiting) / stats.max_running,
            "pages": 1 - stats.free_pages / stats.total_pages,
        }
