"""An image's many rows, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

# Rows that a feed-forward computes at once: what is between its projections is wider than they are. On a CPU
# it stays in the cache, elsewhere it is bounded.
_CPU_ROWS: Final = 512
_ROWS: Final = 2**16


def pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows [N, width], in order, as views of x."""
    views: tuple[torch.Tensor, ...] = x.split(_CPU_ROWS if x.is_cpu else _ROWS)
    return views


def strips(image: torch.Tensor, height: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of positions, in order, of images of this height and width on `image`'s device; on a CPU as many
    at once as are computed while they stay in the cache. All but the last are multiples of `multiple`."""
    rows = height
    if image.is_cpu:
        rows = max(1, _CPU_ROWS // (width * multiple)) * multiple
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))
