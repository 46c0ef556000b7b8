"""DaViT, the vision tower of Florence-2: attention within windows and attention between channels, in turns
(Ding et al., 2022).

Images are [items, height, width, channels]: a position's channels lie side by side. A CPU goes over an image
strip by strip, so that what is between a convolution and the next sum stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch.nn.functional import pad

from tandem import kernels
from tandem.kernels import Scores
from tandem.workers.models.fronts.pieces import pieces, strips
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import DavitSpec, DavitStage

_EPS: Final = 1e-5  # of every norm
_SIDE: Final = 3  # positions that a depthwise convolution sees in a row


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
        """[items, channels, height, width] → [items * positions, width of the last stage]. On a CPU there is
        one item."""
        x = pixels.to(self.dtype).permute(0, 2, 3, 1)
        for patches, blocks in self.stages:
            x = patches(x)
            spare = torch.empty_like(x)
            for block in blocks:
                block(x, spare)
        return x.flatten(0, 2)

    def slots(self) -> Iterator[WeightSlot]:
        for patches, blocks in self.stages:
            yield from weights_of(patches, *blocks)


class Convolution:
    """A convolution, as a projection of the positions that each output sees."""

    def __init__(self, name: str, inputs: int, stage: DavitStage, place: Placement) -> None:
        self.name, self.stride, self.padding = name, stage.stride, stage.padding
        self.inputs, self.outputs, self.side = inputs, stage.width, stage.patch
        self.linear = place.linear(self.side**2 * inputs, self.outputs, bias=True)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[items, height, width, inputs] → [items, height, width, outputs]."""
        side, stride, around = self.side, self.stride, self.padding
        height, width = ((edge + 2 * around - side) // stride + 1 for edge in x.shape[1:3])
        made = x.new_empty(len(x), height, width, self.outputs)
        for rows in strips(x, height, width, side**2 * self.inputs):
            first, last = rows.start * stride - around, (rows.stop - 1) * stride - around + side
            above, below = max(0, -first), max(0, last - x.shape[1])
            read = pad(x[:, first + above : last - below], (0, 0, around, around, above, below)).contiguous()
            item, row, column, _ = read.stride()
            shape = len(x), rows.stop - rows.start, width, side, side * self.inputs
            seen = read.as_strided(shape, (item, stride * row, stride * column, row, 1))
            # Contiguous in either case: one image's strip, or the only strip that several images have.
            its = made[:, rows].view(-1, self.outputs)
            self.linear(seen.reshape(-1, side**2 * self.inputs), its)
        return made

    def slots(self) -> Iterator[WeightSlot]:
        # The checkpoint has [outputs, inputs, height, width].
        into = self.linear.weight.view(self.outputs, self.side, self.side, self.inputs).permute(0, 3, 1, 2)
        yield WeightSlot(self.name, into, tuple(into.shape))
        assert self.linear.bias is not None
        yield WeightSlot(f"{self.name}.bias", self.linear.bias, (self.outputs,))


class Depthwise:
    """A convolution of each channel by itself, added to what it reads."""

    def __init__(self, name: str, width: int, place: Placement) -> None:
        self.name = name
        self.weight, self.bias = place.empty(_SIDE**2, width), place.empty(width)

    def __call__(self, x: torch.Tensor, rows: slice, into: torch.Tensor) -> torch.Tensor:
        """Rows of images x [items, height, width, channels] → the same rows of `into`, which has x's shape.
        It returns them."""
        return kernels.add_depthwise(x, rows.start, self.weight, self.bias, into[:, rows])

    def slots(self) -> Iterator[WeightSlot]:
        into = self.weight.view(_SIDE, _SIDE, -1).permute(2, 0, 1).unsqueeze(1)
        yield WeightSlot(self.name, into, tuple(into.shape))
        yield WeightSlot(f"{self.name}.bias", self.bias, tuple(self.bias.shape))


class Patches:
    """A stage's convolution, and the norm before or after it."""

    def __init__(self, name: str, inputs: int, stage: DavitStage, place: Placement) -> None:
        self.norm_first = stage.norm_first
        self.convolution = Convolution(f"{name}.conv", inputs, stage, place)
        normed = inputs if stage.norm_first else stage.width
        self.norm = Norm(f"{name}.norm", normed, "layer", _EPS, place)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            return self.convolution(_normed(self.norm, x))
        return _normed(self.norm, self.convolution(x))

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
        self.scores = Scores((stage.width // stage.heads) ** -0.5, integers=place.quantization == "int8")

    def __call__(self, x: torch.Tensor, depthwise: Depthwise, norm: Norm, out: torch.Tensor) -> None:
        _, height, width, channels = x.shape
        for rows in strips(x, height, width, channels, self.side):
            self._attend(depthwise(x, rows, out), norm)

    def _attend(self, x: torch.Tensor, norm: Norm) -> None:
        """Adds to rows of images [items, height, width, channels] what the attention to their norm gives."""
        side, (items, height, width, channels) = self.side, x.shape
        whole = not (height % side or width % side)
        normed = _normed(norm, x)
        if not whole:
            normed = pad(normed, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = normed.shape[1] // side, normed.shape[2] // side
        windows = normed.view(items, rows, side, columns, side, channels).transpose(2, 3)
        qkv = self.qkv(windows.reshape(-1, channels)).view(-1, side**2, 3, self.heads, channels // self.heads)
        q, k, v = qkv.unbind(2)
        mixed = kernels.grouped_attention(q, k, v, self.scores).reshape(-1, channels)
        given = self.projection(mixed).view(items, rows, columns, side, side, channels).transpose(2, 3)
        if whole:
            x.view(given.shape).add_(given)
        else:
            x.add_(given.reshape(normed.shape)[:, :height, :width])

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

    def __call__(self, x: torch.Tensor, depthwise: Depthwise, norm: Norm, out: torch.Tensor) -> None:
        # Image by image: only then are all groups one batch of products that are read where they are.
        for image, its in zip(x.split(1), out.split(1), strict=True):
            self._attend(image, depthwise, norm, its)

    def _attend(self, image: torch.Tensor, depthwise: Depthwise, norm: Norm, out: torch.Tensor) -> None:
        _, height, width, channels = image.shape
        values, shape = torch.empty_like(image), (-1, self.groups, channels // self.groups)
        scores = image.new_zeros(self.groups, *shape[2:] * 2, dtype=torch.float32)
        for rows in strips(image, height, width, channels):
            strip = depthwise(image, rows, out)
            q, k, v = self.qkv(_normed(norm, strip).flatten(0, 2)).chunk(3, dim=1)
            values[:, rows].view(v.shape).copy_(v)
            q, k = (one.view(shape).transpose(0, 1) for one in (q, k))
            scores += torch.bmm(q.transpose(1, 2), k)
        weights = (scores * (height * width) ** -0.5).softmax(-1).to(values.dtype).transpose(1, 2)
        for rows in strips(image, height, width, channels):
            v = values[:, rows].view(shape).transpose(0, 1)
            mixed = torch.bmm(v, weights).transpose(0, 1).reshape(-1, channels)
            out[:, rows].add_(self.projection(mixed).view(1, -1, width, channels))

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
        self.convolutions = [Depthwise(f"{name}.conv{number}", width, place) for number in (1, 2)]
        self.norms = [Norm(f"{name}.norm{number}", width, "layer", _EPS, place) for number in (1, 2)]
        self.attention = attention(name, stage, spec, place)
        self.up = Replicated(f"{name}.ffn.fc1", width, inner, place)
        self.down = Replicated(f"{name}.ffn.fc2", inner, width, place)

    def __call__(self, x: torch.Tensor, between: torch.Tensor) -> None:
        """Images [items, height, width, channels], which the results overwrite, as what is between attention
        and feed-forward does `between`: new memory takes longer, a page fault for every 4 KiB."""
        self.attention(x, self.convolutions[0], self.norms[0], between)
        norm = self.norms[1]
        assert norm.bias is not None
        _, height, width, channels = x.shape
        for rows in strips(x, height, width, channels):
            for piece in pieces(self.convolutions[1](between, rows, x).view(-1, channels)):
                kernels.add_feed_forward(
                    piece, norm.weight, norm.bias, norm.eps, self.up.linear, self.down.linear, self.activation
                )

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(*self.convolutions, *self.norms, self.attention, self.up, self.down)


def _normed(norm: Norm, x: torch.Tensor) -> torch.Tensor:
    """The norm of each position of images [items, height, width, channels]."""
    return norm(x.reshape(-1, x.shape[3])).view(x.shape)
