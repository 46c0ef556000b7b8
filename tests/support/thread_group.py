"""A tensor-parallel group whose ranks are threads of one process: `Group`'s interface without processes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from tandem.workers.distributed import Group

_TIMEOUT_S = 120.0  # limit for a rank that died: the others' waits break instead of hanging


class Meeting:
    """Where the ranks put what they send and find what the others sent."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=_TIMEOUT_S)
        self._table: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._table[rank] = value
        self._barrier.wait()
        seen = list(self._table)
        self._barrier.wait()
        return seen


@dataclass(frozen=True)
class ThreadGroup(Group):
    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    @classmethod
    def ranks(cls, size: int) -> list[ThreadGroup]:
        meeting = Meeting(size)
        return [cls(rank=rank, size=size, meeting=meeting) for rank in range(size)]

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.meeting.exchange(self.rank, x.clone())
        return x.copy_(torch.stack(parts).sum(0))

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        parts = self.meeting.exchange(self.rank, x.clone())
        return torch.cat(parts, dim=-1) if self.rank == 0 else None

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(self.meeting.exchange(self.rank, x.clone())[0])

    def least(self, value: int) -> int:
        return value  # the ranks are made one after another, and share one memory

    def send_integers(self, values: list[int]) -> None:
        self.meeting.exchange(self.rank, list(values))

    def receive_integers(self) -> torch.Tensor:
        return torch.tensor(self.meeting.exchange(self.rank, None)[0], dtype=torch.int64)

    def close(self) -> None:
        pass
