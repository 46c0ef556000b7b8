"""Copies numbers from the host to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tandem.workers.device import send

Numbers = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]


def to_device(numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of these numbers, by default of the dtype that `torch.tensor` gives them.

    `torch.tensor(numbers, device=device)` would wait for all that the device has queued: the running step
    would be over before the next is launched.
    """
    return send(torch.tensor(numbers, dtype=dtype), device)
