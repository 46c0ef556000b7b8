"""What a model takes in memory, worked out without reading its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem.errors import InvalidRequest
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.kv_pool import pool_pages, position_bytes
from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import ModelSpec
from tandem.workers.models.stacks import DecoderStack, EncoderStack


@dataclass(frozen=True)
class Footprint:
    """Memory of one engine. Sizes are bytes on each rank."""

    device: str
    dtype: str
    ranks: int
    encoder_weights: int  # 0 where the model is decoder-only, as the encoder's other figures
    decoder_weights: int
    self_kv_per_position: int  # a position of the decoder, in all layers
    cross_kv_per_position: int  # a position of an encoder input, in all layers
    hidden_states_per_position: int  # what an encoder hands to a decoder, by position
    page_size: int  # positions
    pages: int  # in the pool that self- and cross-attention share

    @classmethod
    def of(cls, config: EngineConfig) -> Footprint:
        """What the engine of this configuration takes on this machine.

        Raises ModelLoadError for a model that cannot be served.
        """
        checkpoint = Checkpoint(Path(config.model))
        tied = checkpoint.tied("decoder.output", "decoder.embedding")
        return cls.of_spec(checkpoint.spec, config, tied=tied)

    @classmethod
    def of_spec(cls, spec: ModelSpec, config: EngineConfig, *, tied: bool) -> Footprint:
        """The same of a model without its weights. tied: the output projection is the decoder's embedding."""
        # The device may be another machine's.
        device = config.torch_device() if config.device == "auto" else torch.device(config.device)
        dtype = config.torch_dtype(device)
        ranks = config.tensor_parallel_size
        # The engine's own layers, of tensors that have a size but no memory.
        meta = torch.device("meta")
        encoder = 0
        if spec.encoder is not None:
            place = Placement(meta, dtype, Group(size=ranks), config.quantization)
            encoder = _bytes(EncoderStack(spec.encoder, place).slots()) - place.saved()
        place = Placement(meta, dtype, Group(size=ranks), config.quantization)
        layers = DecoderStack(spec, tied, place)
        decoder = _bytes(layers.slots()) - place.saved()
        if device.type == "cpu":  # the output projection is packed; a tied one besides the embedding
            output = layers.head.projection
            decoder += output.packed_bytes - (0 if tied else output.weight.nbytes)
        asks = device.type == "cuda" and config.num_pages is None and config.kv_cache_gib is None
        if asks and not torch.cuda.is_available():
            raise InvalidRequest("must be said where there is no GPU to ask", field="kv_cache_gib")
        kv = position_bytes(config, spec, device)
        return cls(
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            ranks=ranks,
            encoder_weights=encoder,
            decoder_weights=decoder,
            self_kv_per_position=kv,
            cross_kv_per_position=0 if spec.encoder is None else kv // spec.cross_planes,
            hidden_states_per_position=0 if spec.encoder is None else spec.encoder.d_model * dtype.itemsize,
            page_size=config.positions_per_page(device),
            pages=pool_pages(config, spec, device, unloaded=encoder + decoder),
        )

    @property
    def kv_cache(self) -> int:
        """Bytes of the pool."""
        return self.pages * self.page_size * self.self_kv_per_position

    def sequences(self, inputs: int, outputs: int) -> int:
        """How many sequences with inputs and outputs of these lengths the pool holds at once."""
        # A decoder-only model has both in one row of pages.
        parts: tuple[int, ...] = (inputs + outputs,)
        if self.cross_kv_per_position:
            parts = -(-inputs * self.cross_kv_per_position // self.self_kv_per_position), outputs
        return self.pages // sum(-(-part // self.page_size) for part in parts)


def _bytes(slots: Iterable[WeightSlot]) -> int:
    return sum(slot.into.numel() * slot.into.element_size() for slot in slots)
