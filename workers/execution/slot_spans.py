"""What each slot's positions read of their encoder inputs, in models where it depends on the position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from tandem.workers.execution.packet import CrossSpans, Ints, Rows


class Parts(NamedTuple):
    """Positions in parts, each of which reads one part of one encoder input."""

    borders: Ints  # [parts + 1], among the positions
    entry: Ints  # cross entry
    begin: Ints  # of its positions begin:end are read
    end: Ints
    own: Ints  # 0 or 1, see `request.CrossSpan`


class SlotSpans:
    """The spans of the sequences in all slots, on the host, and each slot's last one, on the device."""

    def __init__(self, slots: int, device: torch.device) -> None:
        # int32 [slots + 1, 2]: `DecodeTables.cross_spans`. The last slot is no sequence's.
        self.last = torch.zeros(slots + 1, 2, dtype=torch.int32, device=device)
        self.last[slots, 1] = 1
        self._of: dict[int, list[list[int]]] = {}  # by slot: `request.CrossSpan` each

    def take(self, new: CrossSpans, send: Callable[..., Sequence[torch.Tensor]]) -> None:
        """The spans of new sequences; `send` brings arrays to the device."""
        bounds = np.flatnonzero(np.diff(new.slot, prepend=-1, append=-1))
        for first, stop in pairwise(bounds.tolist()):
            self._of[int(new.slot[first])] = new.values[first:stop, 1:].tolist()
        final = bounds[1:] - 1
        slots, begins, ends = send(new.slot[final], new.begin[final], new.end[final])
        self.last[slots] = torch.stack([begins, ends], dim=1).int()

    def parts(self, rows: Rows) -> Parts:
        """What the positions of these rows read."""
        found: list[tuple[int, int, int, int]] = []
        borders = [0]
        for slot, first, count, entry in rows.values[:, :4].tolist():
            spans, stop = self._of[slot], first + count
            for number, (start, begin, end, own) in enumerate(spans):
                until = spans[number + 1][0] if number + 1 < len(spans) else stop
                positions = min(stop, until) - max(first, start)
                if positions <= 0:
                    continue
                part = entry, begin, end, own
                if found and found[-1] == part:
                    borders[-1] += positions
                else:
                    found.append(part)
                    borders.append(borders[-1] + positions)
        entry, begin, end, own = np.array(found, dtype=np.int64).T
        return Parts(np.array(borders, dtype=np.int64), entry, begin, end, own)
