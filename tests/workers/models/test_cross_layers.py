"""Cross-attention in place of self-attention in listed layers, against the formula written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from filled_stacks import HEAD_DIM, LONGEST, PLACE, VOCAB, Sequences, filled, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.kernels import ACTIVATIONS
from tandem.workers.models.spec import ModelSpec, StackSpec
from tandem.workers.models.stacks import DecoderStack

HEADS = 2
SOURCE = 8  # the encoder's width

Weights = Mapping[str, torch.Tensor]


def stack(**options: Any) -> StackSpec:
    return StackSpec(
        vocab_size=VOCAB, heads=HEADS, head_dim=HEAD_DIM, d_ff=20, norm="layer", norm_eps=1e-6,
        attention_scale=0.5, **options,
    )  # fmt: skip


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    layers = draw(st.integers(1, 4))
    crossing = draw(st.lists(st.sampled_from(range(layers)), min_size=1, unique=True))
    options = {
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "gated": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "post_norm": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "parallel_residual": draw(st.booleans()),
    }
    return ModelSpec(
        family="any",
        encoder=stack(layers=1, d_model=SOURCE, activation="relu"),
        decoder=stack(layers=layers, d_model=12, cross_layers=tuple(crossing), **options),
        decoder_start_id=0,
        pad_id=0,
        eos_ids=(1,),
    )


def linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.linear(x, weights[name], weights.get(f"{name}.bias"))


def norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name], weights[f"{name}.bias"], 1e-6)


def attend(
    x: torch.Tensor, keys_of: torch.Tensor, weights: Weights, name: str, *, causal: bool
) -> torch.Tensor:
    q, k, v = (
        linear(rows, weights, f"{name}.{part}").view(len(rows), HEADS, HEAD_DIM)
        for rows, part in ((x, "q"), (keys_of, "k"), (keys_of, "v"))
    )
    if f"{name}.q_norm" in weights:
        q, k = norm(q, weights, f"{name}.q_norm"), norm(k, weights, f"{name}.k_norm")
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=causal, scale=0.5
    )
    return linear(mixed.transpose(0, 1).flatten(1), weights, f"{name}.o")


def logits(spec: ModelSpec, weights: Weights, ids: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """One sequence alone, layer by layer."""
    decoder = spec.decoder
    assert decoder.cross_layers is not None
    act, x = ACTIVATIONS[decoder.activation], weights["decoder.embedding"][ids]

    def feed_forward(x: torch.Tensor, name: str) -> torch.Tensor:
        inner = linear(x, weights, f"{name}.up")
        inner = act(linear(x, weights, f"{name}.gate")) * inner if decoder.gated else act(inner)
        return linear(inner, weights, f"{name}.down")

    for layer in range(decoder.layers):
        crosses = layer in decoder.cross_layers
        name = f"decoder.layers.{layer}.{'cross' if crosses else 'self'}_attention"
        forward = f"decoder.layers.{layer}.feed_forward"
        first = x if decoder.post_norm else norm(x, weights, f"{name}.norm")
        mixed = attend(first, source if crosses else first, weights, name, causal=not crosses)
        if decoder.parallel_residual:
            mixed = mixed + feed_forward(first, forward)
        x = x + mixed
        if decoder.post_norm:
            x = norm(x, weights, f"{name}.norm")
        if decoder.parallel_residual:
            continue
        if decoder.post_norm:
            x = norm(x + feed_forward(x, forward), weights, f"{forward}.norm")
        else:
            x = x + feed_forward(norm(x, weights, f"{forward}.norm"), forward)
    if not decoder.post_norm:
        x = norm(x, weights, "decoder.final_norm")
    return F.linear(x, weights["decoder.embedding"])


@given(models(), st.lists(st.integers(1, LONGEST), min_size=2, max_size=4))
@settings(max_examples=60)
def test_listed_layers_attend_to_the_encoder_alone(spec: ModelSpec, lengths: list[int]) -> None:
    decoder = DecoderStack(spec, True, PLACE)
    filled(decoder)
    weights = {slot.name: slot.into for slot in decoder.slots()}
    inputs = tokens(lengths)
    hidden = [torch.randn(length, SOURCE) for length in lengths[::-1]]
    together = Sequences(decoder, spec, hidden, len(lengths)).step(dict(enumerate(inputs)))
    for ids, source, found in zip(inputs, hidden, together, strict=True):
        torch.testing.assert_close(found, logits(spec, weights, ids, source), rtol=1e-3, atol=1e-3)
