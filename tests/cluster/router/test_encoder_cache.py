"""What is kept, and what that costs."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tandem.cluster.handoff import HiddenSlice
from tandem.cluster.router.encoder_cache import EncoderCache


def batch(reference: Any, *keys: str) -> dict[str, HiddenSlice]:
    return {key: HiddenSlice(reference, i, i + 1) for i, key in enumerate(keys)}


def test_the_least_recently_used_batch_goes_first() -> None:
    cache = EncoderCache(100)
    cache.add(batch("a", "a1", "a2"), 40)
    cache.add(batch("b", "b1"), 40)
    assert cache.get("a2") == HiddenSlice("a", 1, 2)  # type: ignore[arg-type]
    cache.add(batch("c", "c1"), 40)
    assert cache.get("b1") is None
    assert cache.get("a1") is not None
    assert cache.nbytes == 80


def test_a_batch_beyond_the_capacity_is_not_kept() -> None:
    cache = EncoderCache(100)
    cache.add(batch("a", "a1"), 40)
    cache.add(batch("b", "b1"), 101)
    assert cache.get("a1") is not None
    assert cache.get("b1") is None


def test_a_lost_object_takes_its_whole_batch_along() -> None:
    cache = EncoderCache(100)
    slices = batch("a", "a1", "a2")
    cache.add(slices, 40)
    cache.forget(slices["a1"])
    assert cache.get("a2") is None
    assert cache.nbytes == 0
    cache.add(batch("b", "a1"), 40)
    cache.forget(slices["a1"])  # said again, of the old object
    assert cache.get("a1") is not None


def test_encoded_again_the_newer_object_counts() -> None:
    cache = EncoderCache(100)
    cache.add(batch("a", "k"), 40)
    cache.add(batch("b", "k"), 30)
    assert cache.get("k") == HiddenSlice("b", 0, 1)  # type: ignore[arg-type]
    assert cache.nbytes == 30


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "get", "forget"]), st.integers(0, 9), st.integers(1, 60)),
        max_size=60,
    )
)
def test_the_books_always_balance(steps: list[tuple[str, int, int]]) -> None:
    cache = EncoderCache(100)
    kept: dict[str, tuple[HiddenSlice, int]] = {}
    for number, (action, key, size) in enumerate(steps):
        names = (f"k{key}", f"k{key + 1}")
        if action == "add":
            slices = batch(number, *names)
            cache.add(slices, size)
            kept.update({name: (where, size) for name, where in slices.items()})
        elif action == "get":
            where = cache.get(names[0])
            assert where is None or where == kept[names[0]][0]
        elif names[0] in kept:
            cache.forget(kept[names[0]][0])
        alive = {cache.get(name).reference: size for name, (_, size) in kept.items() if cache.get(name)}  # type: ignore[union-attr]
        assert cache.nbytes == sum(alive.values()) <= 100
