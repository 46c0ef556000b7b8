"""What a front makes of media: once for equal items, and bounded in bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tandem.workers.device import Streams
from tandem.workers.distributed import Group
from tandem.workers.execution.front_cache import FrontCache
from tandem.workers.execution.packet import Ints
from tandem.workers.models.spec import FrontSpec
from tandem.workers.request import NO_KEY, MediaCounts, MediaKey

POSITIONS, WIDTH = 3, 5
NBYTES = POSITIONS * WIDTH * 4  # of an item's output
SPEC = FrontSpec(kind="davit", modality="image", placeholder_id=0, positions=POSITIONS, features=(2,))


class Front:
    """An item's positions hold its first feature, and count what it computes."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def __call__(self, features: torch.Tensor, own: Sequence[int]) -> torch.Tensor:
        assert len(own) in (0, len(features))  # none where nothing pads
        self.seen.append(features[:, 0].tolist())
        return features[:, :1].repeat_interleave(POSITIONS, 0).repeat(1, WIDTH)


def cache(
    items: float, spec: FrontSpec = SPEC, group: Any = Group(), front: Front | None = None
) -> tuple[FrontCache, Front]:
    """One with room for so many items."""
    front = front or Front()
    encoder: Any = SimpleNamespace(front=front, spec=SimpleNamespace(front=spec), device=torch.device("cpu"))
    return FrontCache(encoder, group, int(items * NBYTES), Streams()), front


def ids(items: int) -> Ints:
    """Of packed inputs with so many items."""
    return np.full(items * POSITIONS, SPEC.placeholder_id)


def asked(cache: FrontCache, *inputs: list[int]) -> torch.Tensor:
    """The vectors of inputs whose items are these numbers, which are their keys, too; -1 has none."""
    keys: list[MediaKey] = [(n, -n) if n >= 0 else NO_KEY for one in inputs for n in one]
    own = [torch.tensor([[float(n), 0.0] for n in one]) for one in inputs]
    made = cache.vectors(keys, ids(len(keys)), own)
    assert made is not None
    assert made.shape == (len(keys) * POSITIONS, WIDTH)
    assert made[::POSITIONS, 0].tolist() == [n for one in inputs for n in one]
    assert (made.view(-1, POSITIONS * WIDTH).diff(dim=1) == 0).all()
    return made


def test_equal_items_are_computed_once() -> None:
    ours, front = cache(4)
    assert ours.vectors([], ids(0), []) is None
    asked(ours, [1], [2, 1], [1])
    asked(ours, [3, 2])
    assert front.seen == [[1, 2], [3]]
    assert ours.counts == MediaCounts(encoded=3, reused=3, nbytes=3 * NBYTES)
    asked(ours, [2, 1, 3])
    assert len(front.seen) == 2


def test_items_without_a_key_are_all_computed() -> None:
    ours, front = cache(4)
    asked(ours, [-1], [-1, 1])
    asked(ours, [-1])
    assert front.seen == [[-1, -1, 1], [-1]]
    assert ours.counts == MediaCounts(4, 0, NBYTES)


def test_those_used_last_stay() -> None:
    ours, front = cache(2.5)
    asked(ours, [1], [2])
    asked(ours, [1])
    asked(ours, [3])  # in the place of 2
    assert ours.counts.nbytes == 2 * NBYTES
    asked(ours, [1], [3])
    asked(ours, [2])
    assert front.seen == [[1, 2], [3], [2]]


def test_more_at_once_than_there_is_room_for() -> None:
    ours, front = cache(1)
    asked(ours, [1, 2, 1, 3])
    asked(ours, [1, 3])
    assert front.seen == [[1, 2, 3], [1]]
    assert ours.counts.nbytes == NBYTES


@pytest.mark.parametrize(
    ("items", "spec"), [(0, SPEC), (0.5, SPEC), (9, replace(SPEC, kind="image_patches"))]
)
def test_nothing_is_kept(items: float, spec: FrontSpec) -> None:
    """Without room, and where what is kept takes more than it saves. A batch still has its items once."""
    ours, front = cache(items, spec)
    asked(ours, [1, 1])
    asked(ours, [1])
    assert front.seen == [[1], [1]]
    assert ours.counts == MediaCounts(2, 1, 0)


def test_what_is_given_may_be_overwritten() -> None:
    ours, _ = cache(3)
    for items in ([1, 2], [1], [2, 1], [1, 1]):
        asked(ours, items).zero_()
    asked(ours, [1, 2])


class Ranks:
    """One of two ranks; the second gets what the first has broadcast."""

    def __init__(self, rank: int, sent: list[torch.Tensor]) -> None:
        self.rank, self.sent = rank, sent

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        if self.rank == 0:
            self.sent.append(x.clone())
            return x
        told = self.sent.pop(0)
        assert x.shape == told.shape
        return told


def test_every_rank_keeps_the_same() -> None:
    """Whatever is asked, ranks without features compute what rank 0 does."""
    sent: list[torch.Tensor] = []
    (ours, front), (theirs, other) = (cache(3, group=Ranks(rank, sent)) for rank in range(2))
    chance = random.Random(0)
    for _ in range(200):
        items = [chance.randrange(-1, 7) for _ in range(chance.randrange(1, 5))]
        made = asked(ours, items)
        keys = [(n, -n) if n >= 0 else NO_KEY for n in items]
        told = theirs.vectors(keys, ids(len(keys)), ())
        assert told is not None
        assert torch.equal(made, told)
        assert ours.counts == theirs.counts
        assert ours.counts.nbytes <= 3 * NBYTES
    assert front.seen == other.seen
    assert ours.counts.reused > 50


def test_each_item_is_computed_with_its_own_padding() -> None:
    """Counted by the ids, whichever items are there already, and before, after or between tokens."""
    spec = replace(SPEC, padding_id=9)
    given: list[list[int]] = []

    class Padded(Front):
        def __call__(self, features: torch.Tensor, own: Sequence[int]) -> torch.Tensor:
            given.append(list(own))
            return super().__call__(features, own)

    ours, _ = cache(4, spec, front=Padded())
    token_ids = np.array([7, 0, 0, 9, 0, 9, 9, 7, 0, 0, 0, 7])
    features = [torch.arange(3.0).repeat(2, 1).T]
    ours.vectors([(1, 1), (2, 2), (3, 3)], token_ids, features)
    ours.vectors([(1, 1), (4, 4)], np.array([0, 0, 9, 0, 9, 9]), [features[0][:2]])
    assert given == [[2, 1, 3], [1]]
