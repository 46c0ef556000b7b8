"""Decode steps as CUDA graphs, one for each batch size: one launch for a step instead of one for a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from tandem.workers.execution.packet import Ints

Replay = Callable[[], torch.Tensor | None]
Forward = Callable[[torch.Tensor], torch.Tensor | None]


class StepGraphs:
    """`forward` of int64 [fields, rows], for any number of rows up to `most`.

    The rows are padded to the next size. Whatever differs from step to step must be in them, or in tensors
    that `forward` reads on the device: values that the host passes are fixed when a graph is captured. On a
    CPU there are no graphs, and `forward` runs on the padded rows.
    """

    def __init__(self, forward: Forward, padding: list[int], most: int, device: torch.device) -> None:
        """padding: the fields of a row whose result nobody reads, and which any number of rows may be."""
        self._padding = np.array(padding, dtype=np.int64)[:, None]
        self._steps: dict[int, tuple[torch.Tensor, Replay]] = {}
        pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        inputs = {
            size: torch.from_numpy(self._padding.repeat(size, axis=1)).to(device)
            for size in reversed(sizes_up_to(most))  # the largest first: the others reuse its memory
        }
        largest = forward(inputs[most])
        # One tensor for all sizes: each graph would keep its own for as long as it lives.
        results = None if largest is None else torch.empty_like(largest)
        for size, rows in inputs.items():
            self._steps[size] = rows, capture(partial(_into, results, forward), rows, pool)

    def __call__(self, rows: Ints) -> torch.Tensor | None:
        """`forward` of these rows; the next call overwrites the result."""
        count = rows.shape[1]
        size = min(size for size in self._steps if size >= count)
        inputs, replay = self._steps[size]
        padded = np.concatenate([rows, self._padding.repeat(size - count, axis=1)], axis=1)
        inputs.copy_(torch.from_numpy(padded), non_blocking=True)
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


def capture(forward: Forward, rows: torch.Tensor, pool: torch.cuda._POOL_HANDLE | None) -> Replay:
    """A function that runs `forward` on these rows, with what is in them when it is called."""
    if pool is None:
        return lambda: forward(rows)
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        forward(rows)  # kernels are compiled and libraries set up, which no capture may contain
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may serve other engines meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        out = forward(rows)

    def replay() -> torch.Tensor | None:
        graph.replay()
        return out

    return replay
