"""Whose turn it is where several callers wait for the same thing."""

from __future__ import annotations

from typing import Final

from tandem.cluster.callers import Caller

_REMEMBERED: Final = 1000  # callers, before those are forgotten whose next turn may begin at once


class Turns:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996): a caller that always waits gets its weight's
    share, and one that asks for less than its share waits for nobody's backlog. What a caller does not use is
    not saved up."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}  # by caller: the virtual time at which its share is used up
        self._now = 0.0  # virtual: the start of what was given out last

    def start(self, caller: Caller) -> float:
        """When the caller's next turn begins, in virtual time: the least goes first."""
        return max(self._ends.get(caller.name, 0.0), self._now)

    def took(self, caller: Caller, amount: float, *, in_turn: bool = True) -> None:
        """Tells that the caller was given so much; not `in_turn`: along with another one's turn."""
        start = self.start(caller)
        if in_turn:
            self._now = start
        self._ends[caller.name] = start + amount / caller.quotas.weight
        if len(self._ends) > _REMEMBERED:
            self._ends = {name: end for name, end in self._ends.items() if end > self._now}
