"""What a stack is built of: embedding, attention, feed-forward, output head, as its spec says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from tandem import kernels
from tandem.workers.models import positions
from tandem.workers.models.checkpoint import WeightSlot
from tandem.workers.models.layers import (
    ColumnParallel,
    HeadTable,
    Norm,
    Placement,
    Replicated,
    RowParallel,
    Vocabulary,
    VocabularyBias,
)
from tandem.workers.models.spec import ModelSpec, StackSpec

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of the rows' angles, [N, dimensions / 2]


def norm(name: str, stack: StackSpec, place: Placement) -> Norm:
    return Norm(name, stack.d_model, stack.norm, stack.norm_eps, place)


class Embedding:
    """Token ids and positions to what the first layer reads."""

    def __init__(self, side: str, stack: StackSpec, place: Placement) -> None:
        self.spec, self.side = stack, side
        self.tokens = Vocabulary(f"{side}.embedding", stack.vocab_size, stack.d_model, place)
        self.norm = norm(f"{side}.embedding_norm", stack, place) if stack.embedding_norm else None
        # [positions, d_model]; the first position's row is the first.
        self.positions: torch.Tensor | None = None
        self._rows = self._types = None
        if (table := stack.positions) is not None:
            assert stack.max_positions is not None, "a table of positions has an end"
            count = stack.max_positions + table.offset
            self._rows = place.empty(count, stack.d_model)
            if table.kind == "sinusoidal":
                self._rows.copy_(positions.sinusoidal(count, stack.d_model))
            elif table.kind == "sinusoidal_tensor2tensor":
                self._rows.copy_(positions.sinusoidal_tensor2tensor(count, stack.d_model))
            self.positions = self._rows[table.offset :]
        if stack.token_types:
            self._types = place.empty(stack.token_types, stack.d_model)

    def slots(self) -> Iterator[WeightSlot]:
        yield from self.tokens.slots()
        if self._rows is not None and self.spec.positions and self.spec.positions.kind == "learned":
            yield WeightSlot(f"{self.side}.positions", self._rows, tuple(self._rows.shape))
        if self._types is not None:
            yield WeightSlot(f"{self.side}.token_types", self._types, tuple(self._types.shape))
        if self.norm is not None:
            yield from self.norm.slots()

    def prepare(self) -> None:
        """All tokens are of the first type, whose vector becomes part of the positions'."""
        if self._types is not None:
            assert self.positions is not None
            self.positions += self._types[0]
            self._types = None

    def __call__(self, token_ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """int64 [N] each, `rows` being the tokens' positions → [N, d_model]."""
        x = kernels.scale(self.tokens.embed(token_ids), self.spec.embedding_scale)
        if self.norm is not None and self.spec.embedding_norm == "tokens":
            x = self.norm(x)
        if self.positions is not None:
            assert rows is not None
            x = kernels.embed(rows, self.positions, onto=x)
        if self.norm is not None and self.spec.embedding_norm == "sum":
            x = self.norm(x)
        return x


def output_norm(name: str, stack: StackSpec, place: Placement) -> Norm | None:
    return norm(f"{name}.output_norm", stack, place) if stack.output_norm else None


def head_norm(name: str, stack: StackSpec, place: Placement) -> Norm | None:
    return Norm(name, stack.head_dim, stack.norm, stack.norm_eps, place) if stack.qk_norm else None


class Attention:
    """The side of queries and of the output; the attention itself is the stack's."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        width = stack.heads * stack.head_dim
        self.norm = norm(f"{name}.norm", stack, place)
        self.q_norm = head_norm(f"{name}.q_norm", stack, place)
        self.o = RowParallel(f"{name}.o", width, stack.d_model, "heads", place, stack.head_dim, stack.bias)
        self.output_norm = output_norm(name, stack, place)
        self.heads, self.head_dim = place.share(stack.heads, "heads"), stack.head_dim

    def output(self, mixed: torch.Tensor) -> torch.Tensor:
        """[N, heads, head_dim] → [N, d_model]."""
        x = self.o(mixed.flatten(1))
        return x if self.output_norm is None else self.output_norm(x)

    def slots(self) -> Iterator[WeightSlot]:
        for part in (self.norm, self.q_norm, self.o, self.output_norm):
            if part is not None:
                yield from part.slots()


class SelfAttention(Attention):
    """Projections of self-attention."""

    def __init__(self, name: str, stack: StackSpec, has_table: bool, place: Placement) -> None:
        super().__init__(name, stack, place)
        heads = stack.heads, stack.shared_heads, stack.shared_heads
        self.qkv = ColumnParallel(
            [f"{name}.{part}" for part in "qkv"], [count * stack.head_dim for count in heads], stack.d_model,
            "heads", place, stack.head_dim, stack.bias,
        )  # fmt: skip
        self.k_norm = head_norm(f"{name}.k_norm", stack, place)
        self.bias = self.summary_bias = self.summary_norm = None
        if stack.summary_block is not None:
            self.summary_norm = norm(f"{name}.summary_norm", stack, place)
        if has_table and (relative := stack.relative_bias) is not None:
            self.bias = HeadTable(f"{name}.bias", relative.buckets, stack.heads, place)
            if stack.summary_block is not None:
                self.summary_bias = HeadTable(f"{name}.summary_bias", relative.buckets, stack.heads, place)
        self.shared = place.share(stack.shared_heads, "kv_heads")

    def project(
        self, x: torch.Tensor, rotation: Rotation | None = None
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

    def summarize(self, x: torch.Tensor, blocks: kernels.Blocks, table: torch.Tensor) -> kernels.Summaries:
        """Keys and values of the blocks of x [N, d_model]; `table` is the bias by blocks."""
        assert self.summary_norm is not None
        _, k, v = self.project(self.summary_norm(blocks.sums(x)))
        return kernels.Summaries(k, v, blocks.cu_seqlens, blocks.size, table)

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        for part in (self.qkv, self.k_norm, self.bias, self.summary_bias, self.summary_norm):
            if part is not None:
                yield from part.slots()


class CrossAttention(Attention):
    """`CrossKV` projects its keys and values, at admission."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        super().__init__(name, stack, place)
        width = stack.heads * stack.head_dim
        self.q = ColumnParallel(
            [f"{name}.q"], [width], stack.d_model, "heads", place, stack.head_dim, stack.bias
        )

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, d_model] → q [N, heads, head_dim]."""
        q = self.q(x).view(x.shape[0], self.heads, self.head_dim)
        return q if self.q_norm is None else self.q_norm.by_head(q)

    def slots(self) -> Iterator[WeightSlot]:
        return chain(super().slots(), self.q.slots())


class CrossKV:
    """Encoder output to the keys and values of every layer's cross-attention, in one GEMM."""

    def __init__(self, names: Sequence[str], encoder: StackSpec, spec: ModelSpec, place: Placement) -> None:
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
        norms = (head_norm(f"{name}.k_norm", stack, place) for name in names)
        self.k_norms = [norm for norm in norms if norm is not None]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, encoder's d_model] → [N, layers, 2, shared heads, head_dim]."""
        if self.enc_to_dec_proj is not None:
            hidden = self.enc_to_dec_proj(hidden)
        kv = self.kv(hidden).view(len(hidden), *self.shape)
        for layer, k_norm in enumerate(self.k_norms):
            kv[:, layer, 0] = k_norm.by_head(kv[:, layer, 0])
        return kv

    def slots(self) -> Iterator[WeightSlot]:
        yield from self.kv.slots()
        if self.enc_to_dec_proj is not None:
            yield from self.enc_to_dec_proj.slots()
        for k_norm in self.k_norms:
            yield from k_norm.slots()


