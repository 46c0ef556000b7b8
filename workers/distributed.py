"""The tensor-parallel group: which rank this process is, and what ranks send each other."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import _set_pg_timeout

_LOOPBACK: Final = "127.0.0.1"
MEETING = timedelta(minutes=5)  # from the first rank at the meeting point to the last
# Ranks wait for rank 0 as long as there is nothing to do. A rank that dies breaks its connections, which the
# others notice at once; a rank that hangs is its supervisor's business.
IDLE = timedelta(days=365)


def open_meeting() -> tuple[str, object]:
    """Where the ranks of a group on this node can meet, for `Group.create`, and the store that holds the
    port, so that nothing else can take it. Rank 0's process keeps the store for as long as it lives."""
    # A store that opens its port itself listens on all interfaces, whatever host it is given.
    listening = socket.create_server((_LOOPBACK, 0))
    port = listening.getsockname()[1]
    store = TCPStore(
        _LOOPBACK, port, is_master=True, wait_for_workers=False, multi_tenant=True,
        master_listen_fd=listening.detach(),
    )  # fmt: skip
    return f"tcp://{_LOOPBACK}:{port}", store


@dataclass(frozen=True)
class Group:
    """Rank 0 decides and samples; the others follow. In a group of one every method is local."""

    rank: int = 0
    size: int = 1
    tensors: dist.ProcessGroup | None = None  # NCCL on GPUs, gloo on CPUs
    control: dist.ProcessGroup | None = None  # gloo: integers between the hosts

    @classmethod
    def create(cls, rank: int, size: int, init_method: str, device: torch.device) -> Group:
        """Meets the other ranks at `init_method` (`tcp://host:port` or `file:///path`).

        Raises torch.distributed.DistError if they do not come within `MEETING`.
        """
        if size == 1:
            return cls()
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=MEETING)
        tensors = dist.group.WORLD
        control = tensors if backend == "gloo" else dist.new_group(backend="gloo", timeout=MEETING)
        _set_pg_timeout(IDLE, control)
        return cls(rank, size, tensors, control)

    def close(self) -> None:
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.tensors)
        return x

    def gather_columns(self, x: torch.Tensor) -> torch.Tensor | None:
        """Rank 0: the ranks' [N, C] concatenated, [N, size * C]. Others: None."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(x.contiguous(), parts, dst=0, group=self.tensors)
        return None if parts is None else torch.cat(parts, dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Copies rank 0's `x` into every rank's, on the device."""
        if self.size > 1:
            dist.broadcast(x, src=0, group=self.tensors)
        return x

    def least(self, value: int) -> int:
        """The smallest of the ranks' values, on every rank."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MIN, group=self.control)
        return int(values)

    def send_integers(self, values: list[int]) -> None:
        """Rank 0 sends them to all others, host to host: `receive_integers` returns them there."""
        if self.size > 1:
            dist.broadcast(torch.tensor([len(values)]), src=0, group=self.control)
            dist.broadcast(torch.tensor(values, dtype=torch.int64), src=0, group=self.control)

    def receive_integers(self) -> torch.Tensor:
        length = torch.empty(1, dtype=torch.int64)
        dist.broadcast(length, src=0, group=self.control)
        values = torch.empty(int(length), dtype=torch.int64)
        dist.broadcast(values, src=0, group=self.control)
        return values
