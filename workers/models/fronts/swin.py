"""Swin, whole: attention within windows, which are shifted in every other layer, in stages of ever fewer and
wider positions (Liu et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.nn.functional import pad

from tandem.workers.models.fronts.biased import Layer, Weight, pair_distances
from tandem.workers.models.fronts.patches import Patches
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import StackSpec, SwinSpec

_EPS: Final = 1e-5  # of the norms outside layers
_UNSEEN: Final = -100.0  # on the scores of positions that a shift has put in one window


class Swin:
    """All stages."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        front = stack.front
        assert front is not None
        assert front.swin is not None
        spec = front.swin
        self.patch, self.grid = spec.patch, spec.grids[0]
        self.patches = Patches(f"{name}.patches", front.features[0], spec.width, spec.patch, place)
        self.norm = Norm(f"{name}.norm", spec.width, "layer", _EPS, place)
        last = len(spec.depths) - 1
        self.stages: list[tuple[list[SwinLayer], Merging | None]] = []
        for number, depth in enumerate(spec.depths):
            stage = f"{name}.stages.{number}"
            layers = [
                SwinLayer(f"{stage}.layers.{layer}", spec, number, place, shifted=layer % 2 == 1)
                for layer in range(depth)
            ]
            merging = None if number == last else Merging(f"{stage}.merging", spec.width << number, place)
            self.stages.append((layers, merging))

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items * last stage's positions, d_model]."""
        (height, width), (tall, wide) = self.grid, self.patch
        below, beside = height * tall - features.shape[2], width * wide - features.shape[3]
        x = self.patches(pad(features, (0, beside, 0, below)))
        x = self.norm(x.flatten(0, 1)).view(len(features), height, width, -1)
        for layers, merging in self.stages:
            for layer in layers:
                x = layer(x)
            if merging is not None:
                x = merging(x)
        return x.flatten(0, 2)

    def slots(self) -> Iterator[WeightSlot]:
        yield from weights_of(self.patches, self.norm)
        for layers, merging in self.stages:
            yield from weights_of(*layers, merging)


class SwinLayer(Layer):
    """A layer of one stage."""

    def __init__(self, name: str, spec: SwinSpec, stage: int, place: Placement, *, shifted: bool) -> None:
        width, heads = spec.width << stage, spec.heads[stage]
        inner = int(spec.mlp_ratio * width)
        super().__init__(name, width, heads, inner, spec.activation, spec.norm_eps, place, key_bias=True)
        self.window = spec.window
        self.bias = Weight(f"{name}.bias", place, (2 * self.window - 1) ** 2, heads)
        self._pairs = pair_distances(self.window, self.window).to(place.device)
        # A grid of one window in either direction is not shifted.
        self.shift = self.window // 2 if shifted and min(spec.grids[stage]) > self.window else 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[items, height, width, channels], as are the results."""
        normed = self.attention_norm(x.flatten(0, 2)).view(x.shape)
        x = x + self._mixed(normed)
        return x + self.feed_forward(self.feed_forward_norm(x.flatten(0, 2))).view(x.shape)

    def _mixed(self, x: torch.Tensor) -> torch.Tensor:
        items, height, width, channels = x.shape
        side, shift = self.window, self.shift
        x = pad(x, (0, 0, 0, -width % side, 0, -height % side))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.view(items, rows, side, columns, side, channels).transpose(2, 3)
        mixed = torch.empty_like(windows, memory_format=torch.contiguous_format)
        for some, bias in self._biases(rows, columns):
            part = windows[:, *some]
            groups = part.reshape(-1, side * side, channels)
            mixed[:, *some] = self.attention(groups, bias).view(part.shape)
        x = mixed.transpose(2, 3).reshape(x.shape)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]

    def _biases(self, rows: int, columns: int) -> Iterator[tuple[tuple[slice, slice], torch.Tensor]]:
        """Which of the windows have which bias, [heads, positions, positions]. In the last row and column, a
        shift has put together what is at opposite ends."""
        bias = self.bias.weight[self._pairs].permute(2, 0, 1)
        if not self.shift:
            yield (slice(None), slice(None)), bias
            return
        places = torch.arange(self.window, device=bias.device)
        late = places >= self.window - self.shift
        whole = torch.zeros_like(late)
        for some_rows, down in ((slice(0, rows - 1), whole), (slice(rows - 1, rows), late)):
            for some_columns, right in ((slice(0, columns - 1), whole), (slice(columns - 1, columns), late)):
                part = (2 * down[:, None] + right.long()).flatten()
                apart = part[:, None] != part
                yield (some_rows, some_columns), bias + apart * _UNSEEN

    def slots(self) -> Iterator[WeightSlot]:
        yield from super().slots()
        yield from self.bias.slots()


class Merging:
    """Four neighbours become one position of twice the width."""

    def __init__(self, name: str, width: int, place: Placement) -> None:
        self.norm = Norm(f"{name}.norm", 4 * width, "layer", _EPS, place)
        self.reduction = Replicated(f"{name}.reduction", 4 * width, 2 * width, place, bias=False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[items, height, width, channels] → [items, height / 2, width / 2, 2 * channels], rounded up."""
        x = pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, row::2, column::2] for column in range(2) for row in range(2)], dim=-1)
        return self.reduction(self.norm(x.flatten(0, 2))).view(*x.shape[:3], -1)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.norm, self.reduction)