class FeedForward:
    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        parts = ["gate", "up"] if stack.gated else ["up"]
        self.norm = None if stack.parallel_residual else norm(f"{name}.norm", stack, place)
        self.up = ColumnParallel(
            [f"{name}.{part}" for part in parts], [stack.d_ff] * len(parts), stack.d_model, "d_ff", place,
            bias=stack.bias,
        )  # fmt: skip
        self.down = RowParallel(f"{name}.down", stack.d_ff, stack.d_model, "d_ff", place, bias=stack.bias)
        self.output_norm = output_norm(name, stack, place)
        self.gated, self.activation = stack.gated, stack.activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[N, d_model] → [N, d_model]."""
        x = self.down(kernels.activate(self.up(x), self.activation, gated=self.gated))
        return x if self.output_norm is None else self.output_norm(x)

    def slots(self) -> Iterator[WeightSlot]:
        for part in (self.norm, self.up, self.down, self.output_norm):
            if part is not None:
                yield from part.slots()


class Head:
    """Decoder output to logits."""

    def __init__(self, spec: ModelSpec, embedding: Vocabulary, tied: bool, place: Placement) -> None:
        stack = spec.decoder
        self.scale, self.softcap, self.tied = spec.logit_scale, spec.logit_softcap, tied
        self.projection = (
            embedding if tied else Vocabulary("decoder.output", stack.vocab_size, stack.d_model, place)
        )
        self.bias = (
            VocabularyBias("decoder.output.bias", stack.vocab_size, place) if spec.output_bias else None
        )
        self.transform = self.norm = None
        if spec.output_transform is not None:
            self.transform = Replicated("decoder.transform", stack.d_model, stack.d_model, place)
            self.norm = norm("decoder.transform_norm", stack, place)
            self._activation = spec.output_transform

    def __call__(self, x: torch.Tensor) -> torch.Tensor | None:
        """[N, d_model] → float32 [N, vocabulary] on rank 0, None elsewhere."""
        if self.transform is not None and self.norm is not None:
            x = self.norm(kernels.activate(self.transform(x), self._activation))
        logits = self.projection.logits(kernels.scale(x, self.scale))
        return logits if logits is None else kernels.soft_capped(logits, self.softcap)

    def slots(self) -> Iterator[WeightSlot]:
        for part in (None if self.tied else self.projection, self.bias, self.transform, self.norm):
            if part is not None:
                yield from part.slots()

    def prepare(self) -> None:
        """Most models that may have a bias have one of zeros."""
        if self.bias is not None and not self.bias.weight.any():
            self.bias = None
        self.projection.prepare_logits(self.bias, embeds=self.tied)
