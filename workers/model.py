"""The one forward pass: an encoder and a decoder stack as their spec says, over packed tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F

from tandem import kernels
from tandem.kernels import RowGroups
from tandem.workers.checkpoint import Checkpoint, WeightSlot
from tandem.workers.kv_pool import KVPool
from tandem.workers.layers import ColumnParallel, HeadTable, Norm, Placement, RowParallel, Vocabulary
from tandem.workers.spec import ModelSpec, StackSpec


@dataclass(slots=True)
class AttentionRows:
    """Rows start:stop of a decoder batch, all of which attend in the same way: one row a sequence
    (decode), or several (prefill)."""

    start: int
    stop: int
    self_pages: torch.Tensor  # int32 [sequences, pages]; of beams [sequences, positions]: their cells
    self_lengths: torch.Tensor  # int32 [sequences]: positions written so far, these rows' included
    self_groups: RowGroups
    cross_pages: torch.Tensor  # int32 [encoder inputs, pages]
    cross_lengths: torch.Tensor  # int32 [encoder inputs]
    cross_groups: RowGroups  # rows by the encoder input they read
    beams: bool = False  # one row each, whose history lies in its ancestors' pages


@dataclass(slots=True)
class DecoderBatch:
    """One mixed step: every row is one position of one sequence."""

    token_ids: torch.Tensor  # int64 [rows]
    write_slots: torch.Tensor  # int64 [rows]: where each row's K and V go, page * page_size + offset
    attention: list[AttentionRows]  # cover all rows, in order
    sample_rows: torch.Tensor  # int64: the rows whose logits are wanted


class HasWeights(Protocol):
    def slots(self) -> Iterator[WeightSlot]: ...


def _slots(*groups: Sequence[HasWeights]) -> Iterator[WeightSlot]:
    for layer in chain(*groups):
        yield from layer.slots()


class FeedForward:
    def __init__(self, name: str, spec: StackSpec, place: Placement) -> None:
        parts = ["gate", "up"] if spec.gated else ["up"]
        self.norm = Norm(f"{name}.norm", spec.d_model, spec.norm_eps, place)
        self.up = ColumnParallel(
            [f"{name}.{part}" for part in parts], [spec.d_ff] * len(parts), spec.d_model, "d_ff", place
        )
        self.down = RowParallel(f"{name}.down", spec.d_ff, spec.d_model, "d_ff", place)
        self.gated, self.activation = spec.gated, spec.activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        if self.activation == "relu":
            if self.gated:
                gate, linear = x.chunk(2, dim=-1)
                return self.down(F.relu(gate) * linear)
            return self.down(F.relu(x))
        return self.down(kernels.gated_gelu(x) if self.gated else F.gelu(x, approximate="tanh"))

    def slots(self) -> Iterator[WeightSlot]:
        return chain(self.norm.slots(), self.up.slots(), self.down.slots())


class SelfAttention:
    """Projections of self-attention; the attention itself is the stack's."""

    def __init__(self, name: str, spec: StackSpec, has_bias: bool, place: Placement) -> None:
        width = spec.heads * spec.head_dim
        self.norm = Norm(f"{name}.norm", spec.d_model, spec.norm_eps, place)
        self.qkv = ColumnParallel(
            [f"{name}.{part}" for part in "qkv"], [width] * 3, spec.d_model, "heads", place, spec.head_dim
        )
        self.o = RowParallel(f"{name}.o", width, spec.d_model, "heads", place, spec.head_dim)
        self.bias = (
            HeadTable(f"{name}.bias", spec.relative_bias.buckets, spec.heads, place) if has_bias else None
        )
        self.head_dim = spec.head_dim

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [N, d_model] → q, k, v [N, heads, head_dim]."""
        qkv = self.qkv(x).view(x.shape[0], 3, -1, self.head_dim)
        return qkv[:, 0], qkv[:, 1], qkv[:, 2]

    def slots(self) -> Iterator[WeightSlot]:
        yield from chain(self.norm.slots(), self.qkv.slots(), self.o.slots())
        if self.bias is not None:
            yield from self.bias.slots()


class CrossAttention:
    """Query and output side; keys and values of all layers are projected at once, at admission."""

    def __init__(self, name: str, spec: StackSpec, place: Placement) -> None:
        width = spec.heads * spec.head_dim
        self.norm = Norm(f"{name}.norm", spec.d_model, spec.norm_eps, place)
        self.q = ColumnParallel([f"{name}.q"], [width], spec.d_model, "heads", place, spec.head_dim)
        self.o = RowParallel(f"{name}.o", width, spec.d_model, "heads", place, spec.head_dim)

    def slots(self) -> Iterator[WeightSlot]:
        return chain(self.norm.slots(), self.q.slots(), self.o.slots())


class EncoderStack:
    """Token ids to hidden states."""

    def __init__(self, spec: ModelSpec, place: Placement) -> None:
        self.spec = stack = spec.encoder
        self.embedding = Vocabulary("encoder.embedding", spec.vocab_size, stack.d_model, place)
        self.attentions, self.feed_forwards = _layers("encoder", stack, place)
        self.final_norm = Norm("encoder.final_norm", stack.d_model, stack.norm_eps, place)

    def slots(self) -> Iterator[WeightSlot]:
        yield from self.embedding.slots()
        yield from _slots(self.attentions, self.feed_forwards, [self.final_norm])

    def prepare(self) -> None:
        """Derives what does not change from the loaded weights."""
        self.bias_tables = _bias_tables(self.spec, self.attentions, bidirectional=True)

    def __call__(self, token_ids: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
        """Packed inputs, unpadded: int64 [N], int32 [inputs + 1] → hidden states [N, d_model]."""
        residual = self.embedding.embed(token_ids)
        x = kernels.rms_norm(residual, self.attentions[0].norm.weight, self.spec.norm_eps)
        norms = [*(attention.norm for attention in self.attentions[1:]), self.final_norm]
        for attention, feed_forward, next_norm, bias in zip(
            self.attentions, self.feed_forwards, norms, self.bias_tables, strict=True
        ):
            q, k, v = attention.project(x)
            mixed = kernels.encoder_attention(q, k, v, cu_seqlens, longest, bias, self.spec.attention_scale)
            x, residual = _add_norm(attention.o(mixed.flatten(1)), residual, feed_forward.norm)
            x, residual = _add_norm(feed_forward(x), residual, next_norm)
        return x


class DecoderStack:
    """Rows of tokens to logits, over the pages of the rows' sequences."""

    def __init__(self, spec: ModelSpec, tied_output: bool, place: Placement) -> None:
        self.spec = stack = spec.decoder
        self.logit_scale = spec.logit_scale
        self.embedding = Vocabulary("decoder.embedding", spec.vocab_size, stack.d_model, place)
        self.output = (
            self.embedding
            if tied_output
            else Vocabulary("decoder.output", spec.vocab_size, stack.d_model, place)
        )
        self.attentions, self.feed_forwards = _layers("decoder", stack, place)
        self.crosses = [
            CrossAttention(f"decoder.layers.{i}.cross_attention", stack, place) for i in range(stack.layers)
        ]
        self.cross_kv = ColumnParallel(
            [f"decoder.layers.{i}.cross_attention.{part}" for i in range(stack.layers) for part in "kv"],
            [stack.heads * stack.head_dim] * (2 * stack.layers),
            spec.encoder.d_model,
            "heads",
            place,
            stack.head_dim,
        )
        self.final_norm = Norm("decoder.final_norm", stack.d_model, stack.norm_eps, place)
        self.group = place.group

    def slots(self) -> Iterator[WeightSlot]:
        yield from self.embedding.slots()
        if self.output is not self.embedding:
            yield from self.output.slots()
        yield from _slots(self.attentions, self.crosses, self.feed_forwards)
        yield from _slots([self.cross_kv, self.final_norm])

    def prepare(self) -> None:
        """Derives what does not change from the loaded weights."""
        self.bias_tables = _bias_tables(self.spec, self.attentions, bidirectional=False)

    def admit(self, hidden: torch.Tensor, write_slots: torch.Tensor, pool: KVPool) -> None:
        """Projects encoder output to every layer's cross-attention K/V, in one GEMM, into the pages.

        hidden [N, encoder's d_model], packed; write_slots int64 [N].
        """
        stack = self.spec
        kv = self.cross_kv(hidden).view(hidden.shape[0], stack.layers, 2, -1, stack.head_dim)
        for layer in range(stack.layers):
            pool.write(layer, kv[:, layer, 0], kv[:, layer, 1], write_slots)

    def __call__(self, batch: DecoderBatch, pool: KVPool) -> torch.Tensor | None:
        """Logits of the sampling rows, float32 [rows, vocabulary], on rank 0; None elsewhere."""
        residual = self.embedding.embed(batch.token_ids)
        x = kernels.rms_norm(residual, self.attentions[0].norm.weight, self.spec.norm_eps)
        norms = [*(attention.norm for attention in self.attentions[1:]), self.final_norm]
        for layer, (attention, cross, feed_forward, next_norm, bias) in enumerate(
            zip(self.attentions, self.crosses, self.feed_forwards, norms, self.bias_tables, strict=True)
        ):
            q, k, v = attention.project(x)
            pool.write(layer, k, v, batch.write_slots)
            mixed = self._attend_self(layer, q, batch, pool, bias)
            x, residual = _add_norm(attention.o(mixed.flatten(1)), residual, cross.norm)
            mixed = self._attend_cross(layer, cross.q(x).view_as(q), batch, pool)
            x, residual = _add_norm(cross.o(mixed.flatten(1)), residual, feed_forward.norm)
            x, residual = _add_norm(feed_forward(x), residual, next_norm)
        if batch.sample_rows.shape[0] == 0:
            return None
        x = x[batch.sample_rows]
        return self.output.logits(x * self.logit_scale if self.logit_scale != 1.0 else x)

    def _attend_self(
        self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool, bias: torch.Tensor
    ) -> torch.Tensor:
        scale, parts = self.spec.attention_scale, []
        for rows in batch.attention:
            inputs = (q[rows.start : rows.stop], pool.k[layer], pool.v[layer], rows.self_pages,
                      rows.self_lengths)  # fmt: skip
            if rows.beams:
                parts.append(kernels.paged_beam_attention(*inputs, bias, scale))
            else:
                parts.append(kernels.paged_self_attention(*inputs, rows.self_groups, bias, scale))
        return _in_order(parts)

    def _attend_cross(self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool) -> torch.Tensor:
        return _in_order(
            [
                kernels.paged_cross_attention(
                    q[rows.start : rows.stop], pool.k[layer], pool.v[layer], rows.cross_pages,
                    rows.cross_lengths, rows.cross_groups, self.spec.attention_scale,
                )
                for rows in batch.attention
            ]
        )  # fmt: skip


