"""The attention sublayers: over an encoder's packed inputs, over a sequence's own pages, over the pages of
an encoder input, and over both of these at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from tandem import kernels
from tandem.kernels import PagedKV, Scores
from tandem.workers.models.layers import (
    ColumnParallel,
    Gate,
    HeadTable,
    Placement,
    Replicated,
    RowParallel,
    WeightSlot,
    head_norm,
    output_norm,
    stack_norm,
    weights_of,
)
from tandem.workers.models.spec import ModelSpec, StackSpec, Window
from tandem.workers.models.sublayers import DecoderPass, EncoderPass, Rotation

# Rows of encoder output whose K and V a GPU computes at once. So many make full use of it, and fewer bytes
# would have it read the weights the more often.
_ROWS_AT_ONCE: Final = 8192
_BYTES_AT_ONCE: Final = 2**28
# On a CPU K and V stay in the cache until they are in their pages, and enough rows share what is read of the
# weight.
_CPU_BYTES_AT_ONCE: Final = 2**22
_CPU_ROWS: Final = 64


class BiasTables:
    """A stack's biases by distance, each made once for all the layers that share it."""

    def __init__(self, stack: StackSpec, place: Placement, *, bidirectional: bool) -> None:
        self._stack, self._bidirectional, self._place = stack, bidirectional, place
        self._made: dict[tuple[HeadTable | None, Window | None], torch.Tensor | None] = {}

    def __call__(self, buckets: HeadTable | None, window: Window | None) -> torch.Tensor | None:
        """float32 [heads, distances] from loaded weights by bucket, hiding what is outside the window; None
        where every key is seen without a bias. See kernels/relative_bias.py."""
        key = buckets, window
        if key not in self._made:
            self._made[key] = self._make(buckets, window)
        return self._made[key]

    def _make(self, buckets: HeadTable | None, window: Window | None) -> torch.Tensor | None:
        table = None
        if buckets is not None:
            relative = self._stack.relative_bias
            assert relative is not None
            table = kernels.relative_bias_table(buckets.weight, self._bidirectional, relative.max_distance)
        if window is None:
            return table
        if table is None:
            heads = self._place.share(self._stack.heads, "heads")
            table = torch.zeros(heads, 1, device=self._place.device)
        return kernels.windowed_bias_table(
            table, window.before, window.after if self._bidirectional else None
        )


class Attention:
    """Norms, output projection and scores' constants, which every kind of attention has."""

    def __init__(self, name: str, stack: StackSpec, place: Placement, *, cross: bool = False) -> None:
        """cross: it is cross-attention, and no other."""
        width = stack.heads * stack.head_dim
        self.norm = stack_norm(f"{name}.norm", stack, place)
        self.q_norm = head_norm(f"{name}.q_norm", stack, place, cross=cross)
        self.o = RowParallel(f"{name}.o", width, stack.d_model, "heads", place, stack.head_dim, stack.bias)
        self.output_norm = output_norm(name, stack, place)
        self.heads, self.head_dim = place.share(stack.heads, "heads"), stack.head_dim
        self.scores = Scores(stack.attention_scale, None, stack.softcap)

    def output(self, mixed: torch.Tensor) -> torch.Tensor:
        """[N, heads, head_dim] → [N, d_model]."""
        x = self.o(mixed.flatten(1))
        return x if self.output_norm is None else self.output_norm(x)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.norm, self.q_norm, self.o, self.output_norm)


