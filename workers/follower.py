"""Rank 1 and up of a tensor-parallel group: executes the steps that rank 0 decides."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.packet import CLOSE, ENCODE, EncodePacket, Packet
from tandem.workers.execution.runner import Runner
from tandem.workers.request import HiddenStates


class Follower:
    """`run` blocks in a thread of its own; `register` and `unregister` may be called from others."""

    def __init__(
        self,
        config: EngineConfig,
        group: Group,
        make_runner: Callable[[EngineConfig, Group], Runner] = Runner,
    ) -> None:
        """make_runner: see `Engine`."""
        self.group = group
        self.runner = make_runner(config, group)
        self.steps = 0  # executed; rank 0 has planned at least as many
        self._hidden: dict[int, HiddenStates] = {}
        self._lock = threading.Lock()

    def register(self, hidden: HiddenStates) -> None:
        """Makes hidden states known under their handle. To be called before rank 0 gets a request that reads
        them."""
        with self._lock:
            self._hidden[hidden.handle] = hidden

    def unregister(self, handle: int) -> None:
        """Forgets hidden states. To be called after the last request that reads them has ended."""
        with self._lock:
            self._hidden.pop(handle, None)

    def run(self) -> None:
        """Executes steps until rank 0 closes the group, and gives back the device's memory."""
        with self.runner.streams.on():
            while (values := self.group.receive_integers()).tolist() != CLOSE:
                if values[0] == ENCODE:
                    self.runner.encode(EncodePacket.from_ints(values.numpy()))
                    continue
                packet = Packet.from_ints(values.numpy())
                self.runner.execute(packet, lambda handle: self._hidden[handle]())
                self.runner.finish(packet, None)
                self.runner.encode_async(packet)
                self.steps += 1
        self.group.close()
        self.runner.close()
