"""Where a worker's work runs, and how numbers come there and back without either side waiting.

On a GPU a worker has three streams: its own, of high priority, for decode steps and all that they need; one
for encoding, which goes on beside steps; one for large copies. On a CPU work is done as it comes, and the
host's numbers are the device's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Final

import torch

# Kernels of a stream of this priority come before those that wait in streams of 0, the lowest. Products of
# an encoder fill a multiprocessor: without it each kernel of a decode step would wait for one of them.
_FIRST: Final = -1

# Pinned buffers for a step's numbers. A step of a large admission sends some dozens of vectors, and two steps
# are in flight: the buffers of one are free again when the step after the next one is launched.
_SLOTS, _SLOT_BYTES = 256, 2**16
# Those for features and hidden states, whose copies wait for nothing but one another.
_LARGE_SLOTS, _LARGE_SLOT_BYTES = 8, 2**22


class Work:
    """A tensor that is being made on another stream."""

    def __init__(self, made: torch.Tensor, end: torch.cuda.Event | None = None) -> None:
        """end: when it is made; None: it is."""
        self._made, self._end = made, end

    @property
    def done(self) -> bool:
        return self._end is None or self._end.query()

    def wait(self) -> torch.Tensor:
        """The tensor. It may still be in the making: what is launched from here on waits for it, the host
        does not."""
        if self._end is not None:
            reader = torch.cuda.current_stream(self._made.device)
            reader.wait_event(self._end)
            # The memory is the other stream's, which must not reuse it while this one reads it.
            self._made.record_stream(reader)
        return self._made


class Streams:
    """A CPU's, which has none. `Streams.of` makes a worker's own."""

    _here: AbstractContextManager[object] = nullcontext()

    @staticmethod
    def of(device: torch.device) -> Streams:
        return GPUStreams(device) if device.type == "cuda" else Streams()

    def on(self) -> AbstractContextManager[object]:
        """Makes the worker's device and stream the thread's current ones. Whoever launches anything does it
        in here: both belong to the thread, and kernels go to the current device, wherever their tensors are.
        """
        return self._here

    def beside(self, work: Callable[[], torch.Tensor]) -> Work:
        """Begins encoding, which is bound by arithmetic, alongside steps, which are bound by memory. `work`
        reads the weights and no other tensor of the steps'."""
        return Work(work())

    def bring(self, values: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Work:
        """Begins to copy a large tensor to the device, whatever else the device does."""
        return Work(values.to(device, dtype, non_blocking=True))


class GPUStreams(Streams):
    """To be made before the weights are loaded, in the thread of the worker's first work."""

    def __init__(self, device: torch.device) -> None:
        self._main = torch.cuda.Stream(device, priority=_FIRST)
        self._encoding, self._copies = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._large = _Ring(device, _LARGE_SLOTS, _LARGE_SLOT_BYTES)
        self._waits = True  # nothing was encoded yet

    def on(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._main)

    def beside(self, work: Callable[[], torch.Tensor]) -> Work:
        if self._waits:  # for the weights
            self._encoding.wait_stream(self._main)
            self._waits = False
        with torch.cuda.stream(self._encoding):
            made = work()
        return Work(made, self._encoding.record_event())

    def bring(self, values: torch.Tensor, device: torch.device, dtype: torch.dtype) -> Work:
        if values.device.type == "cuda":
            return Work(values.to(device, dtype))
        with torch.cuda.stream(self._copies):
            made = torch.empty(values.shape, dtype=values.dtype, device=device)
            self._large.copy(values, made)
            made = made.to(dtype)
        return Work(made, self._copies.record_event())


class _Ring:
    """Pinned buffers, used in turn: the device reads them while the host goes on. A copy from other memory
    makes the host wait for all that its stream has queued, once it is larger than some 64 KiB."""

    def __init__(self, device: torch.device, slots: int, slot_bytes: int) -> None:
        self._device, self._slot_bytes = device, slot_bytes
        with torch.inference_mode(mode=False):  # written in any mode
            self._buffers = torch.empty(slots, slot_bytes, dtype=torch.uint8, pin_memory=True).unbind()
        self._copied = [torch.cuda.Event() for _ in range(slots)]  # when a buffer may be written again
        self._next = 0
        self._lock = threading.Lock()  # engines of several threads may share it

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        """From the host to the device, in the current stream, converted to `into`'s dtype before. `into` is
        contiguous and as large; `source` may be changed afterwards."""
        values, target = source.reshape(-1), into.view(-1)
        piece = self._slot_bytes // into.itemsize
        for start in range(0, len(values), piece):
            part = values[start : start + piece]
            with self._lock:
                number, self._next = self._next, (self._next + 1) % len(self._buffers)
                self._copied[number].synchronize()
                buffer = self._buffers[number].view(into.dtype)[: len(part)]
                buffer.copy_(part)
                target[start : start + piece].copy_(buffer, non_blocking=True)
                self._copied[number].record(torch.cuda.current_stream(self._device))


@cache
def _ring(device: torch.device) -> _Ring:
    return _Ring(device, _SLOTS, _SLOT_BYTES)


def send(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The host's numbers on the device, of the same dtype and contiguous. Nothing waits."""
    if device.type == "cpu":
        return numbers
    made = torch.empty(numbers.shape, dtype=numbers.dtype, device=device)
    _ring(device).copy(numbers, made)
    return made


def send_ids(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`send` of int64 numbers below 2^31, which travel as half as many bytes."""
    if device.type == "cpu":
        return numbers
    made = torch.empty(numbers.shape, dtype=torch.int32, device=device)
    _ring(device).copy(numbers, made)
    return made.long()


def fill(into: torch.Tensor, numbers: torch.Tensor) -> None:
    """Puts the host's numbers into a tensor of the device, contiguous and of their shape. Nothing waits."""
    if into.device.type == "cpu":
        into.copy_(numbers)
    else:
        _ring(into.device).copy(numbers, into)


class HostCopy:
    """A copy to the host, into pinned memory, of tensors that may still be computed. It starts at once and
    waits for nothing that is launched later."""

    def __init__(self, *parts: torch.Tensor) -> None:
        # What is copied without blocking comes into pinned memory.
        self._parts = [part.to("cpu", non_blocking=True) for part in parts]
        self._copied: torch.cuda.Event | None = None
        if parts[0].is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(parts[0].device))

    def wait(self) -> list[torch.Tensor]:
        if self._copied is not None:
            self._copied.synchronize()
        return self._parts
