"""The sequences of an engine: who waits, who runs, in which order, and until when."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from tandem.workers.scheduling.plan import Sequence, State
from tandem.workers.scheduling.sequence_heap import SequenceHeap


class SequenceQueue:
    """All sequences that have not ended. Every change of a sequence's `state` happens here."""

    def __init__(self) -> None:
        self.running: list[Sequence] = []  # in order; the last one is preempted first
        self.waiting = SequenceHeap()  # by order
        self._deadlines = SequenceHeap()
        self._sequences: dict[str, Sequence] = {}  # by request id

    def __len__(self) -> int:
        return len(self._sequences)

    def get(self, request_id: str) -> Sequence | None:
        return self._sequences.get(request_id)

    def add(self, sequence: Sequence) -> None:
        """A new one: it waits."""
        self._sequences[sequence.request.request_id] = sequence
        self.waiting.push(sequence.order, sequence)
        if sequence.deadline is not None:
            self._deadlines.push((sequence.deadline, sequence.order[1]), sequence)

    def late(self, now: float) -> Iterator[Sequence]:
        """Those whose deadline has come; whoever iterates ends each."""
        while (first := self._deadlines.first()) is not None and first[0][0] <= now:
            yield first[1]

    def start(self, sequence: Sequence) -> None:
        """The first that waits runs from now on."""
        self.waiting.pop()
        sequence.state = State.RUNNING
        insort(self.running, sequence, key=lambda one: one.order)

    def preempt(self, sequence: Sequence) -> None:
        """A running one waits again, at its old place."""
        self.running.remove(sequence)
        sequence.state = State.WAITING
        self.waiting.push(sequence.order, sequence)

    def end(self, sequence: Sequence) -> None:
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
        sequence.state = State.ENDED
        del self._sequences[sequence.request.request_id]

    def check(self) -> None:
        """Raises AssertionError where a sequence is not where its state says."""
        if self.running != sorted(self.running, key=lambda one: one.order):
            raise AssertionError("running sequences are out of order")
        waiting, running = {id(one) for _, one in self.waiting.living()}, {id(one) for one in self.running}
        for request_id, sequence in self._sequences.items():
            places = [state for state, ids in ((State.WAITING, waiting), (State.RUNNING, running))
                      if id(sequence) in ids]  # fmt: skip
            if places != [sequence.state]:
                raise AssertionError(f"{request_id} is {sequence.state} but in {places}")
        if len(waiting) + len(running) != len(self._sequences):
            raise AssertionError("a sequence waits or runs that is not known")
