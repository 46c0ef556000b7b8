"""Every op in plain PyTorch: its definition, the oracle of the other backends' tests, and the op itself
wherever another backend has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.kernels.alignment import alignment_scores, time_warp
from tandem.kernels.decode_rows import gather_rows, match_prompt_tokens
from tandem.kernels.sparse_attention import Rows, reads_in_place, sparse_attention
from tandem.kernels.token_scores import apply_timestamp_rules, ban_tokens, logsumexp
from tandem.kernels.values import PagedKV, RowGroups, Scores, Summaries

__all__ = [
    "ACTIVATIONS",
    "activate",
    "add_depthwise",
    "add_layer_norm",
    "add_rms_norm",
    "alignment_scores",
    "apply_timestamp_rules",
    "argmax",
    "ban_tokens",
    "embed",
    "encoder_attention",
    "gather_rows",
    "grouped_attention",
    "keep_rows",
    "layer_norm",
    "logsumexp",
    "match_prompt_tokens",
    "merge_attention",
    "paged_beam_attention",
    "paged_cross_attention",
    "paged_self_attention",
    "rms_norm",
    "rotary",
    "scale",
    "soft_capped",
    "time_warp",
    "write_kv",
]

# Up to this many query rows of a sequence read K and V in place; for more, a dense copy pays.
FEW_ROWS: Final = 8
# Queries of a windowed attention per call; fewer do not pay for the call.
_FEWEST_QUERIES: Final = 64


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    x: [N, d]; weight: [d]; returns [N, d] in the weight's dtype. The mean is taken in float32, and a
    half-precision weight rounds the normalized row to its own dtype before it multiplies, as transformers'
    ``T5LayerNorm`` does (Zhang and Sennrich, 2019).
    """
    x = x * x.float().square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    if weight.dtype in (torch.float16, torch.bfloat16):
        x = x.to(weight.dtype)
    return weight * x


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``r = residual + x``; returns ``(rms_norm(r), r)``. x, residual: [N, d]; weight: [d]."""
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last dimension, var without Bessel's
    correction (Ba et al., 2016). x: [N, d]; weight, bias: [d]; returns [N, d] in x's dtype."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``r = residual + x``; returns ``(layer_norm(r), r)``. x, residual: [N, d]; weight, bias: [d]."""
    residual = residual + x
    return layer_norm(residual, weight, bias, eps), residual


ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def activate(x: Tensor, activation: str, *, gated: bool = False) -> Tensor:
    """One of ACTIVATIONS of x [N, F]; gated, ``activation(gate) * linear`` of ``x = [gate | linear]`` [N, 2F]
    as in T5 v1.1 (Shazeer, 2020). Returns [N, F] in x's dtype.

    "gelu_new" is transformers' name of ``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`` (Hendrycks and
    Gimpel, 2016).
    """
    if not gated:
        return ACTIVATIONS[activation](x)
    gate, linear = x.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate).mul_(linear)


def embed(ids: Tensor, table: Tensor, onto: Tensor | None = None) -> Tensor:
    """Rows of the table [vocabulary, d] by id, int64 [N], added to `onto` [N, d] if given."""
    rows = F.embedding(ids, table)
    return rows if onto is None else onto + rows


