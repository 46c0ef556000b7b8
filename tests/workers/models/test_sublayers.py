"""Embedding, sublayers and head, each way a spec can ask for, against the formula written out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tandem.kernels import ACTIVATIONS
from tandem.workers.distributed import Group
from tandem.workers.models.attention import CrossKV
from tandem.workers.models.embedding import Embedding
from tandem.workers.models.head import Head
from tandem.workers.models.layers import Placement, Vocabulary, WeightSlot
from tandem.workers.models.spec import Activation, ModelSpec, PositionTable, StackSpec
from tandem.workers.models.stacks import DecoderStack, EncoderStack
from tandem.workers.models.sublayers import FeedForward

PLACE = Placement(torch.device("cpu"), torch.float32, Group())
STACK = StackSpec(
    vocab_size=11, layers=2, d_model=6, heads=2, head_dim=3, d_ff=8, activation="relu", bias=True,
    norm="layer", norm_eps=1e-5, attention_scale=1.0,
)  # fmt: skip
MODEL = ModelSpec(
    family="test",
    encoder=replace(STACK, d_model=4),
    decoder=STACK,
    decoder_start_id=0,
    pad_id=0,
    eos_ids=(1,),
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def fill(block: Any) -> dict[str, torch.Tensor]:
    """Random weights, by their names."""
    slots: Iterable[WeightSlot] = block.slots()
    found = {}
    for slot in slots:
        slot.into.copy_(torch.randn(slot.into.shape))
        found[slot.name] = slot.into.clone()
    return found


def norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name], weights[f"{name}.bias"], 1e-5)


@pytest.mark.parametrize("place", ["sum", "tokens", None])
def test_embedding(place: Any) -> None:
    """Scale, positions from their offset on, the first token type, and a norm in either place."""
    stack = replace(
        STACK, embedding_scale=2.5, embedding_norm=place, token_types=2, max_positions=5,
        positions=PositionTable("learned", offset=3),
    )  # fmt: skip
    embedding = Embedding("encoder", stack, PLACE)
    weights = fill(embedding)
    assert weights["encoder.positions"].shape == (8, 6)
    embedding.prepare()
    ids, rows = torch.tensor([4, 10, 4]), torch.tensor([0, 4, 1])
    x = weights["encoder.embedding"][ids] * 2.5
    if place == "tokens":
        x = norm(x, weights, "encoder.embedding_norm")
    x = x + weights["encoder.positions"][rows + 3] + weights["encoder.token_types"][0]
    if place == "sum":
        x = norm(x, weights, "encoder.embedding_norm")
    torch.testing.assert_close(embedding.add_positions(embedding.embed(ids), rows), x)


def test_computed_positions_are_not_weights() -> None:
    stack = replace(STACK, max_positions=5, positions=PositionTable("sinusoidal"))
    assert [slot.name for slot in Embedding("decoder", stack, PLACE).slots()] == ["decoder.embedding"]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_feed_forward(activation: Activation, gated: bool) -> None:
    feed_forward = FeedForward("ff", replace(STACK, activation=activation, gated=gated), PLACE)
    weights, x = fill(feed_forward), torch.randn(5, 6)
    act = ACTIVATIONS[activation]
    inner = F.linear(x, weights["ff.up"], weights["ff.up.bias"])
    inner = act(F.linear(x, weights["ff.gate"], weights["ff.gate.bias"])) * inner if gated else act(inner)
    torch.testing.assert_close(
        feed_forward(x), F.linear(inner, weights["ff.down"], weights["ff.down.bias"]), rtol=1e-4, atol=1e-4
    )


def test_head() -> None:
    """BERT's: projection, activation, norm, then logits with a bias."""
    spec = replace(MODEL, output_transform="gelu", output_bias=True, logit_scale=0.5)
    embedding = Vocabulary("decoder.embedding", 11, 6, PLACE)
    head = Head(spec, embedding, False, PLACE)
    weights, x = fill(head), torch.randn(5, 6)
    head.prepare()
    inner = F.gelu(F.linear(x, weights["decoder.transform"], weights["decoder.transform.bias"]))
    inner = norm(inner, weights, "decoder.transform_norm") * 0.5
    logits = head(x)
    assert logits is not None
    expected = F.linear(inner, weights["decoder.output"], weights["decoder.output.bias"])
    torch.testing.assert_close(logits, expected)


