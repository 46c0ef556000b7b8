"""Which query rows belong to which sequence."""

from __future__ import annotations

from dataclasses import dataclass

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
