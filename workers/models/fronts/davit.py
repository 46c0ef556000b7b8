"""DaViT, the vision tower of Florence-2: attention within windows and attention between channels, in turns
(Ding et al., 2022).

Positions of an image are rows, one after another: [items * height * width, channels]. Convolutions read the
same memory as images of channels last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention

from tandem import kernels
from tandem.workers.models.fronts.pieces import pieces
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import DavitSpec, DavitStage

_EPS: Final = 1e-5  # of every norm
Shape = tuple[int, int, int]  # items, height and width, in positions


class Davit:
    """Images to the positions of the last stage."""

    def __init__(self, name: str, spec: DavitSpec, channels: int, place: Placement) -> None:
        self.dtype = place.dtype
        self.stages: list[tuple[Patches, list[Block]]] = []
        for number, stage in enumerate(spec.stages):
            patches = Patches(f"{name}.convs.{number}", channels, stage, place)
            names = [f"{name}.blocks.{number}.{block}" for block in range(stage.blocks)]
            channels = stage.width
            kinds = WindowAttention, ChannelAttention
            blocks = [
                Block(f"{block}.{kind.name}_block", kind, stage, spec, place)
                for block in names
                for kind in kinds
            ]
            self.stages.append((patches, blocks))

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """[items, channels, height, width] → [items * positions, width of the last stage]."""
        items, channels, height, width = pixels.shape
        x = pixels.to(self.dtype).permute(0, 2, 3, 1).reshape(-1, channels)
        shape = items, height, width
        for patches, blocks in self.stages:
            x, shape = patches(x, shape)
            for block in blocks:
                x = block(x, shape)
        return x

    def slots(self) -> Iterator[WeightSlot]:
        for patches, blocks in self.stages:
            yield from weights_of(patches, *blocks)


class Convolution:
    """A convolution of positions; `groups` of channels are convolved each by itself."""

    def __init__(
        self,
        name: str,
        inputs: int,
        outputs: int,
        place: Placement,
        *,
        side: int,
        stride: int = 1,
        padding: int = 1,
        groups: int = 1,
    ) -> None:
        self.name, self.stride, self.padding, self.groups = name, stride, padding, groups
        self.weight = place.empty(outputs, inputs // groups, side, side)
        self.bias = place.empty(outputs)

    def __call__(self, x: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, Shape]:
        image = x.view(*shape, -1).permute(0, 3, 1, 2)
        made = conv2d(image, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        items, channels, height, width = made.shape
        return made.permute(0, 2, 3, 1).reshape(-1, channels), (items, height, width)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.weight, tuple(self.weight.shape))
        yield WeightSlot(f"{self.name}.bias", self.bias, tuple(self.bias.shape))


class Patches:
    """A stage's convolution, and the norm before or after it."""

    def __init__(self, name: str, inputs: int, stage: DavitStage, place: Placement) -> None:
        self.norm_first = stage.norm_first
        self.convolution = Convolution(
            f"{name}.conv", inputs, stage.width, place, side=stage.patch, stride=stage.stride,
            padding=stage.padding,
        )  # fmt: skip
        normed = inputs if stage.norm_first else stage.width
        self.norm = Norm(f"{name}.norm", normed, "layer", _EPS, place)

    def __call__(self, x: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, Shape]:
        if self.norm_first:
            return self.convolution(self.norm(x), shape)
        x, shape = self.convolution(x, shape)
        return self.norm(x), shape

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.convolution, self.norm)


class WindowAttention:
    """Self-attention within windows. Zeros fill up the last windows of a row and a column, and are attended
    to like any position: there is no mask."""

    name: Final = "spatial"

    def __init__(self, name: str, stage: DavitStage, spec: DavitSpec, place: Placement) -> None:
        self.heads, self.side = stage.heads, spec.window
        self.qkv = Replicated(
            f"{name}.window_attn.qkv", stage.width, 3 * stage.width, place, bias=spec.qkv_bias
        )
        self.projection = Replicated(f"{name}.window_attn.proj", stage.width, stage.width, place)

    def __call__(self, x: torch.Tensor, shape: Shape) -> torch.Tensor:
        side, (items, height, width), channels = self.side, shape, x.shape[1]
        x = x.view(*shape, channels)
        if height % side or width % side:
            x = pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        windows = x.view(items, rows, side, columns, side, channels).transpose(2, 3)
        qkv = self.qkv(windows.reshape(-1, channels))
        qkv = qkv.view(-1, side * side, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, channels)
        windows = self.projection(mixed).view(items, rows, columns, side, side, channels).transpose(2, 3)
        image = windows.reshape(items, rows * side, columns * side, channels)
        return image[:, :height, :width].reshape(-1, channels)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.qkv, self.projection)


class ChannelAttention:
    """Attention of channels to the channels of their group, by all positions of an image."""

    name: Final = "channel"

    def __init__(self, name: str, stage: DavitStage, spec: DavitSpec, place: Placement) -> None:
        self.groups = stage.groups
        self.qkv = Replicated(
            f"{name}.channel_attn.qkv", stage.width, 3 * stage.width, place, bias=spec.qkv_bias
        )
        self.projection = Replicated(f"{name}.channel_attn.proj", stage.width, stage.width, place)

    def __call__(self, x: torch.Tensor, shape: Shape) -> torch.Tensor:
        items, channels = shape[0], x.shape[1]
        qkv = self.qkv(x).view(items, -1, 3, self.groups, channels // self.groups)
        mixed = torch.empty_like(x)
        # Image by image: only then are all groups one batch of products that are read where they are.
        for image, out in zip(qkv, mixed.view(items, -1, self.groups, channels // self.groups), strict=True):
            q, k, v = image.permute(1, 2, 0, 3)  # each [groups, positions, channels of a group]
            scores = torch.bmm(q.transpose(1, 2), k).float() * len(image) ** -0.5
            weights = scores.softmax(-1).to(v.dtype)
            out.copy_(torch.bmm(v, weights.transpose(1, 2)).transpose(0, 1))
        return self.projection(mixed)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.qkv, self.projection)


class Block:
    """Attention and a feed-forward, each after a convolution of every channel by itself. Sums, as usual, go
    around all four."""

    def __init__(
        self,
        name: str,
        attention: type[WindowAttention | ChannelAttention],
        stage: DavitStage,
        spec: DavitSpec,
        place: Placement,
    ) -> None:
        width = stage.width
        inner = int(width * spec.mlp_ratio)
        self.activation = spec.activation
        self.convolutions = [
            Convolution(f"{name}.conv{number}", width, width, place, side=3, groups=width)
            for number in (1, 2)
        ]
        self.norms = [Norm(f"{name}.norm{number}", width, "layer", _EPS, place) for number in (1, 2)]
        self.attention = attention(name, stage, spec, place)
        self.up = Replicated(f"{name}.ffn.fc1", width, inner, place)
        self.down = Replicated(f"{name}.ffn.fc2", inner, width, place)

    def __call__(self, x: torch.Tensor, shape: Shape) -> torch.Tensor:
        # Each sum overwrites what was made last: at a page fault for every 4 KiB, new memory takes longer.
        x = self.convolutions[0](x, shape)[0].add_(x)
        x = self.attention(self.norms[0](x), shape).add_(x)
        x = self.convolutions[1](x, shape)[0].add_(x)
        for rows in pieces(x):
            rows.add_(self.down(kernels.activate(self.up(self.norms[1](rows)), self.activation)))
        return x

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(*self.convolutions, *self.norms, self.attention, self.up, self.down)
