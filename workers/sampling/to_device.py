"""Numbers from the host to the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Numbers = Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]


def to_device(numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of these numbers, by default of the dtype that `torch.tensor` gives them.

    `torch.tensor(numbers, device=device)` would wait until the device has done all it was told to: the step
    under way would be over before the next is launched.
    """
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)
