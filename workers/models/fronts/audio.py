"""Whisper's front: two convolutions over the frames of a log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch.nn.functional import conv1d, gelu

from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import StackSpec

_WIDTH: Final = 3  # frames that one output sees
_STRIDES: Final = (1, 2)  # frames from one output to the next, of each convolution


class AudioConvolutions:
    """``gelu(conv2(gelu(conv1(x))))``, which halves the frames (Radford et al., 2022)."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        mels, _ = stack.front.features
        self.name, self.dtype = name, place.dtype
        widths = (mels, stack.d_model), (stack.d_model, stack.d_model)
        self._convolutions = [
            (place.empty(outputs, inputs, _WIDTH), place.empty(outputs)) for inputs, outputs in widths
        ]

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """[items, mels, frames], on the device → [items * frames / 2, d_model]."""
        x = features.to(self.dtype)
        for (weight, bias), stride in zip(self._convolutions, _STRIDES, strict=True):
            x = gelu(conv1d(x, weight, bias, stride=stride, padding=1))
        return x.transpose(1, 2).flatten(0, 1)

    def slots(self) -> Iterator[WeightSlot]:
        for number, (weight, bias) in enumerate(self._convolutions, start=1):
            yield WeightSlot(f"{self.name}.conv{number}", weight, tuple(weight.shape))
            yield WeightSlot(f"{self.name}.conv{number}.bias", bias, tuple(bias.shape))
