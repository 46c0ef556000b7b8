"""How many programs share the keys of one sequence."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Final

import torch

# Few, because each is compiled by itself; the next one is 4 times as many.
SPLITS: Final = (1, 4, 16)
MIN_SPLIT = 128  # the fewest keys worth a program of their own

_FIXED: ContextVar[int | None] = ContextVar("splits", default=None)


@contextmanager
def splitting(splits: int | None) -> Iterator[None]:
    """In it every attention has so many splits, one of SPLITS; None: as many as `choose_splits` says."""
    token = _FIXED.set(splits)
    try:
        yield
    finally:
        _FIXED.reset(token)


def choose_splits(device: torch.device, rows: int, sequences: int, heads: int, capacity: int) -> int:
    """Enough splits for two programs per multiprocessor, as far as the keys suffice. capacity: the most keys
    that a row of the page table can name."""
    if (fixed := _FIXED.get()) is not None:
        return fixed
    programs = max(rows, sequences) * heads
    for splits in SPLITS:
        if programs * splits >= 2 * _processors(device) or capacity < 4 * splits * MIN_SPLIT:
            return splits
    return SPLITS[-1]


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
