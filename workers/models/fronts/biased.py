"""What BEiT, SigLIP and Swin have in common: layers whose attention may have a bias for each pair of places
in a grid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import scaled_dot_product_attention

from tandem import kernels
from tandem.workers.models.fronts.pieces import pieces
from tandem.workers.models.layers import Norm, Placement, Replicated, WeightSlot, weights_of
from tandem.workers.models.spec import Activation


def pair_distances(height: int, width: int) -> torch.Tensor:
    """int64 [height * width, height * width]: a number for each pair of places in a grid, which says how far
    the one is below and to the right of the other, from 0 to (2 * height - 1) * (2 * width - 1) - 1."""
    down, right = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, right = down.flatten(), right.flatten()
    below = down[:, None] - down + height - 1
    beside = right[:, None] - right + width - 1
    return below * (2 * width - 1) + beside


class Attention:
    """Attention within groups of positions; keys may have no bias."""

    def __init__(self, name: str, width: int, heads: int, place: Placement, *, key_bias: bool) -> None:
        self.heads = heads
        self.q = Replicated(f"{name}.q", width, width, place)
        self.k = Replicated(f"{name}.k", width, width, place, bias=key_bias)
        self.v = Replicated(f"{name}.v", width, width, place)
        self.o = Replicated(f"{name}.o", width, width, place)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [groups, positions, width]; bias, on the scores: [heads, positions, positions]."""
        groups, positions, width = x.shape
        rows = x.reshape(-1, width)
        q, k, v = (
            projection(rows).view(groups, positions, self.heads, -1).transpose(1, 2)
            for projection in (self.q, self.k, self.v)
        )
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.o(mixed.transpose(1, 2).reshape(-1, width)).view(x.shape)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.q, self.k, self.v, self.o)


class FeedForward:
    def __init__(self, name: str, width: int, inner: int, activation: Activation, place: Placement) -> None:
        self.activation = activation
        self.up = Replicated(f"{name}.up", width, inner, place)
        self.down = Replicated(f"{name}.down", inner, width, place)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[N, width] → [N, width]."""
        made = [self.down(kernels.activate(self.up(piece), self.activation)) for piece in pieces(x)]
        return made[0] if len(made) == 1 else torch.cat(made)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.up, self.down)


class Layer:
    """Attention and feed-forward, each of its normalized input."""

    def __init__(
        self,
        name: str,
        width: int,
        heads: int,
        inner: int,
        activation: Activation,
        eps: float,
        place: Placement,
        *,
        key_bias: bool,
    ) -> None:
        self.attention = Attention(f"{name}.self_attention", width, heads, place, key_bias=key_bias)
        self.attention_norm = Norm(f"{name}.self_attention.norm", width, "layer", eps, place)
        self.feed_forward = FeedForward(f"{name}.feed_forward", width, inner, activation, place)
        self.feed_forward_norm = Norm(f"{name}.feed_forward.norm", width, "layer", eps, place)

    def slots(self) -> Iterator[WeightSlot]:
        return weights_of(self.attention_norm, self.attention, self.feed_forward_norm, self.feed_forward)


class Weight:
    """A weight that is no projection's: biases by distance, vectors by position, scales."""

    def __init__(self, name: str, place: Placement, *shape: int) -> None:
        self.name, self.weight = name, place.empty(*shape)

    def slots(self) -> Iterator[WeightSlot]:
        yield WeightSlot(self.name, self.weight, tuple(self.weight.shape))
