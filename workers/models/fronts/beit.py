"""BEiT, whole: a vision transformer whose attention has a bias for each pair of places (Bao et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.nn.functional import interpolate, pad

from tandem.workers.models.fronts.biased import Layer, Weight, pair_distances
from tandem.workers.models.fronts.patches import Patches
from tandem.workers.models.layers import Placement, WeightSlot, weights_of
from tandem.workers.models.spec import BeitSpec, StackSpec

_OF_CLS: Final = 3  # the table's last rows: from CLS, to CLS, and CLS by itself


class Beit:
    """Patches after CLS, through all layers."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        front, width = stack.front, stack.d_model
        assert front is not None
        assert front.beit is not None
        self.name, self.spec = name, front.beit
        channels, *image = front.features
        self.grid = image[0] // self.spec.patch, image[1] // self.spec.patch
        self.patches = Patches(f"{name}.patches", channels, width, (self.spec.patch, self.spec.patch), place)
        self.cls = Weight(f"{name}.cls", place, 1, width)
        self.positions = (
            Weight(f"{name}.positions", place, front.positions, width) if self.spec.positions else None
        )
        self.bias = _Bias(name, self.grid, self.spec.heads, place) if self.spec.bias == "shared" else None
        self.layers = [
            BeitLayer(f"{name}.layers.{layer}", width, self.spec, self.grid, place)
            for layer in range(self.spec.layers)
        ]

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items * (1 + patches), d_model]."""
        patches = self.patches(features)
        x = torch.cat([self.cls.weight.expand(len(patches), 1, -1), patches], dim=1)
        if self.positions is not None:
            x = x + self.positions.weight
        shared = None if self.bias is None else self.bias()
        for layer in self.layers:
            x = layer(x, shared)
        return x.flatten(0, 1)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.patches, self.cls, self.positions, self.bias, *self.layers)


class BeitLayer(Layer):
    """A layer whose outputs may be scaled, each dimension by a weight."""

    def __init__(
        self, name: str, width: int, spec: BeitSpec, grid: tuple[int, int], place: Placement
    ) -> None:
        super().__init__(
            name, width, spec.heads, spec.d_ff, spec.activation, spec.norm_eps, place, key_bias=False
        )
        self.bias = _Bias(name, grid, spec.heads, place) if spec.bias == "layer" else None
        self.scales = [Weight(f"{name}.scales.{n}", place, width) for n in range(2 if spec.scaled else 0)]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [items, positions, width]; bias [heads, positions, positions], which all layers share."""
        if self.bias is not None:
            bias = self.bias() if bias is None else bias + self.bias()
        normed = self.attention_norm(x.flatten(0, 1)).view(x.shape)
        x = x + self._scaled(self.attention(normed, bias), 0)
        fed = self.feed_forward(self.feed_forward_norm(x.flatten(0, 1))).view(x.shape)
        return x + self._scaled(fed, 1)

    def _scaled(self, x: torch.Tensor, which: int) -> torch.Tensor:
        return x * self.scales[which].weight if self.scales else x

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from weights_of(self.bias, *self.scales)


class _Bias(Weight):
    """By distance in the grid of patches, and of CLS."""

    def __init__(self, name: str, grid: tuple[int, int], heads: int, place: Placement) -> None:
        self.sides = tuple(2 * side - 1 for side in grid)
        distances = self.sides[0] * self.sides[1]
        super().__init__(f"{name}.bias", place, distances + _OF_CLS, heads)
        pairs = pad(pair_distances(*grid), (1, 0, 1, 0), value=distances)
        pairs[:, 0] = distances + 1
        pairs[0, 0] = distances + 2
        self._pairs = pairs.to(place.device)

    def __call__(self) -> torch.Tensor:
        """[heads, positions, positions]."""
        height, width = self.sides
        # transformers reads the table as if height were width, and resizes it: for a square nothing changes.
        grid = self.weight[:-_OF_CLS].view(1, width, height, -1).permute(0, 3, 1, 2)
        grid = interpolate(grid, size=(height, width), mode="bilinear")[0].flatten(1)
        return torch.cat([grid, self.weight[-_OF_CLS:].T], dim=1)[:, self._pairs]
