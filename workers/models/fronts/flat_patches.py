"""Pix2Struct's front (Lee et al., 2023): an image's patches, as many as its shape asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tandem.workers.models.fronts.biased import Weight
from tandem.workers.models.layers import Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import StackSpec


class FlatPatches:
    """Each patch projected, with a vector for its row and one for its column, which come as two numbers
    before its pixel values; both are 0 where there is no patch."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        assert stack.front.flat_patches is not None
        width, values = stack.d_model, stack.front.features[1] - 2
        self.patches = Replicated(f"{name}.patches", values, width, place)
        self.rows = Weight(f"{name}.rows", place, stack.front.flat_patches.rows, width)
        self.columns = Weight(f"{name}.columns", place, stack.front.flat_patches.rows, width)
        self.dtype = place.dtype

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, patches, 2 + values], on the device → [items * patches, d_model]."""
        flat = features.flatten(0, 1)
        rows, columns = flat[:, :2].long().unbind(1)
        patches = self.patches(flat[:, 2:].contiguous().to(self.dtype))
        return patches + self.rows.weight[rows] + self.columns.weight[columns]

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.patches, self.rows, self.columns)