def test_a_bias_of_zeros_is_not_added() -> None:
    head = Head(replace(MODEL, output_bias=True), Vocabulary("embedding", 11, 6, PLACE), True, PLACE)
    assert [slot.name for slot in head.slots()] == ["decoder.output.bias"]
    head.prepare()
    assert head.bias is None


def test_cross_kv_bridges_widths() -> None:
    names = ["a", "b"]
    cross = CrossKV(names, replace(STACK, d_model=4), replace(MODEL, enc_to_dec_proj=True), PLACE)
    weights, hidden = fill(cross), torch.randn(5, 4)
    bridged = F.linear(hidden, weights["enc_to_dec_proj"], weights["enc_to_dec_proj.bias"])
    kv = cross(hidden)
    assert kv.shape == (5, 2, 2, 2, 3)
    for layer, name in enumerate(names):
        for which, part in enumerate("kv"):
            expected = F.linear(bridged, weights[f"{name}.{part}"], weights[f"{name}.{part}.bias"])
            torch.testing.assert_close(kv[:, layer, which].flatten(1), expected)


# -- the sublayers of a layer, and which norm follows each


def sublayers(stack: EncoderStack | DecoderStack, layer: int) -> list[str]:
    return [type(sublayer).__name__ for sublayer in stack.layers[layer]]


def norms(stack: EncoderStack | DecoderStack) -> list[str]:
    side = "encoder" if isinstance(stack, EncoderStack) else "decoder"
    return [norm.name.removeprefix(f"{side}.") for _, norm in stack.steps]


def test_where_norms_come_first_the_next_sublayers_follows() -> None:
    assert norms(EncoderStack(STACK, PLACE)) == [
        "layers.0.feed_forward.norm", "layers.1.self_attention.norm",
        "layers.1.feed_forward.norm", "final_norm",
    ]  # fmt: skip
    decoder = DecoderStack(MODEL, True, PLACE)
    assert sublayers(decoder, 1) == ["SelfAttention", "CrossAttention", "FeedForward"]
    assert norms(decoder)[3:] == [
        "layers.1.cross_attention.norm", "layers.1.feed_forward.norm", "final_norm"
    ]  # fmt: skip


def test_where_norms_come_last_its_own_follows() -> None:
    stack = EncoderStack(replace(STACK, post_norm=True), PLACE)
    assert norms(stack)[:2] == ["layers.0.self_attention.norm", "layers.0.feed_forward.norm"]
    assert stack.final_norm is None


def test_parallel_sublayers_share_a_norm() -> None:
    alone = replace(MODEL, encoder=None, decoder=replace(STACK, parallel_residual=True))
    decoder = DecoderStack(alone, True, PLACE)
    assert sublayers(decoder, 0) == ["Parallel"]
    assert norms(decoder) == ["layers.1.self_attention.norm", "final_norm"]
    assert "decoder.layers.0.feed_forward.norm" not in fill(decoder)
    assert decoder.cross_kv is None


def test_cross_attention_in_listed_layers() -> None:
    """It stands in for self-attention there, and the KV pool has planes for the more frequent kind."""
    spec = replace(MODEL, decoder=replace(STACK, layers=5, cross_layers=(0, 3)))
    decoder = DecoderStack(spec, True, PLACE)
    kinds = [sublayers(decoder, layer)[0] for layer in range(5)]
    assert kinds == ["CrossAttention", "SelfAttention", "SelfAttention", "CrossAttention", "SelfAttention"]
    assert [layer[0].plane for layer in decoder.layers] == [0, 0, 1, 1, 2]  # type: ignore[union-attr]
    assert spec.kv_planes == 3
    assert decoder.cross_kv is not None
    assert decoder.cross_kv.kv.names == [
        f"decoder.layers.{n}.cross_attention.{part}" for n in (0, 3) for part in "kv"
    ]
    many = replace(spec, decoder=replace(spec.decoder, cross_layers=(0, 1, 2, 3)))
    assert many.kv_planes == 4
    assert MODEL.kv_planes == 2
