"""A CPU step as one call: the calls of `cpu.ops` that it makes, recorded once."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tandem.kernels.cpu import ops as cpu_ops
from tandem.kernels.values import RowGroups

_LINE: Final = 64  # bytes of cache
_PAGE: Final = 4096  # bytes; addresses a multiple of it apart compete for the same lines of cache


class NotRecordable(Exception):
    """The reason why a step cannot be one call."""


class CPUProgram:
    """`forward` of int64 [fields, rows] → [rows, outputs], for any number of rows up to `most`.

    `forward` is called once, to be recorded, and computes nothing then. Everything that differs from step to
    step must be in its rows, or in tensors that outlive the program; the number of threads is the one at
    recording. Raises NotRecordable at the first operator of PyTorch that is more than a view, since the
    program would lack it, and at the first op of another number of rows than `most`.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor | None], fields: int, most: int) -> None:
        if not cpu_ops.COMPILED:
            raise NotRecordable("the C++ extension is not there")
        self.most = most
        self._rows = torch.zeros(fields, most, dtype=torch.int64)
        self._host: npt.NDArray[np.int64] = self._rows.numpy()
        self._buffers = _Buffers()
        # Made before recording, which refuses PyTorch's operators; kept, since the program reads it.
        self._each = RowGroups.each(most, self._rows.device)
        cpu_ops.record(most)
        try:
            with cpu_ops.allocating(self._buffers.take), _OnlyViews():  # type: ignore[no-untyped-call]
                self._out = forward(self._rows)
        except ValueError as error:
            raise NotRecordable(str(error)) from error
        finally:
            self._program = cpu_ops.recorded()

    def __call__(self, rows: npt.NDArray[np.int64]) -> Tensor | None:
        """`forward` of these rows; the next call overwrites the result."""
        count = rows.shape[1]
        self._host[:, :count] = rows
        cpu_ops.run(self._program, count)
        return None if self._out is None else self._out[:count]


class _OnlyViews(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            raise NotRecordable(f"{func} is PyTorch's")
        return func(*args, **(kwargs or {}))


class _Buffers:
    """A program's memory. A result reuses the buffer of an earlier one whose tensors are gone."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)
        self._offset = 0  # of the next buffer in its page; large buffers would all have the same

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = max(1, int(np.prod(shape))) * dtype.itemsize
        free = self._free[size]
        if free:
            buffer = free.pop()
        else:
            memory = np.zeros(size + _PAGE, dtype=np.uint8)
            start = (self._offset - memory.ctypes.data) % _PAGE
            self._offset = (self._offset + 11 * _LINE) % _PAGE
            buffer = memory[start : start + size]
        lent = buffer[:]  # lives as long as a tensor looks at it
        weakref.finalize(lent, free.append, buffer).atexit = False
        made = torch.from_numpy(lent).view(dtype)
        return made[: int(np.prod(shape))].view(shape)
