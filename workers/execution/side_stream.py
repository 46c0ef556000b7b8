"""Work that overlaps with what else the device does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Work:
    """A tensor that is being made on a side stream."""

    _made: torch.Tensor
    _end: torch.cuda.Event | None  # when it is made; None: it is

    @property
    def done(self) -> bool:
        return self._end is None or self._end.query()

    def wait(self) -> torch.Tensor:
        """The tensor. It may still be in the making: what is launched from here on waits for it, the host
        does not."""
        if self._end is not None:
            main = torch.cuda.current_stream(self._made.device)
            main.wait_event(self._end)
            # The memory is the side stream's, which must not reuse it while the main stream reads it.
            self._made.record_stream(main)
        return self._made


class SideStream:
    """On CUDA a second stream; elsewhere work is done at once.

    Encoding, which is bound by arithmetic, overlaps with decode steps, which are bound by memory. To be
    created after the weights are loaded: the new stream waits for what is under way.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def begin(self, work: Callable[[], torch.Tensor]) -> Work:
        """Begins `work`, which reads the weights and no other tensor of the main stream's."""
        if self._stream is None:
            return Work(work(), None)
        with torch.cuda.stream(self._stream):
            made = work()
        return Work(made, self._stream.record_event())
