"""Which tokens go with which positions of an encoder input, by cross-attention: the ops of word times."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.kernels.values import Scores

# What a path of `time_warp` goes on by.
_BOTH, _ROW, _COLUMN = range(3)


def alignment_scores(
    q: Tensor, k: Tensor, scores: Scores, columns: int, width: int, *, cropped: bool
) -> Tensor:
    """How much more each token attends to each position of an encoder input than the other tokens do, summed
    over heads.

    q: [H, N, D], N at least 1; k: [H, M, D]; returns float32 [N, columns], of the first 1 to M positions.
    width: odd. cropped: the softmax is over those positions alone.

    A position's weights are standardized over the tokens, by the population's standard deviation; one that
    all tokens attend to alike says nothing and has zeros. Then each head's are median filtered along the
    positions (`_extract_token_timestamps` of transformers' Whisper, `find_alignment` of openai-whisper).
    """
    keys = k[:, :columns] if cropped else k
    logits = torch.matmul(q.float(), keys.float().transpose(1, 2)).mul_(scores.scale)
    if scores.softcap is not None:
        logits = torch.tanh(logits / scores.softcap) * scores.softcap
    weights = logits.softmax(-1)[..., :columns]
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    weights = torch.where(deviation > 0, (weights - mean) / deviation, 0.0)
    return median_filter(weights, width).sum(0)


def median_filter(x: Tensor, width: int) -> Tensor:
    """The median of `width` neighbours, an odd number, along the last dimension of x [..., N, M], which is
    reflected at its ends. One no longer than half the width is returned as it is.

    The median is what is left when the least and the greatest are dropped, in turn with neighbours not looked
    at yet coming in: elementwise minima and maxima of shifted views, some twenty times as fast as sorting.
    """
    half, columns = width // 2, x.shape[-1]
    if columns <= half:
        return x
    x = F.pad(x, (half, half), mode="reflect")
    views = [x[..., at : at + columns] for at in range(width)]
    # So many hold the median of all, whatever the others are.
    held, left = views[: half + 2], views[half + 2 :]
    while len(held) > 1:
        held = _without_extremes(held)
        if left:
            held.append(left.pop())
    return held[0]


def _without_extremes(views: list[Tensor]) -> list[Tensor]:
    """All but the least and the greatest, place by place."""
    greatest, rest = views[0], []
    for view in views[1:]:
        rest.append(torch.minimum(greatest, view))
        greatest = torch.maximum(greatest, view)
    least, kept = rest[0], []
    for view in rest[1:]:
        kept.append(torch.maximum(least, view))
        least = torch.minimum(least, view)
    return kept


def time_warp(x: Tensor) -> Tensor:
    """Dynamic time warping: the path from the first row and column to the last, by steps to the next row, the
    next column or both, on which x adds up to the most.

    x: float32 [N, M], on the CPU. Returns int64 [N], the first column of each row on the path; zeros where
    there are no columns. Where both ways are as good, the path came from the column before (`dtw` of
    openai-whisper, after Sakoe and Chiba, 1978).
    """
    rows, columns = x.shape
    first = np.zeros(rows, np.int64)
    steps, values = np.empty((rows + 1, columns + 1), np.int8), x.numpy()
    # Costs by antidiagonal: the cells of one depend on the two before it alone.
    before = np.full(rows + 1, np.inf, np.float32)
    last = before.copy()
    before[0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        cells = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        both, up, left = before[cells - 1], last[cells - 1], last[cells]
        by_row = np.where((up < both) & (up < left), _ROW, _COLUMN)
        step = np.where((both < up) & (both < left), _BOTH, by_row)
        steps[cells, diagonal - cells] = step
        before, last = last, np.full_like(last, np.inf)
        last[cells] = np.choose(step, (both, up, left)) - values[cells - 1, diagonal - cells - 1]
    row, column = rows, columns
    while row > 0:
        first[row - 1] = max(0, column - 1)
        came_by = int(steps[row, column]) if column > 1 else _ROW
        row -= came_by != _COLUMN
        column -= came_by != _ROW
    return torch.from_numpy(first)
