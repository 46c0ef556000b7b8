"""Work beside what the device is at."""

from __future__ import annotations

from collections.abc import Callable

import torch


class SideStream:
    """On CUDA a stream of its own; elsewhere work is done as it comes.

    While the device decodes a step, the host launches the next one: its encoder inputs then are computed
    beside that step, which is bound by memory as they are by arithmetic. Made when the weights are there.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def __call__(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `work` makes of the weights and of nothing else that is on the device. It may still be under
        way, but whatever is launched from here on waits for it."""
        if self._stream is None:
            return work()
        main = torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(self._stream):
            made = work()
        main.wait_stream(self._stream)
        # Its memory is the side stream's, which must not take it back while the main one reads it.
        made.record_stream(main)
        return made
