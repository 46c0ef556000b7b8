"""Sequences ordered by a key, any of which may end at any time."""

from __future__ import annotations

import heapq

from tandem.workers.scheduling.plan import Sequence, State

_SPARE = 64  # entries of ended sequences that may stay before a sweep

Key = tuple[float, int]  # the second number makes it unique


class SequenceHeap:
    """A heap by key. Ended sequences are skipped, and removed in sweeps: a push costs amortized what it costs
    in any heap, and there are at most about twice as many entries as sequences lived at once."""

    def __init__(self) -> None:
        self._entries: list[tuple[Key, Sequence]] = []
        self._most = _SPARE  # entries before the next sweep

    def push(self, key: Key, sequence: Sequence) -> None:
        heapq.heappush(self._entries, (key, sequence))
        if len(self._entries) > self._most:
            self._entries = self.living()
            heapq.heapify(self._entries)
            self._most = 2 * len(self._entries) + _SPARE

    def first(self) -> tuple[Key, Sequence] | None:
        """The entry with the least key that has not ended."""
        while self._entries and self._entries[0][1].state is State.ENDED:
            heapq.heappop(self._entries)
        return self._entries[0] if self._entries else None

    def pop(self) -> None:
        """Removes the first entry."""
        heapq.heappop(self._entries)

    def living(self) -> list[tuple[Key, Sequence]]:
        return [entry for entry in self._entries if entry[1].state is not State.ENDED]
