"""What a model takes in memory, worked out without reading its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from tandem.errors import InvalidRequest
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.models.checkpoint import Checkpoint
from tandem.workers.models.families import spec_of
from tandem.workers.models.kv_pool import pool_pages, position_bytes
from tandem.workers.models.layers import Placement
from tandem.workers.models.model_folder import has_weights, read_config, read_json
from tandem.workers.models.spec import ModelSpec
from tandem.workers.models.stacks import DecoderStack, EncoderStack

# What weights belong to: what comes before the encoder's layers; the encoder; the decoder's cross-attention,
# with the rest of a layer that has no other attention; its other layers; its embedding and output projection.
Part = Literal["front", "encoder", "cross_attention", "decoder", "vocabulary"]
PARTS: Final[tuple[Part, ...]] = ("front", "encoder", "cross_attention", "decoder", "vocabulary")


@dataclass(frozen=True)
class Footprint:
    """Memory of one engine. Sizes are bytes on each rank."""

    device: str
    dtype: str
    ranks: int
    encoder_weights: int  # front included; 0 where the model is decoder-only, as the encoder's other figures
    decoder_weights: int
    parts: Mapping[Part, int]  # the same weights, by what they belong to
    self_kv_per_position: int  # a position of the decoder, in all layers
    cross_kv_per_position: int  # a position of an encoder input, in all layers
    hidden_states_per_position: int  # what an encoder hands to a decoder, by position
    page_size: int  # positions
    pages: int  # in the pool that self- and cross-attention share

    @classmethod
    def of(cls, config: EngineConfig) -> Footprint:
        """What the engine of this configuration takes on this machine. A folder without weights is enough.

        Raises ModelLoadError for a model that cannot be served.
        """
        folder = Path(config.model)
        if not has_weights(folder):
            return cls.of_spec(spec_of(read_config(folder)), config, tied=tied_in_config(folder))
        checkpoint = Checkpoint(folder)
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
        parts: Counter[Part] = Counter(dict.fromkeys(PARTS, 0))
        if spec.encoder is not None:
            place = Placement(meta, dtype, Group(size=ranks), config.quantization)
            parts.update(_by_part(EncoderStack(spec.encoder, place), place, spec))
        place = Placement(meta, dtype, Group(size=ranks), config.quantization)
        layers = DecoderStack(spec, tied, place)
        parts.update(_by_part(layers, place, spec))
        if device.type == "cpu":  # the output projection is packed; a tied one besides the embedding
            output = layers.head.projection
            parts["vocabulary"] += output.packed_bytes - (0 if tied else output.weight.nbytes)
        encoder = parts["front"] + parts["encoder"]
        weights = sum(parts.values())
        asks = device.type == "cuda" and config.num_pages is None and config.kv_cache_gib is None
        if asks and not torch.cuda.is_available():
            raise InvalidRequest("must be said where there is no GPU to ask", field="kv_cache_gib")
        kv = position_bytes(config, spec, device)
        return cls(
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            ranks=ranks,
            encoder_weights=encoder,
            decoder_weights=weights - encoder,
            parts=dict(parts),
            self_kv_per_position=kv,
            cross_kv_per_position=0 if spec.encoder is None else kv // spec.cross_planes,
            hidden_states_per_position=0 if spec.encoder is None else spec.encoder.d_model * dtype.itemsize,
            page_size=config.positions_per_page(device),
            pages=pool_pages(config, spec, device, unloaded=weights),
        )

    @property
    def kv_cache(self) -> int:
        """Bytes of the pool."""
        return self.pages * self.page_bytes

    @property
    def page_bytes(self) -> int:
        return self.page_size * self.self_kv_per_position

    def sequences(self, inputs: int, outputs: int) -> int:
        """How many sequences with inputs and outputs of these lengths the pool holds at once."""
        return self.pages // self.sequence_pages(inputs, outputs)

    def sequence_pages(self, inputs: int, outputs: int) -> int:
        """Pages that a sequence with an input and an output of these lengths takes."""
        # A decoder-only model has both in one row of pages.
        parts: tuple[int, ...] = (inputs + outputs,)
        if self.cross_kv_per_position:
            parts = -(-inputs * self.cross_kv_per_position // self.self_kv_per_position), outputs
        return sum(-(-part // self.page_size) for part in parts)


def _by_part(stack: EncoderStack | DecoderStack, place: Placement, spec: ModelSpec) -> Counter[Part]:
    """Bytes of a stack's weights. `place` is where its tensors were made."""
    found: Counter[Part] = Counter()
    owners: dict[int, Part] = {}  # of the projections' tensors, of which slots are views
    for slot in stack.slots():
        part = _part(slot.name, spec)
        found[part] += slot.into.nbytes
        owners[id(slot.into if slot.into._base is None else slot.into._base)] = part
    for weight, saved in place.saved():
        found[owners[id(weight)]] -= saved
    return found


def _part(name: str, spec: ModelSpec) -> Part:
    """The part of the weight that we call so."""
    side, _, rest = name.partition(".")
    if side == "encoder":
        return "front" if rest.startswith("front.") else "encoder"
    if rest.startswith(("embedding", "output")):
        return "vocabulary"
    kind, _, of_layer = rest.partition(".")
    if kind != "layers":
        return "decoder"
    layer, _, sublayer = of_layer.partition(".")
    crosses = sublayer.startswith("cross_attention.") or spec.attentions(int(layer)) == ("cross",)
    return "cross_attention" if crosses else "decoder"


def tied_in_config(folder: Path) -> bool:
    """Whether a model whose weights are not there has one matrix as the decoder's embedding and as its output
    projection: config.json says so, or transformers' default does."""
    from transformers import AutoConfig

    config = read_json(folder, "config.json")
    inner: Any = config.get("text_config") or config.get("decoder")
    said = (inner if isinstance(inner, dict) else config).get("tie_word_embeddings")
    if said is None:
        made: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        said = getattr(made.get_text_config(decoder=True), "tie_word_embeddings", True)
    return bool(said)