class QKVAttention(Attention):
    """Queries, keys and values projected from the same rows in one GEMM, with relative or rotary positions
    and the layer's window."""

    def __init__(
        self, name: str, stack: StackSpec, layer: int, place: Placement, bias_of: QKVAttention | None
    ) -> None:
        """bias_of: the attention whose relative bias serves this layer, too; None: it has its own."""
        super().__init__(name, stack, place)
        heads = stack.heads, stack.shared_heads, stack.shared_heads
        self.qkv = ColumnParallel(
            [f"{name}.{part}" for part in "qkv"], [count * stack.head_dim for count in heads], stack.d_model,
            "heads", place, stack.head_dim, stack.bias,
        )  # fmt: skip
        self.k_norm = head_norm(f"{name}.k_norm", stack, place)
        self.shared = place.share(stack.shared_heads, "kv_heads")
        self.window, self.rotary = stack.window(layer), stack.layer_rotary(layer)
        self.bias: HeadTable | None = None  # by bucket of distances
        self._own_bias: HeadTable | None = None
        if bias_of is not None:
            self.bias = bias_of.bias
        elif stack.relative_bias is not None:
            self.bias = HeadTable(f"{name}.bias", stack.relative_bias.buckets, stack.heads, place)
            self._own_bias = self.bias
        self.biased_scores = self.scores  # with the bias by distance, set by `prepare`

    def prepare(self, tables: BiasTables) -> None:
        """All weights are loaded."""
        self.biased_scores = self.scores._replace(bias_table=tables(self.bias, self.window))

    def project(
        self, x: torch.Tensor, rotation: Rotation | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [N, d_model] → q [N, heads, head_dim], k and v [N, shared heads, head_dim]."""
        both = self.heads + self.shared
        qkv = self.qkv(x).view(x.shape[0], both + self.shared, self.head_dim)
        qk, v = qkv[:, :both], qkv[:, both:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk[:, : self.heads], qk[:, self.heads :]
            qk = torch.cat([self.q_norm.by_head(q), self.k_norm.by_head(k)], dim=1)
        if rotation is not None:
            qk = kernels.rotary(qk, *rotation)
        return qk[:, : self.heads], qk[:, self.heads :], v

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from weights_of(self.qkv, self.k_norm, self._own_bias)


class EncoderAttention(QKVAttention):
    """Bidirectional, within each packed input; over the summaries of its blocks too where the stack has a
    summary_block."""

    def __init__(
        self, name: str, stack: StackSpec, layer: int, place: Placement, bias_of: EncoderAttention | None
    ) -> None:
        super().__init__(name, stack, layer, place, bias_of)
        self.scores = self.scores._replace(integers=place.quantization == "int8")
        self.summary_norm = self.summary_bias = self._own_summary_bias = None
        if stack.summary_block is not None:
            self.summary_norm = stack_norm(f"{name}.summary_norm", stack, place)
            if bias_of is not None:
                self.summary_bias = bias_of.summary_bias
            else:
                assert stack.relative_bias is not None, "the bias of summaries is as relative_bias"
                buckets = stack.relative_bias.buckets
                self.summary_bias = HeadTable(f"{name}.summary_bias", buckets, stack.heads, place)
                self._own_summary_bias = self.summary_bias
        self.summary_table: torch.Tensor | None = None  # by distance in blocks, set by `prepare`

    def prepare(self, tables: BiasTables) -> None:
        super().prepare(tables)
        self.summary_table = tables(self.summary_bias, None)

    def __call__(self, x: torch.Tensor, step: EncoderPass) -> torch.Tensor:
        q, k, v = self.project(x, step.rotations.get(self.rotary))
        summaries = None if step.blocks is None else self._summarize(x, step.blocks)
        mixed = kernels.encoder_attention(
            q, k, v, step.cu_seqlens, step.longest, self.biased_scores, self.window is not None, summaries
        )
        return self.output(mixed)

    def _summarize(self, x: torch.Tensor, blocks: kernels.Blocks) -> kernels.Summaries:
        """Keys and values of the blocks of x [N, d_model]."""
        assert self.summary_norm is not None
        assert self.summary_table is not None
        _, k, v = self.project(self.summary_norm(blocks.sums(x)), None)
        return kernels.Summaries(k, v, blocks.cu_seqlens, blocks.size, self.summary_table)

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from weights_of(self._own_summary_bias, self.summary_norm)


class SelfAttention(QKVAttention):
    """Causal, over the pages of each row's own sequence, where the row's K and V are written first."""

    def __init__(
        self, name: str, stack: StackSpec, layer: int, plane: int, place: Placement,
        bias_of: SelfAttention | None,
    ) -> None:  # fmt: skip
        """plane: the KV pool's."""
        super().__init__(name, stack, layer, place, bias_of)
        self.plane = plane

    def __call__(self, x: torch.Tensor, step: DecoderPass) -> torch.Tensor:
        return self.output(self.attend(self.write(x, step), step))

    def write(self, x: torch.Tensor, step: DecoderPass) -> torch.Tensor:
        """Stores K and V of x [N, d_model]; returns its queries [N, heads, head_dim]."""
        q, k, v = self.project(x, step.rotations.get(self.rotary))
        step.pool.write(self.plane, k, v, step.batch.write_slots)
        return q

    def attend(self, q: torch.Tensor, step: DecoderPass, sums: torch.Tensor | None = None) -> torch.Tensor:
        """sums: float32 [N, heads], filled with what `kernels.merge_attention` needs."""
        k, v, parts = step.pool.k[self.plane], step.pool.v[self.plane], []
        for rows in step.batch.attention:
            own = slice(rows.start, rows.stop)
            kv = PagedKV(k, v, rows.self_pages, rows.self_lengths)
            how = self.biased_scores, None if sums is None else sums[own]
            if rows.beams:
                parts.append(kernels.paged_beam_attention(q[own], kv, *how))
            else:
                parts.append(kernels.paged_self_attention(q[own], kv, rows.self_groups, *how))
        return _in_order(parts)


class CrossAttention(Attention):
    """Over the pages of each row's encoder input, whose K and V `CrossKV` projects at admission."""

    def __init__(self, name: str, stack: StackSpec, plane: int, place: Placement) -> None:
        """plane: the KV pool's."""
        super().__init__(name, stack, place, cross=True)
        width = stack.heads * stack.head_dim
        self.gate = Gate(f"{name}.gate", place) if stack.cross_gates else None
        self.q = ColumnParallel(
            [f"{name}.q"], [width], stack.d_model, "heads", place, stack.head_dim, stack.bias
        )
        self.plane = plane

    def __call__(self, x: torch.Tensor, step: DecoderPass) -> torch.Tensor:
        q = self.q(x).view(x.shape[0], self.heads, self.head_dim)
        if self.q_norm is not None:
            q = self.q_norm.by_head(q)
        for rows in step.batch.recorded:
            rows.record(self.plane, q)
        x = self.output(_attend_cross(self, q, step))
        return x if self.gate is None else self.gate(x)

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from weights_of(self.q, self.gate)


class MergedAttention(SelfAttention):
    """One softmax over the keys of the row's own sequence and of its encoder input."""

    def __call__(self, x: torch.Tensor, step: DecoderPass) -> torch.Tensor:
        q = self.write(x, step)
        sums = torch.empty(2, *q.shape[:2], device=q.device)
        own = self.attend(q, step, sums[0])
        cross = _attend_cross(self, q, step, sums[1])
        return self.output(kernels.merge_attention(own, sums[0], cross, sums[1]))


def _attend_cross(
    attention: CrossAttention | MergedAttention,
    q: torch.Tensor,
    step: DecoderPass,
    sums: torch.Tensor | None = None,
) -> torch.Tensor:
    k, v = step.pool.cross(attention.plane)
    parts = []
    for rows in step.batch.attention:
        own = slice(rows.start, rows.stop)
        kv = PagedKV(k, v, rows.cross_pages, rows.cross_lengths, rows.cross_begins)
        how = attention.scores, None if sums is None else sums[own]
        parts.append(kernels.paged_cross_attention(q[own], kv, rows.cross_groups, *how))
    return _in_order(parts)


def _in_order(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class CrossKV:
    """Encoder output to the keys and values of every cross-attention, in one GEMM."""

    def __init__(self, names: Sequence[str], encoder: StackSpec, spec: ModelSpec, place: Placement) -> None:
        """names: the cross-attentions', in the order of their planes."""
        stack = spec.decoder
        self.shape = (len(names), 2, -1, stack.head_dim)
        self.enc_to_dec_proj = (
            Replicated("enc_to_dec_proj", encoder.d_model, stack.d_model, place)
            if spec.enc_to_dec_proj
            else None
        )
        self.kv = ColumnParallel(
            [f"{name}.{part}" for name in names for part in "kv"],
            [stack.shared_heads * stack.head_dim] * (2 * len(names)),
            stack.d_model if spec.enc_to_dec_proj else encoder.d_model,
            "kv_heads",
            place,
            stack.head_dim,
            stack.bias,
        )
        cross = not stack.merged_attention
        norms = (head_norm(f"{name}.k_norm", stack, place, cross=cross) for name in names)
        self.k_norms = [norm for norm in norms if norm is not None]
        self._buffer: torch.Tensor | None = None  # of a GPU, see `prepare`

    def prepare(self) -> None:
        """All weights are loaded: takes the memory for K and V on a GPU, once and for all. Memory that each
        admission took for itself, of a size of its own, would now and then stop the device."""
        linear = self.kv.linear
        if not linear.weight.is_cpu:
            outputs = len(linear.weight)
            rows = min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (outputs * linear.weight.itemsize))
            rows = max(16, rows // 16 * 16)  # their slots are aligned, too
            self._buffer = linear.weight.new_empty(rows, outputs)

    def rows_at_once(self, hidden: torch.Tensor) -> int:
        """How many rows of these, at least one, `__call__` takes."""
        if self._buffer is not None:
            return len(self._buffer)
        return max(_CPU_ROWS, _CPU_BYTES_AT_ONCE // (self.kv.linear.outputs * hidden.itemsize))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, encoder's d_model] → [N, cross-attentions, 2, shared heads, head_dim]. On a GPU the next call
        overwrites it."""
        if self.enc_to_dec_proj is not None:
            hidden = self.enc_to_dec_proj(hidden)
        out = None if self._buffer is None else self._buffer[: len(hidden)]
        kv = self.kv(hidden, out).view(len(hidden), *self.shape)
        for number, k_norm in enumerate(self.k_norms):
            kv[:, number, 0] = k_norm.by_head(kv[:, number, 0])
        return kv

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.kv, self.enc_to_dec_proj, *self.k_norms)
