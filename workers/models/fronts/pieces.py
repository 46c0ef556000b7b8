"""An image's many rows, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

# Rows that a feed-forward computes at once: what is between its projections is wider than they are. On a CPU
# it stays in the cache, elsewhere it is bounded.
_CPU_ROWS: Final = 512
_ROWS: Final = 2**16
# Numbers that a strip reads on a CPU: 1 MiB of float32, of which each core's cache holds its part and what is
# made of it.
_CPU_NUMBERS: Final = 2**18


def pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows [N, width], in order, as views of x."""
    views: tuple[torch.Tensor, ...] = x.split(_CPU_ROWS if x.is_cpu else _ROWS)
    return views


def strips(image: torch.Tensor, height: int, width: int, numbers: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of positions, in order, of images of this height and width on `image`'s device; on a CPU as many
    at once as are computed while they stay in the cache. All but the last are multiples of `multiple`.

    numbers: that are read for a position.
    """
    rows = height
    if image.is_cpu:
        positions = max(_CPU_ROWS, _CPU_NUMBERS // numbers)
        rows = max(1, positions // (width * multiple)) * multiple
    for first in range(0, height, rows):
        yield slice(first, min(first + rows, height))
