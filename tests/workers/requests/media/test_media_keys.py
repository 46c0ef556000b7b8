"""What an item of media is known by on the worker that encodes it."""

from __future__ import annotations

import torch

from tandem.inputs import Media
from tandem.limits import Limits
from tandem.workers.request import NO_KEY, EncoderInput, MediaKey
from tandem.workers.requests.media import prepare_input


class Sizes:
    """An item's feature is how many bytes it has."""

    def positions(self, media: Media, limits: Limits) -> int:
        raise AssertionError(f"{media} within {limits} is not asked for")

    def features(self, media: Media) -> torch.Tensor:
        return torch.tensor([float(len(media.data))])


def keys(*files: bytes, owner: str = "") -> tuple[MediaKey, ...]:
    media = tuple(Media("image", data) for data in files)
    made = prepare_input(EncoderInput("key", (0,) * len(files), media=media, owner=owner), Sizes())
    assert made.features is not None
    assert made.features.flatten().tolist() == [len(data) for data in files]
    assert made.media == ()
    return made.item_keys


def test_equal_items_of_one_owner_have_equal_keys() -> None:
    first, second, again = keys(b"one", b"two", b"one")
    assert first == again != second
    assert keys(b"one") == (first,)
    assert {first, second, *keys(b"one", owner="a"), *keys(b"one", owner="b"), *keys(b"one\0a")} > {first}
    assert len({first, second, *keys(b"one", owner="a"), *keys(b"one", owner="b"), *keys(b"one\0a")}) == 5
    assert keys(b"one", owner="a") == keys(b"one", owner="a")


def test_features_of_windows_are_equal_to_none() -> None:
    assert EncoderInput("key", (0, 0), features=torch.zeros(2, 1)).item_keys == (NO_KEY, NO_KEY)
    assert EncoderInput("key", (5,)).item_keys == ()
