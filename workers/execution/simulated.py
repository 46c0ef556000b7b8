"""A runner and an encoder that compute nothing, to measure what is around them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution.encoder import Encoder
from tandem.workers.execution.packet import Packet
from tandem.workers.execution.runner import Hidden, Runner


class SimulatedRunner(Runner):
    """Every step takes `simulated_step_ms`, whatever is in it, and every token is likely alike.

    Scheduling, sampling, pages and hand-off are the real ones, and no time of theirs is taken off. It
    generates; it cannot score, and copies nothing.
    """

    def execute(
        self,
        packet: Packet,
        hidden: Hidden,  # noqa: ARG002
    ) -> tuple[torch.Tensor | None, None]:
        assert self.config.simulated_step_ms is not None
        assert not len(packet.targets), "nothing is scored in a simulation"
        time.sleep(self.config.simulated_step_ms / 1000)
        sampling = int(packet.rows[:, 4].sum())
        if not sampling or self.group.rank > 0:
            return None, None
        return torch.zeros(sampling, self.spec.vocab_size, device=self.device), None

    def encode_async(self, packet: Packet) -> None:
        """Nothing: it is done at once."""


class SimulatedEncoder(Encoder):
    """Encodes in no time, as `SimulatedRunner` does where the engine encodes by itself."""

    def encode(self, inputs: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.zeros(sum(map(len, inputs)), self.d_model, dtype=self.dtype, device=self.device)


def make_encoder(config: EngineConfig) -> Encoder:
    return (Encoder if config.simulated_step_ms is None else SimulatedEncoder)(config)


def make_runner(config: EngineConfig, group: Group) -> Runner:
    """The same kind on every rank."""
    return (Runner if config.simulated_step_ms is None else SimulatedRunner)(config, group)
