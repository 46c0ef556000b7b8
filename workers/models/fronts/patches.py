"""The front of ViT and DeiT: an image's patches, each projected, after vectors that are the same for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import conv2d

from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import StackSpec


class Patches:
    """A convolution whose stride is its width (Dosovitskiy et al., 2020)."""

    def __init__(self, name: str, channels: int, width: int, size: tuple[int, int], place: Placement) -> None:
        """size: height and width of a patch, in pixels."""
        self.name, self.size, self.dtype = name, size, place.dtype
        self.weight, self.bias = place.empty(width, channels, *size), place.empty(width)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items, patches, width]; by rows, and what is too
        small for a patch at the right and at the bottom is left out."""
        made = conv2d(pixels.to(self.dtype), self.weight, self.bias, stride=self.size)
        return made.flatten(2).transpose(1, 2)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.weight, tuple(self.weight.shape))
        yield WeightSlot(f"{self.name}.bias", self.bias, tuple(self.bias.shape))


class ImagePatches:
    """Vectors of its own, such as CLS, and an image's patches."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        front = stack.front
        assert front is not None
        assert front.patches is not None
        self.name = name
        self.patches = Patches(f"{name}.patches", front.features[0], stack.d_model, front.patches.size, place)
        self._leading = [place.empty(1, stack.d_model) for _ in range(front.patches.leading)]

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items * (leading + patches), d_model]."""
        patches = self.patches(features)
        leading = [vector.expand(len(patches), 1, -1) for vector in self._leading]
        return torch.cat([*leading, patches], dim=1).flatten(0, 1)

    def slots(self) -> Iterator[WeightSlot]:
        yield from self.patches.slots()
        for number, vector in enumerate(self._leading):
            yield WeightSlot(f"{self.name}.leading.{number}", vector, tuple(vector.shape))
