"""A runner that computes nothing, to measure what is around it."""

from __future__ import annotations

import time

import torch

from tandem.workers.packet import Packet
from tandem.workers.runner import Hidden, Runner


class SimulatedRunner(Runner):
    """Every step takes `simulated_step_ms`, whatever is in it, and every token is likely alike.

    Scheduling, sampling, pages and hand-off are the real ones, and no time of theirs is taken off. It
    generates; it cannot score.
    """

    def execute(
        self,
        packet: Packet,
        hidden: Hidden,  # noqa: ARG002
    ) -> tuple[torch.Tensor | None, None]:
        assert self.config.simulated_step_ms is not None
        time.sleep(self.config.simulated_step_ms / 1000)
        sampling = int(packet.rows[:, 4].sum())
        assert not len(packet.targets), "nothing is scored in a simulation"
        return torch.zeros(sampling, self.spec.vocab_size) if sampling else None, None
