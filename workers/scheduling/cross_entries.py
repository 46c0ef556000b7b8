"""The encoder inputs that running sequences read, and their cross-attention pages."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import CrossEntry


class CrossEntries:
    """Entries by their inputs' keys. An entry lives as long as it has readers; one that is kept, until its
    pages or its index are needed."""

    def __init__(self, pool: PagePool, most: int, planes: int = 1) -> None:
        """most: entries at once. planes: a page holds so many times the positions."""
        self._pool, self._most, self._planes = pool, most, planes
        self.page_count = 0  # pages of all entries
        self._entries: dict[str, CrossEntry] = {}
        self._free = list(range(most - 1, -1, -1))  # indices
        self._idle: dict[str, CrossEntry] = {}  # without readers, the longest so first

    def get(self, key: str) -> CrossEntry | None:
        return self._entries.get(key)

    def pages_for(self, positions: int) -> int:
        """The pages of an input of this length."""
        return self._pool.pages_for(-(-positions // self._planes))

    @property
    def idle_pages(self) -> int:
        """Pages of entries without readers."""
        return sum(len(entry.pages) for entry in self._idle.values())

    def is_read(self, key: str) -> bool:
        return key in self._entries and key not in self._idle

    def read(self, key: str, length: int, *, keep: bool) -> CrossEntry:
        """The entry of an input of this length, with one reader more. The pool must have the pages of one
        without readers so far."""
        entry = self._entries.get(key) or self._make(key, length)
        self._idle.pop(key, None)
        entry.readers += 1
        entry.kept |= keep
        return entry

    def drop_idle(self) -> bool:
        """Gives back what the entry holds that has been without readers the longest; False: there is none."""
        if not self._idle:
            return False
        self._drop(self._idle.pop(next(iter(self._idle))))
        return True

    def _make(self, key: str, length: int) -> CrossEntry:
        if not self._free:
            self.drop_idle()
        pages = self._pool.take(self.pages_for(length))
        assert pages is not None
        self.page_count += len(pages)
        entry = self._entries[key] = CrossEntry(self._free.pop(), key, pages, length)
        return entry

    def release(self, entry: CrossEntry) -> None:
        """One reader less; with the last one the pages go back, unless the entry is kept."""
        entry.readers -= 1
        if entry.readers == 0 and entry.kept and entry.written:
            self._idle[entry.key] = entry
        elif entry.readers == 0:
            self._drop(entry)

    def _drop(self, entry: CrossEntry) -> None:
        self._pool.give_back(entry.pages)
        self.page_count -= len(entry.pages)
        self._free.append(entry.index)
        del self._entries[entry.key]

    @property
    def pages(self) -> list[int]:
        """The pages of all entries."""
        return [page for entry in self._entries.values() for page in entry.pages]

    def check(self, read: Iterable[CrossEntry | None]) -> None:
        """Raises AssertionError unless the entries have just these readers. read: each sequence's entry."""
        if self.page_count != len(self.pages):
            raise AssertionError(f"{self.page_count} cross pages are counted, there are {len(self.pages)}")
        indices = [entry.index for entry in self._entries.values()]
        if sorted(indices + self._free) != list(range(self._most)):
            raise AssertionError(f"cross entries {indices} and free {self._free} do not make up all")
        read = list(read)
        for entry in self._entries.values():
            readers = sum(one is entry for one in read)
            if readers != entry.readers or (readers == 0) != (entry.key in self._idle):
                raise AssertionError(f"cross entry {entry.key} counts {entry.readers} readers, has {readers}")
