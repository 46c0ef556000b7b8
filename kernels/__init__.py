"""The ops of the forward pass.

Each op runs on the backend of its tensors (`dispatch.backend`); its twin in reference.py says what it
computes. Matrix products, whose weights are laid out for the CPU, and feed-forwards made of them are in
linear.py. The values that ops share are in values.py.

No module here is named like an op: importing it would replace the op in this namespace.
"""

from __future__ import annotations

from torch import Tensor

from tandem.kernels.compiling import compilations, note_compilation
from tandem.kernels.cpu.program import CPUProgram, NotRecordable
from tandem.kernels.dispatch import backend
from tandem.kernels.linear import Int8Linear, Linear, add_feed_forward, feed_forward
from tandem.kernels.reference import ACTIVATIONS
from tandem.kernels.relative_bias import relative_bias_table, windowed_bias_table
from tandem.kernels.triton.splits import SPLITS, splitting
from tandem.kernels.values import (
    Blocks,
    DecodeRows,
    DecodeTables,
    PagedKV,
    RowGroups,
    Scores,
    Summaries,
    TimeIds,
)

__all__ = [
    "ACTIVATIONS",
    "SPLITS",
    "Blocks",
    "CPUProgram",
    "DecodeRows",
    "DecodeTables",
    "Int8Linear",
    "Linear",
    "NotRecordable",
    "PagedKV",
    "RowGroups",
    "Scores",
    "Summaries",
    "TimeIds",
    "activate",
    "add_depthwise",
    "add_feed_forward",
    "add_layer_norm",
    "add_rms_norm",
    "alignment_scores",
    "apply_timestamp_rules",
    "argmax",
    "ban_tokens",
    "compilations",
    "embed",
    "encoder_attention",
    "feed_forward",
    "gather_rows",
    "grouped_attention",
    "keep_rows",
    "layer_norm",
    "logsumexp",
    "match_prompt_tokens",
    "merge_attention",
    "note_compilation",
    "paged_beam_attention",
    "paged_cross_attention",
    "paged_self_attention",
    "relative_bias_table",
    "rms_norm",
    "rotary",
    "scale",
    "soft_capped",
    "splitting",
    "time_warp",
    "windowed_bias_table",
    "write_kv",
]

