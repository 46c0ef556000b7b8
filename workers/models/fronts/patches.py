"""The front of ViT and DeiT: an image's patches, each projected, after vectors that are the same for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tandem.workers.models.layers import Placement, WeightSlot
from tandem.workers.models.spec import StackSpec


class Patches:
    """A convolution whose stride is its width (Dosovitskiy et al., 2020): a projection of each patch."""

    def __init__(self, name: str, channels: int, width: int, size: tuple[int, int], place: Placement) -> None:
        """size: height and width of a patch, in pixels."""
        self.name, self.size, self.dtype = name, size, place.dtype
        self.shape = width, channels, *size  # the weight's
        self.linear = place.linear(channels * size[0] * size[1], width, bias=True)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items, patches, width]; by rows, and what is too
        small for a patch at the right and at the bottom is left out."""
        (height, width), (items, channels) = self.size, pixels.shape[:2]
        rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
        whole = pixels[:, :, : rows * height, : columns * width].to(self.dtype)
        patches = whole.reshape(items, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return self.linear(patches.reshape(items * rows * columns, -1)).view(items, rows * columns, -1)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.linear.weight.view(self.shape), self.shape)
        assert self.linear.bias is not None
        yield WeightSlot(f"{self.name}.bias", self.linear.bias, self.shape[:1])


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
