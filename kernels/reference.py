"""Plain PyTorch twins: the CPU path, the oracle of the kernels' tests, and the definition of each op."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from tandem.kernels.groups import RowGroups
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    x: [N, d]; weight: [d]; returns [N, d]. The mean is taken in float32; a half-precision weight rounds the
    normalized row to its own dtype before it multiplies, and the product is in the promoted dtype, as
    transformers' ``T5LayerNorm`` computes it (Zhang and Sennrich, 2019).
    """
    variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
    x = x * torch.rsqrt(variance + eps)
    if weight.dtype in (torch.float16, torch.bfloat16):
        x = x.to(weight.dtype)
    return weight * x


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``r = residual + x``; returns ``(rms_norm(r), r)``. x, residual: [N, d]; weight: [d]."""
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def gated_gelu(x: Tensor) -> Tensor:
    """``gelu_tanh(gate) * linear`` for ``x = [gate | linear]``.

    x: [N, 2F]; returns [N, F] in x's dtype. ``gelu_tanh(g) = g/2 (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3)))``
    (Hendrycks and Gimpel, 2016), which transformers calls "gelu_new"; the gate of T5 v1.1 (Shazeer, 2020).
    """
    gate, linear = x.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(linear)


def encoder_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    bias_table: Tensor | None,
    scale: float,
) -> Tensor:
    """``softmax(scale q k^T + bias) v`` within each sequence, every position seeing every other.

    q, k, v: [N, H, D], the sequences packed one after another; cu_seqlens: int32 [S + 1] of their borders;
    max_length: the longest; bias_table: float32 [H, 2R + 1] or None, the bias at
    ``clamp(key - query, -R, R) + R``. Returns [N, H, D] in q's dtype.
    """
    bounds = cu_seqlens.tolist()
    count = len(bounds) - 1
    bias = None if bias_table is None else _toeplitz(bias_table, max_length).to(q.dtype)
    if count * max_length == bounds[-1]:
        shape = (count, max_length, *q.shape[1:])
        return _sdpa(q.view(shape), k.view(shape), v.view(shape), bias, scale).reshape(q.shape)
    out = torch.empty_like(q)
    for start, end in pairwise(bounds):
        if start < end:
            n = end - start
            part = None if bias is None else bias[:, :n, :n]
            rows = slice(start, end)
            out[rows] = _sdpa(q[None, rows], k[None, rows], v[None, rows], part, scale)[0]
    return out


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """q, k, v: [S, T, H, D]; bias: [H, T, T] or None; returns [S, T, H, D]."""
    mask = None if bias is None else bias[None]
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return out.transpose(1, 2)


def _toeplitz(table: Tensor, length: int) -> Tensor:
    """[H, 2R + 1] by distance -> [H, length, length], entry (i, j) at distance j - i."""
    reach = table.shape[1] // 2
    distance = torch.arange(1 - length, length, device=table.device).clamp_(-reach, reach)
    # Row i of the matrix is the window that starts at length - 1 - i.
    return table.index_select(1, distance + reach).unfold(1, length, 1).flip(1)


def write_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Store row ``n`` of k and v at offset ``slots[n] % P`` of page ``slots[n] // P``.

    k, v: [N, H, D]; k_pages, v_pages: [pages, H, P, D], written in place; slots: int64 [N], distinct.
    """
    size = k_pages.shape[2]
    page, offset = slots // size, slots % size
    k_pages.transpose(1, 2)[page, offset] = k.to(k_pages.dtype)
    v_pages.transpose(1, 2)[page, offset] = v.to(v_pages.dtype)


def paged_self_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    bias_table: Tensor | None,
    scale: float,
) -> Tensor:
    """Causal attention of the newest rows of each sequence over its paged keys.

    q: [N, H, D]; k_pages, v_pages: [pages, H, P, D]; page_table: int32 [S, M], entries past a sequence's
    pages are any valid page; lengths: int32 [S], the keys of each sequence, those of these rows included. Row r of
    the n rows of sequence s sees its first ``lengths[s] - n + r + 1`` keys. bias_table: float32 [H, R + 1] or
    None, the bias at ``min(query - key, R)``. Returns [N, H, D] in q's dtype; a row that sees no key is zero.
    """
    return _paged_attention(q, k_pages, v_pages, page_table, lengths, groups, bias_table, scale, causal=True)


def paged_cross_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    scale: float,
) -> Tensor:
    """Attention of every row of a sequence over all its paged keys; shapes as in paged_self_attention."""
    return _paged_attention(q, k_pages, v_pages, page_table, lengths, groups, None, scale, causal=False)


def _paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    groups: RowGroups,
    bias_table: Tensor | None,
    scale: float,
    causal: bool,
) -> Tensor:
    size = k_pages.shape[2]
    out = torch.zeros_like(q)
    bounds = groups.cu_rows.tolist()
    for s, length in enumerate(lengths.tolist()):
        rows = slice(bounds[s], bounds[s + 1])
        n = rows.stop - rows.start
        if n == 0 or length == 0:
            continue
        pages = page_table[s, : -(-length // size)]
        # [m, H, P, D] -> [H, length, D]; what lies past the length may be NaN and must not take part.
        k = k_pages.index_select(0, pages).transpose(0, 1).flatten(1, 2)[:, :length].float()
        v = v_pages.index_select(0, pages).transpose(0, 1).flatten(1, 2)[:, :length].float()
        scores = torch.matmul(q[rows].transpose(0, 1).float(), k.transpose(1, 2)).mul_(scale)
        if causal:
            query = torch.arange(length - n, length, device=q.device)
            distance = query[:, None] - torch.arange(length, device=q.device)
            if bias_table is not None:
                scores += bias_table[:, distance.clamp(0, bias_table.shape[1] - 1)]
            scores.masked_fill_(distance < 0, -math.inf)
        # A row before the first key has no finite score; its softmax is NaN and its answer zero.
        weights = scores.softmax(-1)
        if causal and n > length:
            weights[:, : n - length] = 0
        out[rows] = torch.matmul(weights, v).transpose(0, 1).to(q.dtype)
    return out
