"""Pages of encoder inputs are shared while they have readers, and go back with the last one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tandem.workers.scheduling.cross_entries import CrossEntries
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import CrossEntry


def read(entries: CrossEntries, key: str, length: int, *, keep: bool = False) -> CrossEntry:
    return entries.read(key, length, keep=keep)


@pytest.fixture
def pool() -> PagePool:
    return PagePool(8, 4)


def test_an_entry_lives_as_long_as_it_has_readers(pool: PagePool) -> None:
    entries = CrossEntries(pool, 2)
    entry = read(entries, "a", 9)
    assert read(entries, "a", 9) is entry
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
    first, second = read(entries, "a", 1), read(entries, "b", 1)
    assert {first.index, second.index} == {0, 1}
    entries.release(first)
    assert read(entries, "c", 1).index == first.index


def test_an_empty_input_holds_no_pages(pool: PagePool) -> None:
    assert read(CrossEntries(pool, 1), "a", 0).pages == []


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_check_counts_readers(pool: PagePool, readers: int) -> None:
    entries = CrossEntries(pool, 2)
    entry = read(entries, "a", 3)
    read(entries, "a", 3)
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


def test_a_kept_entry_stays_until_it_is_dropped(pool: PagePool) -> None:
    entries = CrossEntries(pool, 2)
    first, second = read(entries, "a", 4, keep=True), read(entries, "b", 8, keep=True)
    first.written = second.written = True
    entries.release(second)
    entries.release(first)
    assert (pool.free, entries.idle_pages, entries.is_read("a")) == (5, 3, False)
    entries.check([])
    # Read again, it is the same, and the one that has been idle the longest goes first.
    assert read(entries, "b", 8) is second
    entries.release(second)
    assert read(entries, "c", 1).index == first.index
    assert entries.get("a") is None
    assert entries.get("b") is second
    assert entries.drop_idle()
    assert not entries.drop_idle()
    assert (pool.free, entries.idle_pages) == (7, 0)


def test_what_was_never_written_is_not_kept(pool: PagePool) -> None:
    entries = CrossEntries(pool, 2)
    entries.release(read(entries, "a", 4, keep=True))
    assert (pool.free, entries.get("a")) == (8, None)
