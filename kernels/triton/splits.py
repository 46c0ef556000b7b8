"""How many programs share the keys of one sequence."""

from functools import cache

import torch

MIN_SPLIT = 256  # the fewest keys worth a program of their own
MAX_SPLITS = 32


def choose_splits(device: torch.device, rows: int, sequences: int, heads: int, capacity: int) -> int:
    """Enough splits, a power of two, for two programs per multiprocessor. capacity: the most keys that a row
    of the page table can name."""
    programs = max(rows, sequences) * heads
    splits = 1
    while (
        splits < MAX_SPLITS
        and programs * splits < 2 * _processors(device)
        and capacity >= 2 * splits * MIN_SPLIT
    ):
        splits *= 2
    return splits


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
