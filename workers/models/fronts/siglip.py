"""T5Gemma 2's front: SigLIP (Zhai et al., 2023), whose positions are averaged in squares, and the projector
to the encoder's width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.nn.functional import avg_pool2d

from tandem.workers.models.fronts.biased import Layer, Weight
from tandem.workers.models.fronts.patches import Patches
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import StackSpec

_AT_ONCE: Final = 4  # images: a layer's activations take tens of MB for each


class Siglip:
    """Patches, each with a vector for its place, through all layers; the mean of every square, projected."""

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        assert stack.front.siglip is not None
        spec, (channels, side, _) = stack.front.siglip, stack.front.features
        width, self.pool, self.grid = spec.width, spec.pool, side // spec.patch
        self.patches = Patches(f"{name}.patches", channels, width, (spec.patch, spec.patch), place)
        self.positions = Weight(f"{name}.positions", place, self.grid**2, width)
        self.layers = [
            SiglipLayer(
                f"{name}.layers.{layer}", width, spec.heads, spec.d_ff, spec.activation, spec.norm_eps, place,
                key_bias=True,
            )
            for layer in range(spec.layers)
        ]  # fmt: skip
        self.norm = Norm(f"{name}.norm", width, "layer", spec.norm_eps, place)
        self.projection_norm = Norm(f"{name}.projection.norm", width, "rms_plus_one", spec.norm_eps, place)
        self.projection = Replicated(f"{name}.projection", width, stack.d_model, place, bias=False)

    def __call__(self, features: torch.Tensor, _own: Sequence[int] = ()) -> torch.Tensor:
        """[items, channels, height, width], on the device → [items * positions, d_model]."""
        return torch.cat([self._vectors(some) for some in features.split(_AT_ONCE)])

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels) + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x.flatten(0, 1)).view(len(pixels), self.grid, self.grid, -1)
        x = avg_pool2d(x.permute(0, 3, 1, 2), self.pool).flatten(2).transpose(1, 2)
        return self.projection(self.projection_norm(x.flatten(0, 1)))

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(
            self.patches, self.positions, *self.layers, self.norm, self.projection_norm, self.projection
        )


class SiglipLayer(Layer):
    """A layer without a bias on its scores."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [items, positions, width], as are the results."""
        x = x + self.attention(self.attention_norm(x.flatten(0, 1)).view(x.shape), None)
        return x + self.feed_forward(self.feed_forward_norm(x.flatten(0, 1))).view(x.shape)
