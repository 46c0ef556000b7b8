"""The one forward pass: an encoder and a decoder stack as their spec says, over packed tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import torch

from tandem import kernels
from tandem.errors import ModelLoadError
from tandem.kernels import PagedKV, RowGroups, Scores
from tandem.workers.models.checkpoint import Checkpoint, WeightSlot
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import HasWeights, HeadTable, Norm, Placement
from tandem.workers.models.positions import rotary_speeds
from tandem.workers.models.spec import ModelSpec, Rotary, StackSpec, Window
from tandem.workers.models.sublayers import (
    CrossAttention,
    CrossKV,
    Embedding,
    FeedForward,
    Head,
    Rotation,
    SelfAttention,
    norm,
)

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


class Targets(NamedTuple):
    """Tokens to be scored."""

    rows: torch.Tensor  # int64: those they follow
    ids: torch.Tensor  # int64
    top: int  # likeliest tokens wanted beside them; below 0 not even their rank is


@dataclass(slots=True)
class DecoderBatch:
    """One mixed step: every row is one position of one sequence."""

    token_ids: torch.Tensor  # int64 [rows]
    positions: torch.Tensor  # int64 [rows]: each row's in its sequence
    write_slots: torch.Tensor  # int64 [rows]: where each row's K and V go, page * page_size + offset
    attention: list[AttentionRows]  # cover all rows, in order
    sample_rows: torch.Tensor | None = None  # int64: the rows whose logits are wanted; None: all
    targets: Targets | None = None


class TargetScores(NamedTuple):
    """Of T tokens, under the model's own distribution; ranks and top where `Targets.top` wants them."""

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
        self._speeds = {
            rotary: rotary_speeds(rotary).to(place.device)
            for rotary in (stack.rotary, stack.window_rotary)
            if rotary is not None
        }

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
        tables: dict[tuple[int, Window | None], torch.Tensor | None] = {}
        for layer, attention in enumerate(self.attentions):
            # Layers without weights of their own use layer 0's.
            key = (0 if attention.bias is None else layer), self.spec.window(layer)
            if key not in tables:
                tables[key] = self._bias_table(*key, bidirectional)
            self.bias_tables[layer] = tables[key]

    def _bias_table(self, owner: int, window: Window | None, bidirectional: bool) -> torch.Tensor | None:
        attention, table = self.attentions[owner], None
        if attention.bias is not None:
            table = self._by_distance(attention.bias, bidirectional)
        if window is None:
            return table
        if table is None:
            table = torch.zeros(attention.heads, 1, device=self.embedding.tokens.weight.device)
        return kernels.windowed_bias_table(table, window.before, window.after if bidirectional else None)

    def _by_distance(self, buckets: HeadTable, bidirectional: bool) -> torch.Tensor:
        assert self.spec.relative_bias is not None
        return kernels.relative_bias_table(
            buckets.weight, bidirectional, self.spec.relative_bias.max_distance
        )

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

    def rotations(self, positions: torch.Tensor | None, dtype: torch.dtype) -> list[Rotation | None]:
        """Each layer's, of rows at these positions."""
        spec, made = self.spec, dict[Rotary | None, Rotation]()
        for rotary, speeds in self._speeds.items():
            assert positions is not None
            angles = positions.float().unsqueeze(1) * speeds
            made[rotary] = angles.cos().to(dtype), angles.sin().to(dtype)
        near = spec.rotary if spec.window_rotary is None else spec.window_rotary
        return [made.get(near if spec.window(layer) else spec.rotary) for layer in range(spec.layers)]


