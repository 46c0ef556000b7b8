"""What a model is, in one tree of numbers. A family fills it in (`families.py`), the one forward
(`model.py`) reads it; neither asks for the family's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "gelu_new"]


@dataclass(frozen=True)
class RelativeBias:
    """Bucketed relative position bias, added to the self-attention scores."""

    buckets: int
    max_distance: int  # positions; the bias is constant beyond
    per_layer: bool  # every layer has its own table, or layer 0's serves all


@dataclass(frozen=True)
class StackSpec:
    """One transformer stack. Encoder and decoder may differ in every field."""

    layers: int
    d_model: int
    heads: int
    head_dim: int
    d_ff: int
    activation: Activation
    gated: bool  # feed-forward: act(gate) * linear
    norm_eps: float
    attention_scale: float  # on the scores of self- and cross-attention
    relative_bias: RelativeBias


@dataclass(frozen=True)
class ModelSpec:
    """An encoder-decoder model."""

    family: str
    encoder: StackSpec
    decoder: StackSpec
    vocab_size: int
    logit_scale: float
    decoder_start_id: int
    pad_id: int
    eos_ids: tuple[int, ...]
