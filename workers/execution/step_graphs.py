"""Decode steps as CUDA graphs, one for each batch size: one launch for a step instead of one for a kernel."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import numpy as np
import torch

from tandem import kernels
from tandem.workers.device import fill
from tandem.workers.execution.packet import Ints

Replay = Callable[[], torch.Tensor | None]
Forward = Callable[[torch.Tensor], torch.Tensor | None]

# A step is launched as a graph where its launches, one by one, would take more than this part of the device's
# time for it: the host needs the other part to plan the next step.
_LAUNCHING: Final = 0.5


class StepGraphs:
    """`forward` of int64 [fields, rows], for any number of rows up to `most`.

    The rows are padded to the next size. Whatever differs from step to step must be in them, or in tensors
    that `forward` reads on the device: values that the host passes are fixed when a graph is captured. On a
    CPU there are no graphs, and `forward` runs on the padded rows.
    """

    def __init__(self, forward: Forward, padding: list[int], most: int, device: torch.device) -> None:
        """To be made where the decode steps run, see `Streams.on`.

        Args:
            padding: the fields of a row whose result nobody reads, and which any number of rows may be.
            most: rows of a step, at most. On a GPU `self.most` may be fewer: that many whose launches take
                too long, as measured here with rows that pad. Those of real sequences take the device
                longer, the host does not notice.
        """
        self._padding = np.array(padding, dtype=np.int64)[:, None]
        self._steps: dict[int, tuple[torch.Tensor, Replay]] = {}
        inputs = {
            size: torch.from_numpy(self._padding.repeat(size, axis=1)).to(device)
            for size in reversed(sizes_up_to(most))  # the largest first: the others reuse its memory
        }
        pool = None
        if device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            inputs = _worthwhile(forward, inputs)
        self.most = max(inputs)
        largest = forward(inputs[self.most])
        # One tensor for all sizes: each graph would keep its own for as long as it lives.
        results = None if largest is None else torch.empty_like(largest)
        with _no_collection():
            for size, rows in inputs.items():
                self._steps[size] = rows, capture(partial(_into, results, forward), rows, pool)

    def __call__(self, rows: Ints) -> torch.Tensor | None:
        """`forward` of these rows; the next call overwrites the result."""
        count = rows.shape[1]
        size = min(size for size in self._steps if size >= count)
        inputs, replay = self._steps[size]
        padded = np.concatenate([rows, self._padding.repeat(size - count, axis=1)], axis=1)
        fill(inputs, torch.from_numpy(padded))
        out = replay()
        return None if out is None else out[:count]


def _into(results: torch.Tensor | None, forward: Forward, rows: torch.Tensor) -> torch.Tensor | None:
    out = forward(rows)
    if results is None or out is None:
        return None
    return results[: len(out)].copy_(out)


def sizes_up_to(most: int) -> list[int]:
    """The powers of two below `most`, and `most`. Padding costs little: its rows see one key, and a product
    with so few rows takes the time of reading the weights."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


def _worthwhile(forward: Forward, inputs: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Without the largest, whose launches the device does not wait for. The smallest stays in any case."""
    sizes = list(inputs)
    while len(sizes) > 1:
        launching_s, running_s = _measured(partial(forward, inputs[sizes[0]]))
        if launching_s > _LAUNCHING * running_s:
            break
        sizes.pop(0)
    return {size: inputs[size] for size in sizes}


def _measured(run: Callable[[], object]) -> tuple[float, float]:
    """How long the host launches, and how long the device is at it, seconds."""
    run()  # kernels are compiled
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started = time.perf_counter()
    begin.record()
    run()
    end.record()
    launching_s = time.perf_counter() - started
    end.synchronize()
    return launching_s, begin.elapsed_time(end) / 1000


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage is collected before and not during it. A graph of an engine that is gone would be destroyed
    while another is captured, which CUDA refuses."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def capture(forward: Forward, rows: torch.Tensor, pool: torch.cuda._POOL_HANDLE | None) -> Replay:
    """A function that runs `forward` on these rows, with what is in them when it is called."""
    if pool is None:
        return lambda: forward(rows)
    forward(rows)  # kernels are compiled and libraries set up, which no capture may contain
    kernels.note_compilation()
    graph = torch.cuda.CUDAGraph()
    # The graph's kernels keep the current stream's priority. Other threads may serve other engines meanwhile.
    stream = torch.cuda.current_stream(rows.device)
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        out = forward(rows)

    def replay() -> torch.Tensor | None:
        graph.replay()
        return out

    return replay
