"""A runner and encoders that compute nothing, to measure what is around them: put in place of the real ones
in an engine, an `LLM` and a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from tandem import LLM
from tandem.cluster.replicas.decoder import Decoder
from tandem.cluster.replicas.encoder import Encoder
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution import encoder
from tandem.workers.execution.packet import Packet
from tandem.workers.execution.runner import Hidden, Runner
from tandem.workers.execution.step_media import NO_MEDIA, StepMedia
from tandem.workers.request import EncoderInput


class SimulatedRunner(Runner):
    """Every step takes `step_s`, whatever is in it, and every token has the same logit.

    Scheduling, sampling, pages and hand-off are the real ones; their time comes on top. It generates; it
    cannot score, and drafts nothing.
    """

    def __init__(self, config: EngineConfig, group: Group, *, step_s: float) -> None:
        """step_s: seconds."""
        super().__init__(config, group)
        self.step_s = step_s

    def execute(
        self,
        packet: Packet,
        hidden: Hidden,  # noqa: ARG002
        media: StepMedia = NO_MEDIA,  # noqa: ARG002
    ) -> tuple[torch.Tensor | None, None]:
        assert not len(packet.targets), "nothing is scored in a simulation"
        time.sleep(self.step_s)
        sampling = int(packet.rows.samples.sum())
        if not sampling or self.group.rank > 0:
            return None, None
        return torch.zeros(sampling, self.spec.vocab_size, device=self.device), None

    def encode_async(self, packet: Packet, media: StepMedia = NO_MEDIA) -> None:
        """Nothing: it is done at once."""


class InstantEncoder(encoder.Encoder):
    """Encodes in no time, as `SimulatedRunner` does where the engine encodes by itself."""

    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        return torch.zeros(sum(len(one.token_ids) for one in inputs), self.d_model, dtype=self.dtype)


def simulated_runner(step_s: float) -> Callable[[EngineConfig, Group], SimulatedRunner]:
    return partial(SimulatedRunner, step_s=step_s)


def simulated_llm(step_s: float) -> type[LLM]:
    """`LLM` with steps of so many seconds. One rank."""
    return type("SimulatedLLM", (LLM,), {"_make_runner": simulated_runner(step_s)})


class SimulatedEncoder(Encoder):
    """The deployment."""

    make_encoder = InstantEncoder


def simulated_decoder(step_s: float) -> type[Decoder]:
    """The deployment, with steps of so many seconds."""
    return type("SimulatedDecoder", (Decoder,), {"make_runner": simulated_runner(step_s)})