class EncoderStack(Stack):
    """Token ids to hidden states."""

    def __init__(self, spec: StackSpec, place: Placement) -> None:
        super().__init__("encoder", spec, place, [])
        self.summary_tables: list[torch.Tensor] = []

    def prepare(self, *, bidirectional: bool) -> None:
        super().prepare(bidirectional=bidirectional)
        for attention in self.attentions if self.spec.summary_block is not None else []:
            buckets = attention.summary_bias
            self.summary_tables.append(
                self.summary_tables[0] if buckets is None else self._by_distance(buckets, bidirectional)
            )

    def __call__(self, token_ids: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
        """Packed inputs, unpadded: int64 [N], int32 [inputs + 1] → hidden states [N, d_model]."""
        spec, positions = self.spec, None
        if spec.positions is not None or spec.rotary is not None:
            positions = _positions(cu_seqlens, len(token_ids))
        x, residual = self.enter(token_ids, positions)
        rotations, size = self.rotations(positions, x.dtype), spec.summary_block
        blocks = None if size is None else kernels.Blocks.of(cu_seqlens, size)
        for layer, (attention, feed_forward, norms) in enumerate(
            zip(self.attentions, self.feed_forwards, self.norms_behind, strict=True)
        ):
            q, k, v = attention.project(x, rotations[layer])
            summaries = None
            if blocks is not None:
                summaries = attention.summarize(x, blocks, self.summary_tables[layer])
            mixed = kernels.encoder_attention(
                q, k, v, cu_seqlens, longest,
                Scores(spec.attention_scale, self.bias_tables[layer], spec.softcap),
                spec.window(layer) is not None, summaries,
            )  # fmt: skip
            x, residual = self.join(attention.output(mixed), residual, norms[0])
            x, residual = self.join(feed_forward(x), residual, norms[1])
        return x


class DecoderStack(Stack):
    """Rows of tokens to logits, over the pages of the rows' sequences."""

    def __init__(self, spec: ModelSpec, tied_output: bool, place: Placement) -> None:
        stack = spec.decoder
        names = [f"decoder.layers.{i}.cross_attention" for i in range(stack.layers)]
        crosses = [CrossAttention(name, stack, place) for name in names]
        if spec.encoder is None or stack.merged_attention:
            crosses = []
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
        rotations = self.rotations(batch.positions, x.dtype)
        for layer, (attention, feed_forward, norms) in enumerate(
            zip(self.attentions, self.feed_forwards, self.norms_behind, strict=True)
        ):
            q, k, v = attention.project(x, rotations[layer])
            pool.write(layer, k, v, batch.write_slots)
            if self.spec.merged_attention:
                out = attention.output(self._attend_both(layer, q, batch, pool))
            else:
                out = attention.output(self._attend_self(layer, q, batch, pool))
            if self.crosses:
                x, residual = self.join(out, residual, norms[0])
                cross = self.crosses[layer]
                out = cross.output(self._attend_cross(layer, cross.project(x), batch, pool))
            if self.spec.parallel_residual:
                out = out + feed_forward(x)
            else:
                x, residual = self.join(out, residual, norms[-2])
                out = feed_forward(x)
            x, residual = self.join(out, residual, norms[-1])
        sampled = x if batch.sample_rows is None else x[batch.sample_rows]
        scores = None if batch.targets is None else self._scores(x, batch.targets)
        return self.head(sampled) if len(sampled) else None, scores

    def _scores(self, x: torch.Tensor, targets: Targets) -> TargetScores | None:
        parts = []
        for rows, ids in zip(
            targets.rows.split(_SCORED_AT_ONCE), targets.ids.split(_SCORED_AT_ONCE), strict=True
        ):
            logits = self.head(x[rows])
            if logits is not None:
                logprobs = logits.log_softmax(-1)
                own = logprobs.gather(1, ids.unsqueeze(1))
                part = [own.squeeze(1)]
                if targets.top >= 0:
                    part += [(logprobs > own).sum(1) + 1, *logprobs.topk(targets.top, dim=1)]
                parts.append(part)
        return TargetScores(*map(torch.cat, zip(*parts, strict=True))) if parts else None

    def _attend_self(
        self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool, sums: torch.Tensor | None = None
    ) -> torch.Tensor:
        scores, parts = Scores(self.spec.attention_scale, self.bias_tables[layer], self.spec.softcap), []
        for rows in batch.attention:
            own = slice(rows.start, rows.stop)
            kv = PagedKV(pool.k[layer], pool.v[layer], rows.self_pages, rows.self_lengths)
            denominators = None if sums is None else sums[own]
            if rows.beams:
                parts.append(kernels.paged_beam_attention(q[own], kv, scores, denominators))
            else:
                parts.append(kernels.paged_self_attention(q[own], kv, rows.self_groups, scores, denominators))
        return _in_order(parts)

    def _attend_cross(
        self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool, sums: torch.Tensor | None = None
    ) -> torch.Tensor:
        scores, parts = Scores(self.spec.attention_scale, None, self.spec.softcap), []
        for rows in batch.attention:
            own = slice(rows.start, rows.stop)
            kv = PagedKV(pool.k[layer], pool.v[layer], rows.cross_pages, rows.cross_lengths)
            denominators = None if sums is None else sums[own]
            parts.append(kernels.paged_cross_attention(q[own], kv, rows.cross_groups, scores, denominators))
        return _in_order(parts)

    def _attend_both(self, layer: int, q: torch.Tensor, batch: DecoderBatch, pool: KVPool) -> torch.Tensor:
        """Over the keys of both at once."""
        sums = torch.empty(2, *q.shape[:2], device=q.device)
        own = self._attend_self(layer, q, batch, pool, sums[0])
        cross = self._attend_cross(layer, q, batch, pool, sums[1])
        return kernels.merge_attention(own, sums[0], cross, sums[1])


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
    place.pack()
    return encoder


def load_decoder(checkpoint: Checkpoint, place: Placement) -> DecoderStack:
    decoder = DecoderStack(checkpoint.spec, checkpoint.tied("decoder.output", "decoder.embedding"), place)
    checkpoint.load(decoder.slots())
    decoder.prepare(bidirectional=False)
    decoder.head.prepare()
    place.pack()
    return decoder
