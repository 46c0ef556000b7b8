"""The encoder deployment: a replica is one encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from tandem.cluster.config import ServeConfig
from tandem.cluster.replicas.encoder_actor import EncoderActor, EncoderLoad, PackedEncoder
from tandem.cluster.replicas.supervisor import Supervisor
from tandem.workers.config import EngineConfig
from tandem.workers.execution import encoder


class Encoder(Supervisor):
    # What encodes. Measurements derive a class with something else in its place, like `Decoder.make_runner`.
    make_encoder: ClassVar[Callable[[EngineConfig], PackedEncoder]] = encoder.Encoder
    _progress: EncoderLoad | None

    def __init__(self, config: ServeConfig) -> None:
        super().__init__(config)
        self._spawn(EncoderActor, config.encoder_cpus, config.encoder_gpus, config, type(self).make_encoder)

    async def _start(self) -> None:
        await self._group[0].start.remote()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling.EncoderPolicy` reads, as of the last health check."""
        load = self._progress
        return {} if load is None else dict(load._asdict())
