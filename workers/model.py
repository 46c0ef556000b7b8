"""The one forward pass: an encoder and a decoder stack as their spec says, over packed tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import torch

from tandem import kernels
from tandem.errors import ModelLoadError
from tandem.kernels import RowGroups
from tandem.workers.blocks import (
    CrossAttention,
    CrossKV,
    Embedding,
    FeedForward,
    Head,
    Rotation,
    SelfAttention,
    norm,
)
from tandem.workers.checkpoint import Checkpoint, WeightSlot
from tandem.workers.kv_pool import KVPool
from tandem.workers.layers import HasWeights, Norm, Placement
from tandem.workers.positions import rotary_table
from tandem.workers.spec import ModelSpec, StackSpec

# Rows of logits that scoring holds at a time: of a large vocabulary they take far more memory than all else
# of a step.
_SCORED_AT_ONCE: Final = 256


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
    positions: torch.Tensor  # int64 [rows]: each row's in its sequence
    write_slots: torch.Tensor  # int64 [rows]: where each row's K and V go, page * page_size + offset
    attention: list[AttentionRows]  # cover all rows, in order
    sample_rows: torch.Tensor  # int64: the rows whose logits are wanted
    score_rows: torch.Tensor  # int64: those behind which a token is scored
    target_ids: torch.Tensor  # int64: these tokens
    top: int  # likeliest tokens wanted beside them; below 0 not even their rank is


class TargetScores(NamedTuple):
    """Of T tokens, under the model's own distribution; ranks and top where `DecoderBatch.top` wants them."""

    logprobs: torch.Tensor  # float32 [T]
    ranks: torch.Tensor | None = None  # int64 [T]: 1 for the likeliest
    top: torch.Tensor | None = None  # float32 [T, k]: the likeliest tokens' log-probabilities
    top_ids: torch.Tensor | None = None  # int64 [T, k]


