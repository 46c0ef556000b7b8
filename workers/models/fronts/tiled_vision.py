"""mllama's front: an image in tiles, each cut into patches, through local layers and gated global ones
(Llama 3.2 Vision, 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from tandem import kernels
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import StackSpec, TiledVision

# A tile's positions are padded to a multiple of it, and the padding takes part.
_MULTIPLE: Final = 8
_NORM_EPS: Final = 1e-5  # before the first layer and between local and global ones


class TiledVisionModel:
    """Pixels of all tiles, those of padding included, to vectors that the decoder attends to.

    Padding is seen by everything but padding, as in transformers, whose mask is an outer product: rows of
    padding attend to the image's own, and these to all. So the tiles that an image does not have run, too.
    """

    def __init__(self, name: str, stack: StackSpec, place: Placement) -> None:
        assert stack.front is not None
        assert stack.front.vision is not None
        self.name, self.dtype, self.vision = name, place.dtype, stack.front.vision
        vision, width = self.vision, self.vision.d_model
        arrangements, positions = len(vision.arrangements) + 1, vision.tile_positions
        shapes = {
            "patches": (width, vision.channels, vision.patch_size, vision.patch_size),
            "class": (width,),
            "positions": (positions, width),
            "positions.gate": (1,),
            # By the number of the arrangement; 0 is that of no image.
            "tile_positions": (arrangements, vision.tiles * positions * width),
            "first_tiles": (arrangements, vision.tiles * width),
            "first_tiles.gate": (1,),
            "middle_tiles": (arrangements, vision.tiles * width),
            "middle_tiles.gate": (1,),
        }
        self._weights = {part: place.empty(*shape) for part, shape in shapes.items()}
        self.first_norm, self.middle_norm = (
            Norm(f"{name}.{side}_norm", width, "layer", _NORM_EPS, place) for side in ("first", "middle")
        )
        self.layers = [_Layer(f"{name}.layers.{i}", vision, place) for i in range(vision.layers)]
        self.global_layers = [
            _Layer(f"{name}.global_layers.{i}", vision, place, gated=True)
            for i in range(vision.global_layers)
        ]
        self.projector = Replicated(f"{name}.projector", vision.output_width, stack.d_model, place)

    def __call__(self, features: torch.Tensor, own: Sequence[int] = ()) -> torch.Tensor:
        """[items, tiles, pixels + 1], on the device → [items * positions, d_model]: an image's tiles one
        after another, its own before those of padding. own: how many positions its own tiles have.

        Each tile has its pixels, channels first, and after them the number of the image's arrangement.
        """
        vision = self.vision
        pixels = features[..., :-1].to(self.dtype)
        pixels = pixels.unflatten(-1, (vision.channels, vision.tile_size, vision.tile_size))
        arrangements = features[:, 0, -1:].long()
        made = [self._encode(*item) for item in zip(pixels, arrangements, own, strict=True)]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _encode(self, pixels: torch.Tensor, arrangement: torch.Tensor, own: int) -> torch.Tensor:
        """One image's tiles [tiles, channels, size, size] → [positions, d_model]. arrangement: its number,
        int64 [1]."""
        vision, weights = self.vision, self._weights
        tiles, width, positions = vision.tiles, vision.d_model, vision.tile_positions
        x = conv2d(pixels, weights["patches"], stride=vision.patch_size).flatten(2).transpose(1, 2)
        x = x + self._of_tiles("first_tiles", arrangement).unsqueeze(1)
        x = torch.cat([weights["class"].expand(tiles, 1, width), x], dim=1)
        gate = weights["positions.gate"].tanh()
        x = x + (1 - gate) * weights["positions"]
        x = x + gate * weights["tile_positions"][arrangement].view(tiles, positions, width)
        x = self.first_norm(x.flatten(0, 1))
        # All tiles' positions, then the padding of each.
        padding = -positions % _MULTIPLE
        x = pad(x, (0, 0, 0, tiles * padding))
        kept = []
        for number, layer in enumerate(self.layers):
            x = layer(x, own)
            if number in vision.kept_layers:
                kept.append(x[: tiles * positions])
        x = self.middle_norm(x)
        of_tiles = self._of_tiles("middle_tiles", arrangement)
        x = x + torch.cat([of_tiles.repeat_interleave(count, dim=0) for count in (positions, padding)])
        for layer in self.global_layers:
            x = layer(x, own)
        # The layers' outputs alternate, number by number.
        order = sorted(vision.kept_layers)
        states = torch.stack([kept[order.index(number)] for number in vision.kept_layers], dim=-1)
        return self.projector(torch.cat([x[: tiles * positions], states.flatten(1)], dim=1))

    def _of_tiles(self, part: str, arrangement: torch.Tensor) -> torch.Tensor:
        """A gated vector for each tile, [tiles, width]."""
        table = self._weights[part][arrangement].view(self.vision.tiles, self.vision.d_model)
        return table * self._weights[f"{part}.gate"].tanh()

    def slots(self) -> Iterator[WeightSlot]:
        for part, weight in self._weights.items():
            yield WeightSlot(f"{self.name}.{part}", weight, tuple(weight.shape))
        yield from weights_of(
            self.first_norm, self.middle_norm, *self.layers, *self.global_layers, self.projector
        )


class _Layer:
    """Attention and feed-forward, each after a LayerNorm; gated, each times tanh of a weight."""

    def __init__(self, name: str, vision: TiledVision, place: Placement, *, gated: bool = False) -> None:
        self.name, self.vision = name, vision
        width, inner = vision.d_model, vision.heads * vision.head_dim
        self.attention_norm = Norm(f"{name}.attention_norm", width, "layer", vision.norm_eps, place)
        self.q, self.k, self.v = (
            Replicated(f"{name}.{part}", width, inner, place, bias=False) for part in "qkv"
        )
        self.o = Replicated(f"{name}.o", inner, width, place, bias=False)
        self.feed_forward_norm = Norm(f"{name}.feed_forward_norm", width, "layer", vision.norm_eps, place)
        self.up = Replicated(f"{name}.up", width, vision.d_ff, place)
        self.down = Replicated(f"{name}.down", vision.d_ff, width, place)
        self._gates = {
            part: place.empty(1) for part in (("attention_gate", "feed_forward_gate") if gated else ())
        }

    def __call__(self, x: torch.Tensor, own: int) -> torch.Tensor:
        """x [N, width], of which the first `own` rows are the image's and the others padding."""
        x = x + self._gated("attention_gate", self._attention(self.attention_norm(x), own))
        inner = kernels.activate(self.up(self.feed_forward_norm(x)), self.vision.activation)
        return x + self._gated("feed_forward_gate", self.down(inner))

    def _attention(self, x: torch.Tensor, own: int) -> torch.Tensor:
        q, k, v = (
            project(x).view(1, len(x), self.vision.heads, self.vision.head_dim).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        mixed = [scaled_dot_product_attention(q[:, :, :own], k, v)]
        if own < len(x):
            mixed.append(scaled_dot_product_attention(q[:, :, own:], k[:, :, :own], v[:, :, :own]))
        return self.o(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2)[0])

    def _gated(self, part: str, x: torch.Tensor) -> torch.Tensor:
        return x * self._gates[part].tanh() if part in self._gates else x

    def slots(self) -> Iterator[WeightSlot]:
        yield from weights_of(
            self.attention_norm, self.q, self.k, self.v, self.o, self.feed_forward_norm, self.up, self.down
        )
        for part, weight in self._gates.items():
            yield WeightSlot(f"{self.name}.{part}", weight, (1,))
