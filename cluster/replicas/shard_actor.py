"""The actor of a decoder group's rank 1 or higher: it follows rank 0's steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import HiddenLoader, HiddenSlice, fetch
from tandem.cluster.replicas.threads import use_cpus
from tandem.cluster.telemetry import logs
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.runner import Runner
from tandem.workers.follower import Follower


class ShardActor:
    """An async actor; the follower is made and runs in a thread of its own."""

    def __init__(
        self, config: ServeConfig, rank: int, make_runner: Callable[[EngineConfig, Group], Runner] = Runner
    ) -> None:
        logs.start(config.log_format, calls=False)
        self._config, self._rank, self._make_runner = config, rank, make_runner
        self._made: Future[None] = Future()
        self._ended: Future[None] = Future()

    async def start(self, rendezvous: str) -> None:
        """Loads this rank's share of the model. Returns when all ranks have met.

        Raises ModelLoadError.
        """
        threading.Thread(target=self._run, args=(rendezvous,), name="follower", daemon=True).start()
        await asyncio.wrap_future(self._made)

    def _run(self, rendezvous: str) -> None:
        try:
            config = self._config.engine_config()
            size = config.tensor_parallel_size
            use_cpus(self._config.decoder_cpus, self._config.workers_at_once)
            group = Group.create(self._rank, size, rendezvous, config.torch_device(self._rank))
            self._follower = Follower(config, group, self._make_runner)
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        try:
            self._follower.run()
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)

    async def watch(self) -> None:
        """Returns when rank 0 has closed the group. Raises the error that ended the follower."""
        await asyncio.wrap_future(self._ended)

    async def progress(self) -> None:
        """Answers, and so shows that the process lives; a step that hangs shows at rank 0."""

    async def register(self, slices: dict[int, HiddenSlice]) -> None:
        """Makes hidden states of one batch known to this rank, by handle. Returns when they are on its node.

        Raises HiddenStatesLost.
        """
        [reference] = {where.reference for where in slices.values()}
        fetched = await fetch(reference)
        for handle, where in slices.items():
            self._follower.register(HiddenLoader(handle, where, fetched))

    async def unregister(self, handles: list[int]) -> None:
        for handle in handles:
            self._follower.unregister(handle)
