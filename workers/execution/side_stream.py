"""Work beside what the device is at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Work:
    """What was begun on a side stream."""

    _made: torch.Tensor
    _end: torch.cuda.Event | None  # None: it is done

    @property
    def done(self) -> bool:
        return self._end is None or self._end.query()

    def wait(self) -> torch.Tensor:
        """What was made. It may still be under way, but whatever is launched from here on waits for it; the
        host does not."""
        if self._end is not None:
            main = torch.cuda.current_stream(self._made.device)
            main.wait_event(self._end)
            # Its memory is the side stream's, which must not take it back while the main one reads it.
            self._made.record_stream(main)
        return self._made


class SideStream:
    """On CUDA a stream of its own; elsewhere work is done as it comes.

    While the device decodes a step, which is bound by memory, it encodes, which is bound by arithmetic. Made
    when the weights are there.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def begin(self, work: Callable[[], torch.Tensor]) -> Work:
        """`work` makes something of the weights and of nothing else that is on the device."""
        if self._stream is None:
            return Work(work(), None)
        with torch.cuda.stream(self._stream):
            made = work()
        return Work(made, self._stream.record_event())
