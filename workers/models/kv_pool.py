"""The K/V tensors of a rank: fixed-size pages, for self- and cross-attention alike."""

from __future__ import annotations

import torch

from tandem import kernels


class KVPool:
    """K and V of every decoder layer, [layers, pages, heads, page_size, head_dim] each.

    A page id means the same positions in every layer. What a page holds beyond its sequence's
    length is garbage.
    """

    def __init__(
        self, layers: int, pages: int, heads: int, page_size: int, head_dim: int,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        shape = (layers, pages, heads, page_size, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.page_size = page_size

    def write(self, layer: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """k, v [N, heads, head_dim] to the positions `slots` [N] = page * page_size + offset."""
        kernels.write_kv(k, v, self.k[layer], self.v[layer], slots)