class Stack:
    """What encoder and decoder have in common."""

    def __init__(self, side: str, stack: StackSpec, place: Placement, crosses: list[CrossAttention]) -> None:
        self.spec = stack
        self.embedding = Embedding(side, stack, place)
        per_layer = stack.relative_bias is not None and stack.relative_bias.per_layer
        self.attentions = [
            SelfAttention(f"{side}.layers.{i}.self_attention", stack, i == 0 or per_layer, place)
            for i in range(stack.layers)
        ]
        self.crosses = crosses
        self.feed_forwards = [
            FeedForward(f"{side}.layers.{i}.feed_forward", stack, place) for i in range(stack.layers)
        ]
        self.final_norm = None if stack.post_norm else norm(f"{side}.final_norm", stack, place)
        self.norms_behind = self._norms_behind()
        self.bias_tables: list[torch.Tensor | None] = [None] * stack.layers
        self._angles = None
        if stack.rotary is not None:
            assert stack.max_positions is not None, "a table of angles has an end"
            angles = rotary_table(stack.rotary, stack.max_positions)
            self._angles = angles.to(place.device, place.dtype)

    def _norms_behind(self) -> list[list[Norm]]:
        """For each sublayer of each layer, the norm of the sum behind it: the next sublayer's where norms
        come first, the sublayer's own where they come last."""
        parts = [self.attentions, self.crosses, self.feed_forwards]
        norms = [
            [sublayer.norm for sublayer in layer if sublayer.norm is not None]
            for layer in zip(*filter(None, parts), strict=True)
        ]
        if self.final_norm is None:
            return norms
        following = iter([*chain(*norms), self.final_norm][1:])
        return [[next(following) for _ in layer] for layer in norms]

    def slots(self) -> Iterator[WeightSlot]:
        parts: Iterable[HasWeights] = chain(
            [self.embedding], self.attentions, self.crosses, self.feed_forwards
        )
        for part in parts:
            yield from part.slots()
        if self.final_norm is not None:
            yield from self.final_norm.slots()

    def prepare(self, *, bidirectional: bool) -> None:
        """Derives what does not change from the loaded weights."""
        self.embedding.prepare()
        if (relative := self.spec.relative_bias) is None:
            return
        for layer, attention in enumerate(self.attentions):
            if attention.bias is None:  # layers without weights of their own use layer 0's
                self.bias_tables[layer] = self.bias_tables[0]
            else:
                table = kernels.relative_bias_table(
                    attention.bias.weight, bidirectional, relative.max_distance
                )
                if relative.window is not None:
                    table = kernels.windowed_bias_table(table, relative.window)
                self.bias_tables[layer] = table

    def enter(
        self, token_ids: torch.Tensor, positions: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first sublayer reads, and what its output is added to."""
        residual = self.embedding(token_ids, positions)
        return (residual if self.spec.post_norm else self.attentions[0].norm(residual)), residual

    def join(self, x: torch.Tensor, residual: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
        """What the next sublayer reads, and what its output is added to, behind the sublayer of output x."""
        x, total = norm.add(x, residual)
        return x, x if self.spec.post_norm else total

    def rotation(self, positions: torch.Tensor) -> Rotation | None:
        if self._angles is None:
            return None
        cosines, sines = self._angles[positions].unbind(1)
        return cosines, sines


class EncoderStack(Stack):
    """Token ids to hidden states."""

    def __init__(self, spec: StackSpec, place: Placement) -> None:
        super().__init__("encoder", spec, place, [])

    def __call__(self, token_ids: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
        """Packed inputs, unpadded: int64 [N], int32 [inputs + 1] → hidden states [N, d_model]."""
        positions = None if self.spec.positions is None else _positions(cu_seqlens, len(token_ids))
        x, residual = self.enter(token_ids, positions)
        for attention, feed_forward, norms, bias in zip(
            self.attentions, self.feed_forwards, self.norms_behind, self.bias_tables, strict=True
        ):
            q, k, v = attention.project(x)
            mixed = kernels.encoder_attention(q, k, v, cu_seqlens, longest, bias, self.spec.attention_scale)
            x, residual = self.join(attention.o(mixed.flatten(1)), residual, norms[0])
            x, residual = self.join(feed_forward(x), residual, norms[1])
        return x


class DecoderStack(Stack):
    """Rows of tokens to logits, over the pages of the rows' sequences."""

    def __init__(self, spec: ModelSpec, tied_output: bool, place: Placement) -> None:
        stack = spec.decoder
        names = [f"decoder.layers.{i}.cross_attention" for i in range(stack.layers)]
        crosses = [] if spec.encoder is None else [CrossAttention(name, stack, place) for name in names]
        super().__init__("decoder", stack, place, crosses)
        self.head = Head(spec, self.embedding.tokens, tied_output, place)
        self.cross_kv = None if spec.encoder is None else CrossKV(names, spec.encoder, spec, place)

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from self.head.slots()
        if self.cross_kv is not None:
            yield from self.cross_kv.slots()

    def admit(self, hidden: torch.Tensor, write_slots: torch.Tensor, pool: KVPool) -> None:
        """Projects encoder output to every layer's cross-attention K/V, in one GEMM, into the pages.

        hidden [N, encoder's d_model], packed; write_slots int64 [N].
        """
        assert self.cross_kv is not None, "a decoder-only model admits nothing"
        kv = self.cross_kv(hidden)
        for layer in range(self.spec.layers):
            pool.write(layer, kv[:, layer, 0], kv[:, layer, 1], write_slots)

    def __call__(self, batch: DecoderBatch, pool: KVPool) -> tuple[torch.Tensor | None, TargetScores | None]:
        """Logits of the sampling rows, float32 [rows, vocabulary], and the targets' scores; both on rank 0
        only and where there are any, else None."""
        x, residual = self.enter(batch.token_ids, batch.positions)
        rotation = self.rotation(batch.positions)
        for layer, (attention, feed_forward, norms) in enumerate(
            zip(self.attentions, self.feed_forwards, self.norms_behind, strict=True)
        ):
            q, k, v = attention.project(x, rotation)
            pool.write(layer, k, v, batch.write_slots)
            out = attention.o(self._attend_self(layer, q, batch, pool).flatten(1))
            if self.crosses:
                x, residual = self.join(out, residual, norms[0])
                cross = self.crosses[layer]
                out = cross.o(self._attend_cross(layer, cross.q(x).view_as(q), batch, pool).flatten(1))
            if self.spec.parallel:
                out = out + feed_forward(x)
            else:
                x, residual = self.join(out, residual, norms[-2])
                out = feed_forward(x)
            x, residual = self.join(out, residual, norms[-1])
        logits = self.head(x[batch.sample_rows]) if len(batch.sample_rows) else None
        return logits, self._scores(x, batch) if len(batch.score_rows) else None

    def _scores(self, x: torch.Tensor, batch: DecoderBatch) -> TargetScores | None:
        parts = []
        for rows, ids in zip(
            batch.score_rows.split(_SCORED_AT_ONCE), batch.target_ids.split(_SCORED_AT_ONCE), strict=True
        ):
            logits = self.head(x[rows])
            if logits is not None:
                logprobs = logits.log_softmax(-1)
                own = logprobs.gather(1, ids.unsqueeze(1))
                part = [own.squeeze(1)]
                if batch.top >= 0:
                    part += [(logprobs > own).sum(1) + 1, *logprobs.topk(batch.top, dim=1)]
                parts.append(part)
        return TargetScores(*map(torch.cat, zip(*parts, strict=True))) if parts else None

    def _attend_self(self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool) -> torch.Tensor:
        bias, scale, parts = self.bias_tables[layer], self.spec.attention_scale, []
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


def _positions(cu_seqlens: torch.Tensor, count: int) -> torch.Tensor:
    """Each packed token's position in its own input: int64 [count]."""
    starts = cu_seqlens[:-1].long().repeat_interleave(cu_seqlens.diff().long(), output_size=count)
    return torch.arange(count, device=cu_seqlens.device) - starts


def _in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_encoder(checkpoint: Checkpoint, place: Placement) -> EncoderStack:
    """Raises ModelLoadError where the model has no encoder."""
    if checkpoint.spec.encoder is None:
        raise ModelLoadError(
            "is decoder-only: serve it without encoder workers (placement: colocated)", field="model"
        )
    encoder = EncoderStack(checkpoint.spec.encoder, place)
    checkpoint.load(encoder.slots())
    encoder.prepare(bidirectional=True)
    return encoder


def load_decoder(checkpoint: Checkpoint, place: Placement) -> DecoderStack:
    decoder = DecoderStack(checkpoint.spec, checkpoint.tied("decoder.output", "decoder.embedding"), place)
    checkpoint.load(decoder.slots())
    decoder.prepare(bidirectional=False)
    decoder.head.prepare()
    return decoder