def add_depthwise(x: Tensor, first: int, weight: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Fills out with rows of ``x + conv(x)``, as many as it has, and returns it.

    x: images [items, H, W, C], which zeros surround; first: the row of x that out begins with; weight:
    [9, C], of 3 x 3 positions by row; bias: [C]; out: [items, rows, W, C].
    """
    rows, channels = out.shape[1], x.shape[3]
    above = min(first, 1)
    seen = x[:, first - above : first + rows + 1].permute(0, 3, 1, 2)
    kernel = weight.t().reshape(channels, 1, 3, 3)
    made = F.conv2d(seen, kernel, bias, padding=1, groups=channels)[:, :, above : above + rows]
    return torch.add(x[:, first : first + rows], made.permute(0, 2, 3, 1), out=out)


def argmax(x: Tensor) -> Tensor:
    """The index of each row's largest number, the first of several: [N, d] → int64 [N]."""
    return x.argmax(-1)


def scale(x: Tensor, factor: float) -> Tensor:
    """``x * factor`` for x [N, d]; x itself where the factor is 1."""
    return x if factor == 1.0 else x * factor


def keep_rows(x: Tensor, keep: Tensor) -> Tensor:
    """x [N, d] with zeros in the rows whose `keep`, int32 [N], is 0. A zero, whatever the row holds."""
    return x.masked_fill(keep.eq(0).unsqueeze(1), 0.0)


def rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotates the leading 2h dimensions of each head, in pairs (i, h + i), by the row's angles.

    x: [N, ..., H, D]; cosines, sines: [N, h], broadcast over the dimensions between; returns x's shape and
    dtype. ``(a, b) -> (a cos - b sin, b cos + a sin)`` (Su et al., 2021), halves as in GPT-NeoX.
    """
    half = cosines.shape[-1]
    shape = (cosines.shape[0], *[1] * (x.ndim - 2), half)
    cosines, sines = cosines.view(shape), sines.view(shape)
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cosines - b * sines, b * cosines + a * sines, rest], dim=-1)


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
    """``softmax(scores) v`` within each sequence, every position seeing every other; see `Scores`.

    q: [N, H, D]; k, v: [N, G, D], H / G heads of q sharing one, the sequences packed one after another;
    cu_seqlens: int32 [S + 1] of their borders; max_length: the longest. windowed: the bias table's ends hide
    their keys, so keys R or more positions away need not be read, and the cost is O(N R). summaries: further
    keys and values, seen by all positions of a sequence. Returns [N, H, D] in q's dtype.
    """
    # Queries per call, and how far from them their keys lie.
    width, beyond, bias, bias_table = max_length, 0, None, scores.bias_table
    if bias_table is not None:
        reach = bias_table.shape[1] // 2
        if windowed and max_length > 2 * reach:
            width, beyond = max(reach, _FEWEST_QUERIES), reach - 1
        bias = _band(bias_table, min(width, max_length), beyond)
    side = None if summaries is None else summaries.cu_seqlens.tolist()
    parts, start, sequence = [], 0, 0
    # Adjacent sequences of equal length run together; padding the others to one batch is slower.
    for length, run in groupby(b - a for a, b in pairwise(cu_seqlens.tolist())):
        count = len(list(run))
        rows, sequences = slice(start, start + count * length), slice(sequence, sequence + count)
        start, sequence = rows.stop, sequences.stop
        if not length:
            continue
        qs, ks, vs = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        more = None
        if summaries is not None and side is not None:
            own = slice(side[sequences.start], side[sequences.stop])
            more = [x[own].unflatten(0, (count, -1)).transpose(1, 2) for x in (summaries.k, summaries.v)]
        out = []
        for first in range(0, length, width):
            queries = slice(first, min(first + width, length))
            keys = slice(max(0, first - beyond), min(length, queries.stop + beyond))
            mask = None
            if bias is not None:
                skipped = keys.start - (first - beyond)
                mask = bias[:, : queries.stop - first, skipped : skipped + keys.stop - keys.start]
            k_, v_ = ks[:, :, keys], vs[:, :, keys]
            if summaries is not None and more is not None and more[0].shape[2]:
                to_summaries = summaries.bias(torch.arange(queries.start, queries.stop), length)
                if mask is None:
                    mask = to_summaries.new_zeros(*to_summaries.shape[:2], k_.shape[2])
                mask = torch.cat([mask, to_summaries], dim=-1)
                k_, v_ = torch.cat([k_, more[0]], dim=2), torch.cat([v_, more[1]], dim=2)
            out.append(_sdpa(qs[:, :, queries], k_, v_, mask, scores))
        parts.append((out[0] if len(out) == 1 else torch.cat(out, dim=2)).transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
    """``softmax(scores) v`` within each group, every position seeing every other, without a bias.

    q, k, v: [groups, N, H, D]; returns the same shape in q's dtype.
    """
    out = _sdpa(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, scores)
    return out.transpose(1, 2)


def soft_capped(scores: Tensor, cap: float | None) -> Tensor:
    """``cap tanh(scores / cap)``, before the bias is added, as in Gemma 2 (2024); None: the scores
    themselves."""
    return scores if cap is None else (scores / cap).tanh_().mul_(cap)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, how: Scores) -> Tensor:
    """q: [S, H, n, D]; k, v: [S, G, T, D]; bias: float32 [H, n, T] or None; returns [S, H, n, D]."""
    if how.softcap is None:
        mask = None if bias is None else bias.to(q.dtype)[None]
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=how.scale, enable_gqa=shared)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = soft_capped(torch.matmul(q, k.transpose(2, 3)).float().mul_(how.scale), how.softcap)
    if bias is not None:
        scores += bias
    return torch.matmul(scores.softmax(-1).to(q.dtype), v)


def _band(table: Tensor, length: int, beyond: int) -> Tensor:
    """[H, 2R + 1] by distance → [H, length, length + 2 beyond], entry (i, j) at distance j - beyond - i."""
    reach, width = table.shape[1] // 2, length + 2 * beyond
    distance = torch.arange(1 - length - beyond, length + beyond, device=table.device).clamp_(-reach, reach)
    # Row i of the matrix is the window that starts at length - 1 - i.
    return table.index_select(1, distance + reach).unfold(1, width, 1).flip(1)


def _toeplitz(table: Tensor, length: int) -> Tensor:
    """[H, 2R + 1] by distance → [H, length, length], entry (i, j) at distance j - i."""
    return _band(table, length, 0)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Stores row ``n`` of k and v at offset ``slots[n] % P`` of page ``slots[n] // P``.

    k, v: [N, H, D]; k_pages, v_pages: [pages, H, P, D], written in place; slots: int64 [N], distinct.
    """
    size = k_pages.shape[2]
    if slots.numel() == 1 and not slots.is_cuda:
        page, offset = divmod(int(slots), size)
        k_pages[page, :, offset] = k[0]
        v_pages[page, :, offset] = v[0]
        return
    pages, offsets = slots // size, slots % size
    k_pages.transpose(1, 2)[pages, offsets] = k.to(k_pages.dtype)
    v_pages.transpose(1, 2)[pages, offsets] = v.to(v_pages.dtype)


def paged_self_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    """Causal attention of the newest rows of each sequence over its paged keys.

    q: [N, H, D]. Row r of the n rows of sequence s sees its first ``kv.lengths[s] - n + r + 1`` keys; the
    bias is by distance from the row's own position, its last visible key. sums: float32 [N, H], receives the
    logarithm of the softmax's denominator, for `merge_attention`. Returns [N, H, D] in q's dtype; a row that
    sees no key is zero.
    """
    return _paged_attention(q, kv, groups, scores, sums, causal=True)


def paged_cross_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None = None
) -> Tensor:
    """Attention of every row of a sequence over its paged keys from ``kv.begins`` on, as
    `paged_self_attention` but for the bias, which cross-attention does not have."""
    assert scores.bias_table is None
    return _paged_attention(q, kv, groups, scores, sums, causal=False)


