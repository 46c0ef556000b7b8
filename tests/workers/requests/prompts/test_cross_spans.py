"""Which images a position reads, held to transformers' masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.mllama.modeling_mllama import _prepare_cross_attention_mask
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from tandem.workers.request import CrossSpan
from tandem.workers.requests.prompts.cross_spans import cross_spans

IMAGE, TILES, OF_TILE = 9, 4, 3


class Read(NamedTuple):
    keys: set[int]
    own: bool


def theirs(prompt: list[int], tiles: list[int]) -> list[Read]:
    """What transformers lets each position attend to, in the order in which we lay the keys out."""
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(prompt, IMAGE)], [tiles], TILES, len(prompt)
    )
    added, own = _prepare_cross_attention_mask(torch.from_numpy(mask), OF_TILE, torch.float32)
    is_own = [tile < count for count in tiles for tile in range(TILES) for _ in range(OF_TILE)]
    order = sorted(range(len(is_own)), key=lambda key: not is_own[key])
    return [
        Read({at for at, key in enumerate(order) if row[key] == 0}, bool(kept))
        for row, kept in zip(added[0, 0], own[0, 0], strict=True)
    ]


def ours(prompt: list[int], tiles: list[int]) -> list[Read]:
    spans = cross_spans(prompt, IMAGE, [n * OF_TILE for n in tiles], len(tiles) * TILES * OF_TILE)
    found = []
    for position in range(len(prompt)):
        span = max((one for one in spans if one.start <= position), key=lambda one: one.start)
        found.append(Read(set(range(span.begin, span.end)), span.own))
    return found


@given(st.lists(st.sampled_from([1, IMAGE]), min_size=1, max_size=9), st.data())
def test_any_prompt(prompt: list[int], data: st.DataObject) -> None:
    tiles = [data.draw(st.integers(1, TILES)) for one in prompt if one == IMAGE]
    if tiles:
        assert ours(prompt, tiles) == theirs(prompt, tiles)
    else:
        assert cross_spans(prompt, IMAGE, [], 0) == (CrossSpan(0, 0, 0, own=False),)


def test_images_one_after_another_are_read_together() -> None:
    prompt = [1, IMAGE, 1, IMAGE, IMAGE, 1]
    assert cross_spans(prompt, IMAGE, [6, 3, 12], 36) == (
        CrossSpan(0, 0, 36, own=False),
        CrossSpan(1, 0, 6, own=True),
        CrossSpan(3, 6, 9, own=True),
        CrossSpan(4, 6, 21, own=True),
    )
