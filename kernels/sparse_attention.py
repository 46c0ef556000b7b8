"""Paged attention in PyTorch on the CPU for steps of few query rows, which reads K and V in place and once.

Gathering pages into a dense batch costs more than the attention itself, and a batched product with one row
runs far below the speed of memory. Two sparse primitives read the pools directly, through an index of the
cells that each row and head sees: ``sampled_addmm`` computes just the scores of those cells,
``embedding_bag`` sums just their values. Against gather and bmm that is 4 to 20 times faster, measured from 1
to 32 sequences.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.kernels.values import PagedKV, Scores

# Rows of unequal lengths are padded to the longest. A padding cell repeats the row's first cell, which is in
# the cache, so it costs arithmetic and no memory traffic; beyond this ratio of padded to live cells the rows
# are split by length.
MAX_PADDING = 3

with warnings.catch_warnings():
    # The first CSR tensor of a process warns that the layout is in beta.
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 1], [0], [0.0], size=(1, 1))


def reads_in_place(pages: Tensor) -> bool:
    """Whether `sparse_attention` takes pages like these."""
    return pages.device.type == "cpu" and pages.dtype == torch.float32


@dataclass(frozen=True)
class Rows:
    """Query rows and the keys each of them sees, the same in every layer of a step.

    sequences: each query row's row of the page table.
    visible: how many keys each query row sees.
    begins: the first of them.
    """

    sequences: list[int]
    visible: list[int]
    begins: list[int]


@dataclass(frozen=True)
class _Part:
    """n rows of similar lengths and the cells they see, padded to t cells a row and head.

    rows: int64 [n], or None for all rows in order.
    cells: int32 [H n t], cell (page G + shared head) P + offset of each key, ordered by head, row, position.
    starts: int32 [H n + 1], 0, t, 2t, ...
    distance: int32 [n, t], how far a key lies before the row's last visible one; negative on padding.
    padded: whether there is any padding.
    blind: bool [n, 1, 1], the rows that see no key; None when there are none.
    biases: what `bias` returned, by the id of the table; with the table, so that its id is not reused.
    """

    rows: Tensor | None
    cells: Tensor
    starts: Tensor
    distance: Tensor
    padded: bool
    blind: Tensor | None
    biases: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    def bias(self, table: Tensor | None, heads: int) -> Tensor:
        """float32 [H n t]: the bias of each cell by the table [H, R + 1], -inf on padding."""
        known = self.biases.get(id(table))
        if known is None:
            known = self.biases[id(table)] = (table, self._bias(table, heads))
        return known[1]

    def _bias(self, table: Tensor | None, heads: int) -> Tensor:
        if table is None:
            bias = torch.zeros(heads, *self.distance.shape)
            return bias.masked_fill_(self.distance < 0, -math.inf).view(-1)
        reach = table.shape[1] - 1
        index = self.distance.clamp(max=reach)
        if self.padded:
            table = F.pad(table, (0, 1), value=-math.inf)
            index.masked_fill_(index < 0, reach + 1)
        return table.index_select(1, index.view(-1)).view(-1)


@dataclass(frozen=True)
class _Plan:
    rows: Rows
    page_table: Tensor
    shape: tuple[int, int, int]  # heads of the queries, heads and positions of a page
    by_cell: bool
    parts: list[_Part]


# Every layer of a step asks for the same index, and building it takes as long as a small attention. The
# latest few are kept and recognized by content, so a page table that is changed in place is noticed. (Bias
# tables are constants of a model and recognized by identity.)
_recent: deque[_Plan] = deque(maxlen=4)


def sparse_attention(
    q: Tensor, kv: PagedKV, rows: Rows, scores: Scores, sums: Tensor | None = None, *, by_cell: bool = False
) -> Tensor:
    """q: [N, H, D]; the pages are float32. The bias is by distance from a row's last visible key. Returns
    [N, H, D] in q's dtype, and in `sums` [N, H] the logarithm of the softmax's denominator.

    by_cell: the table names each key's cell, page * P + offset, instead of each page.
    """
    shape = (q.shape[1], kv.k.shape[1], kv.k.shape[2])
    parts = _plan(rows, kv.table, shape, by_cell)
    dtype, q = q.dtype, q.float()
    if len(parts) == 1:
        out, logs = _attend(q, kv, parts[0], scores, sums is not None)
        if sums is not None and logs is not None:
            sums.copy_(logs)
        return out.to(dtype)
    out = torch.empty_like(q)
    for part in parts:
        out[part.rows], logs = _attend(q[part.rows], kv, part, scores, sums is not None)
        if sums is not None and logs is not None:
            sums[part.rows] = logs
    return out.to(dtype)


def _attend(
    q: Tensor, kv: PagedKV, part: _Part, how: Scores, with_sums: bool
) -> tuple[Tensor, Tensor | None]:
    n, heads, dim = q.shape
    keys = kv.k.view(-1, dim).t()
    bias = part.bias(how.bias_table, heads)
    # The scores replace the bias in this tensor; capped scores get it added afterwards.
    values = bias.clone() if how.softcap is None else torch.zeros_like(bias)
    size = (heads * n, keys.shape[1])
    scores = torch.sparse_csr_tensor(part.starts, part.cells, values, size=size, check_invariants=False)
    # Where the index has a cell: bias + scale (q . key).
    queries = q.transpose(0, 1).reshape(heads * n, dim)
    torch.sparse.sampled_addmm(scores, queries, keys, beta=1.0, alpha=how.scale, out=scores)
    values = scores.values()
    if how.softcap is not None:
        values.div_(how.softcap).tanh_().mul_(how.softcap).add_(bias)
    rows = values.view(heads * n, -1)
    logs = rows.logsumexp(-1).view(heads, n).t() if with_sums else None
    weights = rows.softmax(-1).view(-1)
    out = F.embedding_bag(
        part.cells,
        kv.v.view(-1, dim),
        part.starts,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )
    out = out.view(heads, n, dim).transpose(0, 1).contiguous()
    return (out if part.blind is None else out.masked_fill_(part.blind, 0.0)), logs


def _plan(rows: Rows, page_table: Tensor, shape: tuple[int, int, int], by_cell: bool) -> list[_Part]:
    for plan in tuple(_recent):  # another thread may append meanwhile
        same = plan.rows == rows and plan.shape == shape and plan.by_cell == by_cell
        if same and torch.equal(plan.page_table, page_table):
            return plan.parts
    groups = _split(list(range(len(rows.visible))), rows.visible)
    parts = [_build(selected, rows, page_table, shape, by_cell) for selected in groups]
    _recent.append(_Plan(rows, page_table.clone(), shape, by_cell, parts))
    return parts


def _split(rows: list[int], visible: list[int]) -> list[list[int]]:
    """The rows in groups of similar lengths, which need little padding."""
    longest = max(visible[r] for r in rows)
    padded, live = longest * len(rows), sum(visible[r] for r in rows)
    # A few thousand cells of padding cost less than the operators of another group.
    if padded <= MAX_PADDING * live + 1024:
        return [rows]
    short = [r for r in rows if 2 * visible[r] <= longest]
    return [*_split(short, visible), [r for r in rows if 2 * visible[r] > longest]]


def _build(
    selected: list[int], rows: Rows, page_table: Tensor, shape: tuple[int, int, int], by_cell: bool
) -> _Part:
    heads, shared, size = shape
    page_table = page_table.to(torch.int32)
    sequences = [rows.sequences[r] for r in selected]
    lengths = [rows.visible[r] for r in selected]
    n, longest = len(selected), max(1, *lengths)
    if sequences != list(range(page_table.shape[0])):
        page_table = page_table[sequences]
    head_offset, cell = _cells(*shape)
    visible = torch.tensor(lengths, dtype=torch.int32).unsqueeze(1)
    distance = visible - torch.arange(1, longest + 1, dtype=torch.int32)
    begins = [rows.begins[r] for r in selected]
    if any(begins):
        positions = torch.tensor(begins).unsqueeze(1) + torch.arange(longest)
        positions = positions.clamp_(max=page_table.shape[1] * size - 1)
        pages = page_table.gather(1, positions // size)
        cells = pages * (shared * size) + (positions % size).int()
    elif by_cell:
        places = page_table[:, :longest]
        cells = places // size * (shared * size) + places % size
    else:
        pages = page_table[:, : -(-longest // size)]
        cells = ((pages * (shared * size)).unsqueeze(-1) + cell).view(n, -1)[:, :longest]
    padded = min(lengths) < longest
    if padded:
        cells = torch.where(distance < 0, cells[:, :1], cells)
    return _Part(
        rows=None if n == len(rows.visible) else torch.tensor(selected),
        cells=(cells + head_offset).view(-1),
        starts=torch.arange(0, heads * n * longest + 1, longest, dtype=torch.int32),
        distance=distance,
        padded=padded,
        blind=(visible == 0).unsqueeze(-1) if min(lengths) == 0 else None,
    )


@lru_cache(maxsize=16)
def _cells(heads: int, shared: int, size: int) -> tuple[Tensor, Tensor]:
    """Cells within a page: the offset of the shared head that each query head reads [H, 1, 1], and of each
    position [P]."""
    head_offset = torch.arange(heads, dtype=torch.int32) // (heads // shared) * size
    return head_offset.view(heads, 1, 1), torch.arange(size, dtype=torch.int32)
