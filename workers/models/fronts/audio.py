"""Whisper's front: two convolutions over the frames of a log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from tandem import kernels
from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import StackSpec

_WIDTH: Final = 3  # frames that one output sees


class AudioConvolutions:
    """``gelu(conv2(gelu(conv1(x))))``, which halves the frames (Radford et al., 2022)."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        mels, _ = stack.front.features
        self.dtype = place.dtype
        self.convolutions = (
            _Convolution(f"{name}.conv1", mels, stack.d_model, 1, place),
            _Convolution(f"{name}.conv2", stack.d_model, stack.d_model, 2, place),
        )

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """[items, mels, frames], on the device → [items * frames / 2, d_model]."""
        x = features.to(self.dtype).transpose(1, 2)
        for convolution in self.convolutions:
            x = convolution(x)
        return x.flatten(0, 1)

    def slots(self) -> Iterator[WeightSlot]:
        for convolution in self.convolutions:
            yield from convolution.slots()


class _Convolution:
    """``gelu(conv(x))`` as a projection of the frames that each output sees, side by side, so that it is
    computed as all projections are: packed, and in 8-bit integers where they are."""

    def __init__(self, name: str, inputs: int, outputs: int, stride: int, place: Placement) -> None:
        self.name, self.inputs, self.outputs, self.stride = name, inputs, outputs, stride
        self.linear = place.linear(_WIDTH * inputs, outputs, bias=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[items, frames, inputs] → [items, frames / stride, outputs]."""
        items, frames, inputs = x.shape
        after = _WIDTH - 1  # frames after an item's last, within which no output begins that is its own
        padded = x.new_empty(items * (frames + after) + after, inputs)
        own = padded[:-after].view(items, frames + after, inputs)
        own[:, 1:-1] = x
        own[:, :: frames + 1] = 0
        padded[-after:] = 0
        # Outputs that begin in one item and end in the next are computed, and left out: so nothing is copied.
        outputs = items * (frames + after) // self.stride
        seen = padded.as_strided((outputs, _WIDTH * inputs), (self.stride * inputs, 1))
        x = kernels.activate(self.linear(seen), "gelu")
        return x.view(items, -1, x.shape[1])[:, : frames // self.stride]

    def slots(self) -> Iterator[WeightSlot]:
        # The checkpoint has [outputs, inputs, frames].
        into = self.linear.weight.view(self.outputs, _WIDTH, self.inputs).transpose(1, 2)
        yield WeightSlot(self.name, into, tuple(into.shape))
        if self.linear.bias is not None:
            yield WeightSlot(f"{self.name}.bias", self.linear.bias, (self.outputs,))
