"""Pages of encoder inputs are shared while they have readers, and go back with the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tandem.workers.scheduling.cross_entries import CrossEntries
from tandem.workers.scheduling.pages import PagePool


@pytest.fixture
def pool() -> PagePool:
    return PagePool(8, 4)


def test_an_entry_lives_as_long_as_it_has_readers(pool: PagePool) -> None:
    entries = CrossEntries(pool, 2)
    entry = entries.make("a", 9)
    entry.readers = 2
    assert entries.get("a") is entry
    assert entries.pages == entry.pages
    assert (len(entry.pages), pool.free) == (3, 5)
    entries.release(entry)
    assert entries.get("a") is entry
    entries.release(entry)
    assert entries.get("a") is None
    assert pool.free == 8


def test_indices_are_used_again(pool: PagePool) -> None:
    entries = CrossEntries(pool, 2)
    first, second = entries.make("a", 1), entries.make("b", 1)
    assert {first.index, second.index} == {0, 1}
    first.readers = 1
    entries.release(first)
    assert entries.make("c", 1).index == first.index


def test_an_empty_input_holds_no_pages(pool: PagePool) -> None:
    assert CrossEntries(pool, 1).make("a", 0).pages == []


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_check_counts_readers(pool: PagePool, readers: int) -> None:
    entries = CrossEntries(pool, 2)
    entry = entries.make("a", 3)
    entry.readers = 2
    entries.check([entry, None, entry])
    with pytest.raises(AssertionError, match=f"counts 2 readers, has {readers}"):
        entries.check([entry] * readers)


@pytest.mark.parametrize("spoil", [lambda e: e._free.append(0), lambda e: e._free.clear()])
def test_check_counts_indices(pool: PagePool, spoil: Callable[[CrossEntries], None]) -> None:
    entries = CrossEntries(pool, 2)
    entries.check([])
    spoil(entries)
    with pytest.raises(AssertionError, match="do not make up all"):
        entries.check([])
