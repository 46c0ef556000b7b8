"""Florence-2's front: DaViT, and the projector to the encoder's width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from tandem.workers.models.fronts.davit import Davit
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import StackSpec

_EPS: Final = 1e-5
# Images at once; the first stage's activations take a hundred times their pixels.
_CPU_AT_ONCE: Final = 1
_AT_ONCE: Final = 4


class FlorenceVision:
    """An image's positions, each with a vector for its row, its column and its time, which is the first, and
    before them their mean; projected and normalized."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        assert stack.front.davit is not None
        spec = stack.front.davit
        width = spec.stages[-1].width
        self.name, self.grid = name, spec.grid
        self.tower = Davit(f"{name}.vision_tower", spec, stack.front.features[0], place)
        # The first half of a position's vector is its column's.
        self._columns = place.empty(spec.max_side, width - width // 2)
        self._rows = place.empty(spec.max_side, width // 2)
        self._times = place.empty(spec.max_frames, width).zero_()
        self._times[:1, 1::2] = 1  # sines and cosines of time 0, where the checkpoint does not say
        self.projection = Replicated(f"{name}.image_projection", width, stack.d_model, place, bias=False)
        self.norm = Norm(f"{name}.image_proj_norm", stack.d_model, "layer", _EPS, place)

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items * (positions + 1), d_model]."""
        at_once = _CPU_AT_ONCE if features.is_cpu else _AT_ONCE
        return torch.cat([self._vectors(some) for some in features.split(at_once)])

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = self.grid
        columns = self._columns[:width].expand(height, -1, -1)
        rows = self._rows[:height].unsqueeze(1).expand(-1, width, -1)
        places = torch.cat([columns, rows], dim=2).flatten(0, 1)
        x = self.tower(pixels)
        x = x.view(len(pixels), height * width, -1) + places + self._times[0]
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        return self.norm(self.projection(x.flatten(0, 1)))

    def slots(self) -> Iterator[WeightSlot]:
        yield from weights_of(self.tower, self.projection, self.norm)
        for name, table in (("columns", self._columns), ("rows", self._rows)):
            yield WeightSlot(f"{self.name}.{name}", table, tuple(table.shape))
        yield WeightSlot(f"{self.name}.times", self._times, tuple(self._times.shape), filled=True)
