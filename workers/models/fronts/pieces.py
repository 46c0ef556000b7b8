"""An image's many rows, some at a time."""

from __future__ import annotations

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