def _layers(side: str, stack: StackSpec, place: Placement) -> tuple[list[SelfAttention], list[FeedForward]]:
    attentions = [
        SelfAttention(
            f"{side}.layers.{i}.self_attention", stack, i == 0 or stack.relative_bias.per_layer, place
        )
        for i in range(stack.layers)
    ]
    return attentions, [
        FeedForward(f"{side}.layers.{i}.feed_forward", stack, place) for i in range(stack.layers)
    ]


def _bias_tables(
    stack: StackSpec, attentions: list[SelfAttention], *, bidirectional: bool
) -> list[torch.Tensor]:
    """Each layer's table; layers without weights of their own use layer 0's."""
    tables: list[torch.Tensor] = []
    for attention in attentions:
        if attention.bias is None:
            tables.append(tables[0])
        else:
            tables.append(
                kernels.relative_bias_table(
                    attention.bias.weight, bidirectional, stack.relative_bias.max_distance
                )
            )
    return tables


def _add_norm(x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    return kernels.add_rms_norm(x, residual, norm.weight, norm.eps)


def _in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_encoder(spec: ModelSpec, checkpoint: Checkpoint, place: Placement) -> EncoderStack:
    encoder = EncoderStack(spec, place)
    checkpoint.load(encoder.slots())
    encoder.prepare()
    return encoder


def load_decoder(spec: ModelSpec, checkpoint: Checkpoint, place: Placement) -> DecoderStack:
    decoder = DecoderStack(spec, checkpoint.tied("decoder.output", "decoder.embedding"), place)
    checkpoint.load(decoder.slots())
    decoder.prepare()
    return decoder
