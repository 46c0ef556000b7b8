"""The sublayers of a layer, and which norm follows each."""

from __future__ import annotations

from dataclasses import replace

import torch
from filled_stacks import MODEL, PLACE, STACK, fill

from tandem.workers.models.stacks import DecoderStack, EncoderStack


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


def test_an_encoder_embeds_and_encodes() -> None:
    """In two calls, so that a vector need not be a token's."""
    encoder = EncoderStack(STACK, PLACE)
    fill(encoder)
    encoder.prepare()
    ids, lengths = torch.tensor([4, 10, 4]), [2, 1]
    x = encoder.embed(ids)
    expected = encoder(ids, lengths)
    assert torch.equal(encoder.encode(x, lengths), expected)
    x[2] = torch.randn(STACK.d_model)
    found = encoder.encode(x, lengths)
    torch.testing.assert_close(found[:2], expected[:2])
    assert not torch.allclose(found[2], expected[2])
