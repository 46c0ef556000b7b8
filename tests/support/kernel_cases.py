"""Inputs for the tests of the ops, and what the ops should answer, row by row in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tandem.kernels import PagedKV, RowGroups, Summaries

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def naive_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, cap: float | None = None
) -> Tensor:
    """One row of one head: q [D], k and v [T, D], bias [T]. No keys, no answer: zeros."""
    if k.shape[0] == 0:
        return torch.zeros_like(q, dtype=torch.float64)
    scores = scale * (k.double() @ q.double())
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias.double()
    weights = torch.exp(scores - scores.max())
    return (weights / weights.sum()) @ v.double()


@dataclass
class Paged:
    """A pool with the keys and values of some sequences; every other cell of it is NaN.

    k, v: what is stored, [length, H, D] for each sequence.
    """

    q: Tensor
    kv: PagedKV
    groups: RowGroups
    k: list[Tensor]
    v: list[Tensor]

    def inputs(self) -> tuple[Tensor, PagedKV, RowGroups]:
        return self.q, self.kv, self.groups

    def expected(
        self, bias_table: Tensor | None, scale: float, causal: bool, cap: float | None = None,
        more: Paged | None = None,
    ) -> Tensor:  # fmt: skip
        """[N, H, D], float64. more: all keys of whose sequences are seen too, without a bias."""
        group = self.q.shape[1] // self.kv.k.shape[1]
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        bounds = self.groups.cu_rows.tolist()
        begins = [0] * len(self.k) if self.kv.begins is None else self.kv.begins.tolist()
        for s, length in enumerate(self.kv.lengths.tolist()):
            for row in range(bounds[s], bounds[s + 1]):
                seen = max(0, length - (bounds[s + 1] - row) + 1) if causal else length
                for h in range(self.q.shape[1]):
                    bias = None
                    if bias_table is not None:
                        distance = torch.tensor([seen - 1 - t for t in range(seen)], dtype=torch.long)
                        bias = bias_table[h][distance.clamp(max=bias_table.shape[1] - 1)].cpu()
                    visible = slice(begins[s], seen)
                    keys, values = (one[s][visible, h // group].cpu() for one in (self.k, self.v))
                    if more is not None:
                        keys = torch.cat([keys, more.k[s][:, h // group].cpu()])
                        values = torch.cat([values, more.v[s][:, h // group].cpu()])
                        if bias is not None:
                            bias = torch.cat([bias, bias.new_zeros(len(more.k[s]))])
                    out[row, h] = naive_attention(self.q[row, h].cpu(), keys, values, bias, scale, cap)
        return out


def paged(
    lengths: Sequence[int],
    rows: Sequence[int],
    heads: int = 2,
    dim: int = 64,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    group: int = 1,
) -> Paged:
    """group: heads of q that share one of k and v."""
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=gen) * 0.6).to(dtype)

    counts = [-(-n // page) for n in lengths]
    # Page 0 belongs to no sequence: the table's unused entries name it.
    pages = torch.randperm(sum(counts), generator=gen) + 1
    width = max(1, *counts) + 1
    page_table = torch.zeros(len(lengths), width, dtype=torch.int32)
    k_pages = torch.full((sum(counts) + 1, heads // group, page, dim), float("nan"), dtype=dtype)
    v_pages = k_pages.clone()
    keys, values, used = [], [], 0
    for s, length in enumerate(lengths):
        page_table[s, : counts[s]] = pages[used : used + counts[s]].to(torch.int32)
        used += counts[s]
        keys.append(normal(length, heads // group, dim))
        values.append(normal(length, heads // group, dim))
        for t in range(length):
            k_pages[page_table[s, t // page], :, t % page] = keys[s][t]
            v_pages[page_table[s, t // page], :, t % page] = values[s][t]
    cu_rows = torch.tensor([0, *rows], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Paged(
        normal(sum(rows), heads, dim).to(device),
        PagedKV(
            k_pages.to(device),
            v_pages.to(device),
            page_table.to(device),
            torch.tensor(lengths, dtype=torch.int32, device=device),
        ),
        RowGroups(cu_rows.to(device), max(rows)),
        keys,
        values,
    )


def scattered(case: Paged, lengths: Sequence[int], seed: int = 0) -> None:
    """Makes the case's rows beams, one row a sequence: its table names cells, each key being the one at its
    position of any of the sequences."""
    rng = torch.Generator().manual_seed(seed)
    page = case.kv.k.shape[2]
    table = case.kv.table.cpu()
    cells = torch.zeros(len(lengths), max(lengths) + 3, dtype=torch.int32)
    own = [case.k, case.v]
    made: list[list[Tensor]] = [[], []]
    for row, length in enumerate(lengths):
        sources = []
        for t in range(length):
            able = [s for s, n in enumerate(case.kv.lengths.tolist()) if n > t]
            source = able[int(torch.randint(len(able), (1,), generator=rng))]
            cells[row, t] = table[source, t // page] * page + t % page
            sources.append(source)
        for into, stored in zip(made, own, strict=True):
            into.append(torch.stack([stored[source][t] for t, source in enumerate(sources)]))
    case.k, case.v = made
    device = case.q.device
    case.kv = case.kv._replace(
        table=cells.to(device), lengths=torch.tensor(lengths, dtype=torch.int32, device=device)
    )


@dataclass
class Packed:
    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    max_length: int

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        return self.q, self.k, self.v, self.cu_seqlens, self.max_length

    def expected(
        self, bias_table: Tensor | None, scale: float, summaries: Summaries | None = None,
        cap: float | None = None,
    ) -> Tensor:  # fmt: skip
        group = self.q.shape[1] // self.k.shape[1]
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        bounds = self.cu_seqlens.tolist()
        for sequence, (start, end) in enumerate(pairwise(bounds)):
            position = torch.arange(end - start)
            for row in range(start, end):
                for h in range(self.q.shape[1]):
                    bias = None
                    if bias_table is not None:
                        reach = bias_table.shape[1] // 2
                        bias = bias_table[h].cpu()[(position - (row - start)).clamp(-reach, reach) + reach]
                    keys = self.k[start:end, h // group].cpu()
                    values = self.v[start:end, h // group].cpu()
                    if summaries is not None:
                        first, last = summaries.cu_seqlens[sequence : sequence + 2].tolist()
                        reach = summaries.bias_table.shape[1] // 2
                        own = min((row - start) // summaries.block, last - first - 1)
                        distance = (torch.arange(last - first) - own).clamp(-reach, reach)
                        more = summaries.bias_table[h].cpu()[distance + reach]
                        bias = more if bias is None else torch.cat([bias, more])
                        keys = torch.cat([keys, summaries.k[first:last, h // group].cpu()])
                        values = torch.cat([values, summaries.v[first:last, h // group].cpu()])
                    out[row, h] = naive_attention(self.q[row, h].cpu(), keys, values, bias, scale, cap)
        return out


def summarized(case: Packed, block: int) -> Summaries:
    """Keys and values of the case's blocks, strided as its own."""
    counts = case.cu_seqlens.diff() // block
    cu_seqlens = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    heads, (_, shared, dim) = case.q.shape[1], case.k.shape
    device = case.q.device
    gen = torch.Generator().manual_seed(2)
    fused = torch.randn(int(cu_seqlens[-1]), 3, shared, dim, generator=gen).to(device, case.q.dtype)
    return Summaries(fused[:, 1], fused[:, 2], cu_seqlens, block, bias_table(heads, 7, str(device)))


def packed(
    lengths: Sequence[int],
    heads: int = 2,
    dim: int = 64,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    group: int = 1,
) -> Packed:
    """q, k and v are slices of one fused projection, as a model makes them: their rows are strided.

    group: heads of q that share one of k and v.
    """
    gen = torch.Generator().manual_seed(0)
    shared = heads // group
    fused = (torch.randn(sum(lengths), heads + 2 * shared, dim, generator=gen) * 0.6).to(dtype).to(device)
    q, k, v = fused.split([heads, shared, shared], dim=1)
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    return Packed(q, k, v, cu_seqlens, max(lengths))


def bias_table(heads: int, entries: int, device: str = "cpu") -> Tensor:
    return torch.randn(heads, entries, generator=torch.Generator().manual_seed(1)).to(device)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """tolerance: absolute and relative; by default that of the actual dtype."""
    tolerance = TOLERANCE[actual.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), atol=tolerance, rtol=tolerance, check_dtype=False
    )
