"""The K/V tensors of a rank: pages of a fixed size for self- and cross-attention, and how many there are."""

from __future__ import annotations

from typing import Final

import torch

from tandem import kernels
from tandem.workers.config import GIB, EngineConfig
from tandem.workers.models.spec import ModelSpec

_GPU_SHARE: Final = 0.8  # the part of a GPU's free memory that the pool takes by itself


class KVPool:
    """K and V of every decoder layer, [planes, pages, heads, page_size, head_dim] each.

    A plane serves a layer's self-attention and a layer's cross-attention, see `ModelSpec.plane`. A page id
    means the same positions in every plane. What a page holds beyond its sequence's length is garbage.

    A cross-attention may have several planes, one after another. To it, a page is as many pages: page p of
    its plane number n is the page n * pages + p.
    """

    def __init__(
        self, planes: int, pages: int, heads: int, page_size: int, head_dim: int,
        device: torch.device, dtype: torch.dtype, cross_planes: int = 1,
    ) -> None:  # fmt: skip
        shape = (planes, pages, heads, page_size, head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.pages, self.page_size, self.cross_planes = pages, page_size, cross_planes

    def cross(self, plane: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a cross-attention whose first plane this is, [its pages, heads, page_size, head_dim]."""
        if self.cross_planes == 1:
            return self.k[plane], self.v[plane]
        own = slice(plane, plane + self.cross_planes)
        return self.k[own].flatten(0, 1), self.v[own].flatten(0, 1)

    def write_cross(self, plane: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """As `write`, of a cross-attention's own pages."""
        kernels.write_kv(k, v, *self.cross(plane), slots)

    def write(self, plane: int, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor) -> None:
        """k, v [N, heads, head_dim] to the positions `slots` [N] = page * page_size + offset."""
        kernels.write_kv(k, v, self.k[plane], self.v[plane], slots)


def position_bytes(config: EngineConfig, spec: ModelSpec, device: torch.device) -> int:
    """Bytes of one position's K and V in all planes, on each rank."""
    heads = spec.decoder.shared_heads // config.tensor_parallel_size
    return 2 * spec.kv_planes * heads * spec.decoder.head_dim * config.kv_dtype(device).itemsize


def pool_pages(config: EngineConfig, spec: ModelSpec, device: torch.device, unloaded: int = 0) -> int:
    """Pages of the pool on each rank: what `max_num_seqs` sequences can use, as far as it fits.

    unloaded: bytes of weights that a GPU does not hold yet.
    """
    if config.num_pages is not None:
        return config.num_pages
    size = config.positions_per_page(device)
    longest = -(-config.max_encoder_length // spec.cross_planes), config.max_decoder_length
    usable = config.max_num_seqs * sum(-(-length // size) for length in longest)
    if config.kv_cache_gib is not None:
        room = int(config.kv_cache_gib * GIB)
    elif device.type == "cuda":
        room = int((torch.cuda.mem_get_info(device)[0] - unloaded) * _GPU_SHARE)
    else:
        room = GIB
    return min(usable, max(1, room // (size * position_bytes(config, spec, device))))
