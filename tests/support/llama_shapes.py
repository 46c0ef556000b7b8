"""Llama 3.2 Vision's published shapes: config.json without weights, and how many parameters they come to."""

from __future__ import annotations

from pathlib import Path

from tandem.workers.models.footprint import Part

_SHAPES = Path(__file__).parent / "llama_vision"
# Parameters of the vision model, which both sizes share, worked out by hand: a layer's four projections, two
# norms and its feed-forward.
_LAYER = 4 * 1280**2 + 2 * 2 * 1280 + (2 * 1280 * 5120 + 5120 + 1280)
TILE = (560 // 14) ** 2 + 1  # positions
VISION = (
    32 * _LAYER + 8 * (_LAYER + 2)  # global layers have two gates
    + 3 * 14 * 14 * 1280 + 1280  # patches, and the vector of a tile
    + TILE * 1280 + 1 + 9 * 4 * TILE * 1280  # positions, gated, and those by arrangement
    + 2 * (9 * 4 * 1280 + 1)  # vectors of tiles before and after the local layers
    + 2 * 2 * 1280  # norms
)  # fmt: skip


def by_hand(width: int, layers: int, crossing: int, inner: int) -> dict[Part, int]:
    """Parameters by part. A head has 128 numbers, and there are 8 of keys and values."""
    layer = 2 * width**2 + 2 * width * 8 * 128 + 3 * width * inner + 2 * width
    return {
        "front": VISION + 7680 * width + width,
        "encoder": 0,
        "cross_attention": crossing * (layer + 2 * 128 + 2),  # norms of heads, gates
        "decoder": (layers - crossing) * layer + width,
        "vocabulary": (128_256 + 8 + 128_256) * width,
    }


COUNTS = {"11B": by_hand(4096, 40, 8, 14_336), "90B": by_hand(8192, 100, 20, 28_672)}


def folder_of(name: str, folder: Path) -> Path:
    """The folder, with config.json of a size alone."""
    (folder / "config.json").write_bytes((_SHAPES / f"{name}.json").read_bytes())
    return folder