# -- rows by themselves


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm of rows [N, d] with weight [d], as in T5."""
    return backend(x, weight).rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual sum of x and residual [N, d] and its RMS norm: ``(rms_norm(sum), sum)``."""
    return backend(x, residual, weight).add_rms_norm(x, residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of rows [N, d] with weight and bias [d]."""
    return backend(x, weight, bias).layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual sum of x and residual [N, d] and its LayerNorm: ``(layer_norm(sum), sum)``."""
    return backend(x, residual, weight, bias).add_layer_norm(x, residual, weight, bias, eps)


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    """One of ACTIVATIONS of x [N, F]; gated, of the first half of [N, 2F], times the other half."""
    return backend(x).activate(x, activation, gated=gated)


def scale(x: Tensor, factor: float) -> Tensor:
    """``x * factor`` for rows [N, d]."""
    return backend(x).scale(x, factor)


def soft_capped(scores: Tensor, cap: float | None) -> Tensor:
    """``cap tanh(scores / cap)``; None: the scores themselves."""
    return backend(scores).soft_capped(scores, cap)


def keep_rows(x: Tensor, keep: Tensor) -> Tensor:
    """x [N, d] with zeros in the rows whose `keep`, int32 [N], is 0."""
    return backend(x).keep_rows(x, keep)


def rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates the leading dimensions of heads x [N, ..., H, D] by each row's angles [N, h]."""
    return backend(x).rotary(x, cosines, sines)


def embed(ids: Tensor, table: Tensor, onto: Tensor | None = None) -> Tensor:
    """Rows of a table [vocabulary, d] by id, int64 [N], added to `onto` [N, d] if given."""
    alike = () if onto is None else (onto,)
    return backend(table, *alike).embed(ids, table, onto)


def argmax(x: Tensor) -> Tensor:
    """The index of each row's largest number, the first of several: [N, d] → int64 [N]."""
    return backend(x).argmax(x)


# -- scores of a vocabulary's tokens


def logsumexp(x: Tensor, stops: Tensor | None = None) -> Tensor:
    """The logarithm of what the exponentials of each row, or of its first `stops` numbers, int64 [N], add up
    to: [N, d] → [N, 1]."""
    return backend(x).logsumexp(x, stops)


def ban_tokens(scores: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Makes scores [N, d] of the tokens ids[rows] minus infinity, in place; ids: int64 [S, n], rows: int64
    [N], -1 being none in both."""
    backend(scores).ban_tokens(scores, ids, rows)


def apply_timestamp_rules(
    scores: Tensor, history: Tensor, slots: Tensor, begins: Tensor, counts: Tensor, last_initial: Tensor,
    ids: TimeIds,
) -> None:  # fmt: skip
    """Bans tokens, in place, so that times stand in pairs around text and never decrease."""
    backend(scores).apply_timestamp_rules(scores, history, slots, begins, counts, last_initial, ids)


# -- images


def add_depthwise(x: Tensor, first: int, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Fills out [items, rows, W, C] with rows, from `first` on, of images x [items, H, W, C] and of their
    convolution of 3 x 3 positions, weight [9, C] and bias [C], each channel by itself. They share no
    memory."""
    return backend(x, weight, bias, out).add_depthwise(x, first, weight, bias, out)


# -- a decode step's tables


def gather_rows(rows: Tensor, tables: DecodeTables, *, beams: bool) -> DecodeRows:
    """What the rows int64 [4, N] of a decode step read and write."""
    return backend(rows).gather_rows(rows, tables, beams=beams)


def match_prompt_tokens(tokens: Tensor, rows: Tensor, sequences: Tensor) -> Tensor:
    """Moves sequences, named by int64 [4, R], on by the model's tokens, int64 [samples], and looks up the
    next draft tokens in their sources."""
    return backend(tokens).match_prompt_tokens(tokens, rows, sequences)


# -- attention


def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scores: Scores,
    windowed: bool = False,
    summaries: Summaries | None = None,
) -> Tensor:
    """Bidirectional attention within packed sequences, q [N, H, D], k and v [N, G, D], with a bias by
    distance, which may hide distant keys, and over the keys of blocks."""
    return backend(q).encoder_attention(q, k, v, cu_seqlens, max_length, scores, windowed, summaries)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    """Bidirectional attention within groups of equally many positions, q, k and v [groups, N, H, D], without
    a bias."""
    return backend(q, k, v).grouped_attention(q, k, v, scores)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Stores k, v [N, G, D] in pages [pages, G, P, D] at slots int64 [N], page * P + offset."""
    backend(k, v, pages=k_pages).write_kv(k, v, k_pages, v_pages, slots)


def paged_self_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    """Causal attention of the newest rows q [N, H, D] of each sequence over its paged keys."""
    return backend(q, pages=kv.k).paged_self_attention(q, kv, groups, scores, sums)


def paged_beam_attention(q: Tensor, kv: PagedKV, scores: Scores, sums: Tensor | None = None) -> Tensor:
    """Attention of each beam's newest row q [N, H, D] over its history, whose keys `kv.table` names one by
    one."""
    return backend(q, pages=kv.k).paged_beam_attention(q, kv, scores, sums)


def paged_cross_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    """Attention of every row q [N, H, D] of a sequence over its paged keys from `kv.begins` on, without a
    bias."""
    return backend(q, pages=kv.k).paged_cross_attention(q, kv, groups, scores, sums)


def merge_attention(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """Two attentions [N, H, D] of the same queries as one over the keys of both, by their `sums` [N, H]."""
    return backend(one).merge_attention(one, one_sums, other, other_sums)


# -- which tokens go with which encoder positions


def alignment_scores(
    q: Tensor, k: Tensor, scores: Scores, columns: int, width: int, *, cropped: bool
) -> Tensor:
    """How much more each token, q [H, N, D], attends to each of the first `columns` keys, k [H, M, D], than
    the other tokens do: float32 [N, columns]."""
    return backend(q).alignment_scores(q, k, scores, columns, width, cropped=cropped)


def time_warp(x: Tensor) -> Tensor:
    """The first column of each row, int64 [N], on the path through x, float32 [N, M], on which it adds up to
    the most."""
    return backend(x).time_warp(x)
