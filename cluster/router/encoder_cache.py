"""Which encoder outputs are kept alive for reuse."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from tandem.cluster.handoff import HiddenSlice


@dataclass(slots=True)
class _Batch:
    nbytes: int
    keys: set[str] = field(default_factory=set)


class EncoderCache:
    """Least-recently-used references by content key, bounded in bytes.

    An object in the store lives as long as anyone holds any slice of it, so whole batches are kept and
    dropped, never single inputs.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._slices: dict[str, HiddenSlice] = {}
        self._batches: OrderedDict[object, _Batch] = OrderedDict()  # by reference, oldest use first
        self.nbytes = 0

    def get(self, key: str) -> HiddenSlice | None:
        where = self._slices.get(key)
        if where is not None:
            self._batches.move_to_end(where.reference)
        return where

    def add(self, slices: dict[str, HiddenSlice], nbytes: int) -> None:
        """Keeps one batch. `slices` has its inputs by key, all of one reference; `nbytes` is the batch's
        size."""
        if nbytes > self._capacity or not slices:
            return
        reference = next(iter(slices.values())).reference
        for key, where in slices.items():
            self._remove(key)
            self._slices[key] = where
        self._batches[reference] = _Batch(nbytes, set(slices))
        self.nbytes += nbytes
        while self.nbytes > self._capacity:
            self._drop(next(iter(self._batches)))

    def forget(self, where: HiddenSlice) -> None:
        """Drops the whole batch of a slice whose object was lost."""
        if where.reference in self._batches:
            self._drop(where.reference)

    def clear(self) -> None:
        self._slices.clear()
        self._batches.clear()
        self.nbytes = 0

    def _remove(self, key: str) -> None:
        if (where := self._slices.pop(key, None)) is None:
            return
        batch = self._batches[where.reference]
        batch.keys.discard(key)
        if not batch.keys:
            self._drop(where.reference)

    def _drop(self, reference: object) -> None:
        batch = self._batches.pop(reference)
        self.nbytes -= batch.nbytes
        for key in batch.keys:
            del self._slices[key]
