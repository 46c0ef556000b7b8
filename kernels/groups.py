"""Which query rows belong to which sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGroups:
    """Query rows grouped by the sequence whose keys they read.

    The rows of a sequence are adjacent: sequence ``s`` owns rows ``cu_rows[s]:cu_rows[s + 1]``. One row is a
    plain decode step; several are a prefill, the beams of a request, or drafted tokens to verify.

    cu_rows: int32 [S + 1], on the device of the queries, from 0 to N.
    max_rows: the most rows any sequence owns, known on the host so that launching needs no sync.
    """

    cu_rows: Tensor
    max_rows: int

    @classmethod
    def each(cls, rows: int, device: torch.device) -> RowGroups:
        """So many sequences of one row."""
        return cls(_numbers(max(10, rows.bit_length()), device)[: rows + 1], 1)


@lru_cache(maxsize=64)
def _numbers(bits: int, device: torch.device) -> Tensor:
    return torch.arange(2**bits + 1, dtype=torch.int32, device=device)
