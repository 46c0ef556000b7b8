"""How long work takes on a device, and what the device can do at all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Work = Callable[[], object]

FLUSH_BYTES = 256 << 20  # more than any cache holds
LAUNCHES = 20  # of a kernel in a graph: launching the graph takes as long as a small kernel
BUSY = 100  # how often FLUSH_BYTES are written while the host launches: milliseconds


class Clock:
    """Times work in seconds. On CUDA it is captured in a graph, many times over, so that launching it from
    Python does not count, nor the graph's launch; elsewhere it is called."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cold = torch.empty(FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.int8, device=device)

    def times(self, works: dict[str, Sequence[Work]], rounds: int) -> dict[str, list[float]]:
        """The seconds that each work takes in each round, in turns. A work is given several times over, on
        buffers of its own each time, which take turns: large ones are cold, then."""
        ready = {name: self._prepared(copies) for name, copies in works.items()}
        found: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, once in ready.items():
                found[name].append(once())
        return found

    def time(self, work: Sequence[Work], rounds: int) -> list[float]:
        return self.times({"": work}, rounds)[""]

    def copies(self, size: float) -> int:
        """How many buffers of this size, in bytes, a work is to be given for them to be cold."""
        if self.device.type != "cuda":
            return 1
        return min(LAUNCHES, 1 + math.ceil(FLUSH_BYTES / max(size, 1)))

    def launched(self, work: Work, rounds: int) -> list[tuple[float, float]]:
        """The host's seconds until it has launched `work`, and the device's, for what no graph can hold. The
        device is kept busy until all is launched: a host that waits for it takes longer than that."""
        return [self._launched(work) for _ in range(rounds)]

    def _launched(self, work: Work) -> tuple[float, float]:
        if self.device.type != "cuda":
            seconds = wall(work)
            return seconds, seconds
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(BUSY):
            self._cold.zero_()
        start.record()
        began = time.perf_counter()
        work()
        host = time.perf_counter() - began
        end.record()
        end.synchronize()
        return host, start.elapsed_time(end) / 1e3

    def _prepared(self, works: Sequence[Work]) -> Callable[[], float]:
        for work in works:
            work()  # compiles kernels
        if self.device.type != "cuda":
            return lambda: wall(works[0])
        torch.cuda.synchronize()
        graph, launches = torch.cuda.CUDAGraph(), max(LAUNCHES, len(works))
        stream = torch.cuda.Stream(self.device, priority=-1)  # an engine's
        gc.collect()
        gc.disable()  # a graph that is garbage cannot be destroyed meanwhile
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for number in range(launches):
                    works[number % len(works)]()
        finally:
            gc.enable()

        def once() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # Meanwhile the host launches what follows. Written lines would have to be written back first.
            self._cold.max()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3 / launches

        once()
        return once


def wall(work: Work) -> float:
    """Seconds until `work` is done, its launch included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Roofline:
    """A device's measured rates."""

    bytes_per_s: float  # bytes/s of a large copy, reads and writes counted
    flops_per_s: float  # FLOP/s of a large matrix product in bfloat16

    @classmethod
    def measured(cls, clock: Clock, *, large: bool) -> Roofline:
        count, width = (1 << 30, 8192) if large else (1 << 20, 256)
        source = torch.zeros(count, dtype=torch.int8, device=clock.device)
        target = torch.empty_like(source)
        one, other = torch.randn(2, width, width, dtype=torch.bfloat16, device=clock.device)
        found = clock.times({"copy": [lambda: target.copy_(source)], "product": [lambda: one @ other]}, 10)
        return cls(2 * count / median(found["copy"]), 2 * width**3 / median(found["product"]))

    def bound_s(self, size: float, flops: float) -> float:
        """The least time for so many bytes and FLOPs."""
        return max(size / self.bytes_per_s, flops / self.flops_per_s)