def paged_beam_attention(q: Tensor, kv: PagedKV, scores: Scores, sums: Tensor | None = None) -> Tensor:
    """Attention of each beam's newest row over its history, which lies scattered over its ancestors' pages.

    As `paged_self_attention` with one row a sequence. `kv.table` names each key's cell, page * P + offset.
    """
    if reads_in_place(kv.k):
        rows = Rows(list(range(q.shape[0])), kv.lengths.tolist(), [0] * q.shape[0])
        return sparse_attention(q, kv, rows, scores, sums, by_cell=True)
    size, lengths, bias_table = kv.k.shape[2], kv.lengths, scores.bias_table
    cells = kv.table[:, : int(lengths.max())].long()
    distance = lengths.unsqueeze(1) - 1 - torch.arange(cells.shape[1], device=q.device)
    hidden = distance < 0
    # [N, T, H, D]; cells past the length may be NaN and must not take part.
    k, v = (
        pool.transpose(1, 2)[cells // size, cells % size]
        .float()
        .masked_fill_(hidden[:, :, None, None], 0.0)
        .repeat_interleave(q.shape[1] // pool.shape[1], dim=2)
        for pool in (kv.k, kv.v)
    )
    products = torch.einsum("nhd,nthd->nht", q.float(), k).mul_(scores.scale)
    logits = soft_capped(products, scores.softcap)
    if bias_table is not None:
        logits += bias_table[:, distance.clamp(0, bias_table.shape[1] - 1)].transpose(0, 1)
    logits.masked_fill_(hidden.unsqueeze(1), -math.inf)
    if sums is not None:
        torch.logsumexp(logits, -1, out=sums)
    return torch.einsum("nht,nthd->nhd", logits.softmax(-1), v).to(q.dtype)


def _paged_attention(
    q: Tensor, kv: PagedKV, groups: RowGroups, scores: Scores, sums: Tensor | None, causal: bool
) -> Tensor:
    """Sequences of few rows together, the others (prefills) one by one."""
    bounds, keys = groups.cu_rows.tolist(), kv.lengths.tolist()
    begins = [0] * len(keys) if kv.begins is None else kv.begins.tolist()
    assert not causal or not any(begins)
    few, many = Rows([], [], []), []
    small = FEW_ROWS if reads_in_place(kv.k) else 0
    few_index: list[int] = []
    for s, (start, end) in enumerate(pairwise(bounds)):
        if end - start > small:
            many.append(s)
            continue
        for row in range(start, end):
            few_index.append(row)
            few.sequences.append(s)
            few.begins.append(begins[s])
            few.visible.append(max(0, keys[s] - begins[s] - (end - 1 - row if causal else 0)))
    if not many and any(few.visible):
        return sparse_attention(q, kv, few, scores, sums)
    out = torch.zeros_like(q)
    if any(few.visible):
        some = None if sums is None else sums[few_index]
        out[few_index] = sparse_attention(q[few_index], kv, few, scores, some)
        if sums is not None and some is not None:
            sums[few_index] = some
    for s in many:
        rows = slice(bounds[s], bounds[s + 1])
        pages, some = kv.table[s], None if sums is None else sums[rows]
        out[rows] = _sequence_attention(q[rows], kv, pages, begins[s], keys[s], scores, some, causal)
    return out


def _sequence_attention(
    q: Tensor, kv: PagedKV, pages: Tensor, begin: int, length: int, scores: Scores, sums: Tensor | None,
    causal: bool,
) -> Tensor:  # fmt: skip
    """The paged ops for one sequence and its keys begin:length. q: [n, H, D]; pages: int32 [M]; returns
    [n, H, D]."""
    n, size, bias_table = q.shape[0], kv.k.shape[2], scores.bias_table
    pages = pages[: -(-length // size)]
    # [m, G, P, D] → [H, length - begin, D]; cells past the length may be NaN and must not take part.
    k, v = (
        pool.index_select(0, pages)
        .transpose(0, 1)
        .flatten(1, 2)[:, begin:length]
        .float()
        .repeat_interleave(q.shape[1] // pool.shape[1], dim=0)
        for pool in (kv.k, kv.v)
    )
    products = torch.matmul(q.transpose(0, 1).float(), k.transpose(1, 2)).mul_(scores.scale)
    logits = soft_capped(products, scores.softcap)
    if causal:
        query = torch.arange(length - n, length, device=q.device)
        distance = query.unsqueeze(1) - torch.arange(length, device=q.device)
        if bias_table is not None:
            logits += bias_table[:, distance.clamp(0, bias_table.shape[1] - 1)]
        logits.masked_fill_(distance < 0, -math.inf)
    if sums is not None:
        sums.copy_(logits.logsumexp(-1).t())
    weights = logits.softmax(-1)
    if causal:
        # Rows before the first key: all their scores are -inf and the softmax is NaN.
        weights[:, : max(0, n - length)] = 0.0
    return torch.matmul(weights, v).transpose(0, 1).to(q.dtype)


def merge_attention(one: Tensor, one_sums: Tensor, other: Tensor, other_sums: Tensor) -> Tensor:
    """Two attentions of the same queries as one softmax over the keys of both.

    one, other: [N, H, D]; one_sums, other_sums: their `sums`, float32 [N, H], not -inf in both. Returns
    [N, H, D].
    """
    share = torch.sigmoid(other_sums - one_sums).unsqueeze(-1)
    return torch.lerp(one.float(), other.float(), share).to(one.dtype)
