"""Systems that take turns, each in a process of its own, with its own threads and memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

# Before each measurement: the previous system's threads spin for a while, waiting for more.
PAUSE_S = 0.3

T = TypeVar("T")
LoadT = TypeVar("LoadT")
OutcomeT = TypeVar("OutcomeT")
LoadT_contra = TypeVar("LoadT_contra", contravariant=True)
OutcomeT_co = TypeVar("OutcomeT_co", covariant=True)


class System(Protocol[LoadT_contra, OutcomeT_co]):
    def do(self, load: LoadT_contra, /) -> OutcomeT_co: ...


class Process(Generic[LoadT, OutcomeT]):
    """A system, made and run in a process of its own."""

    def __init__(self, name: str, make: Callable[[], System[LoadT, OutcomeT]]) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, load: LoadT) -> OutcomeT:
        self._ours.send(load)
        outcome: OutcomeT = self._ours.recv()
        return outcome

    def close(self) -> None:
        self._ours.close()
        self._process.join()


def _answer(connection: Connection, make: Callable[[], System[Any, Any]]) -> None:
    system = make()
    with suppress(EOFError):  # no more work will come
        while True:
            connection.send(system.do(connection.recv()))


def in_turns(
    systems: Sequence[Process[LoadT, OutcomeT]], load: LoadT, number: int
) -> Iterator[tuple[str, OutcomeT]]:
    """Each system's name and outcome, in the order of the round with this number."""
    for system in rotated(list(systems), number):
        time.sleep(PAUSE_S)
        yield system.name, system.do(load)


def rotated(systems: list[T], by: int) -> list[T]:
    at = by % max(len(systems), 1)
    return systems[at:] + systems[:at]
