"""Which sequences there are and what they hold, slots and pages, until they are preempted or end."""

from __future__ import annotations

from tandem.workers.request import Delta, EngineStats
from tandem.workers.scheduling.cross_entries import CrossEntries
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import Sequence, State
from tandem.workers.scheduling.sequence_heap import SequenceHeap


class Resources:
    """Kept by `Scheduler`, which is one."""

    def __init__(self, pool: PagePool, max_num_seqs: int) -> None:
        """max_num_seqs: sequences running at once (slots)."""
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self._sequences: dict[str, Sequence] = {}  # all that have not ended, by request id
        self._waiting = SequenceHeap()  # by order
        self._deadlines = SequenceHeap()  # by deadline
        self._running: list[Sequence] = []  # in order
        self._cross = CrossEntries(pool, max_num_seqs)
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._ended: list[Delta] = []
        self._arrivals = 0
        self._steps = 0
        self._generated = 0
        self._encoded = 0
        self._preemptions = 0
        self._drafted = 0
        self._accepted = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._ended)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to waiting, at its old place. It has no row in this plan: rows are made in order, and
        the last in order is preempted."""
        self._release(sequence)
        sequence.state = State.WAITING
        if sequence.width > 1:  # its tokens go with its slots: it starts anew, and finds the same
            sequence.tokens = list(sequence.request.prefix_ids)
        self._waiting.push(sequence.order, sequence)
        self._preemptions += 1

    def _end(self, sequence: Sequence, delta: Delta | None) -> None:
        """Frees what it holds. `delta` is its last where none comes from `apply`."""
        if sequence.state is State.RUNNING:
            self._release(sequence)
        sequence.state = State.ENDED
        del self._sequences[sequence.request.request_id]
        if delta is not None:
            self._ended.append(delta)

    def _release(self, sequence: Sequence) -> None:
        """Slot and pages go back. Steps in flight may still write there: the device works in order,
        so whoever gets them next writes later."""
        self._running.remove(sequence)
        self._free_slots += sequence.slots
        sequence.slots = []
        self.pool.give_back(sequence.pages)
        sequence.pages = []
        assert sequence.cross is not None
        self._cross.release(sequence.cross)
        sequence.cross = None

    def _need(self, sequence: Sequence, more: int = 0) -> int:
        """Pages for the positions it may have come to, and some more."""
        return sequence.width * self.pool.pages_for(sequence.computed + sequence.drafted + more)

    def _trim(self, sequence: Sequence) -> None:
        """Gives the pages back that it would only have needed if more guesses had been right. A step in
        flight writes to none of them: where it may write is where the sequence may have come to."""
        need = self._need(sequence)
        self.pool.give_back(sequence.pages[need:])
        del sequence.pages[need:]

    def _take_ended(self) -> list[Delta]:
        ended, self._ended = self._ended, []
        return ended

    # -- observation

    def stats(self) -> EngineStats:
        return EngineStats(
            running=self.max_num_seqs - len(self._free_slots),
            waiting=len(self._sequences) - len(self._running),
            max_running=self.max_num_seqs,
            free_pages=self.pool.free,
            total_pages=self.pool.total,
            cross_pages=len(self._cross.pages),
            steps=self._steps,
            generated_tokens=self._generated,
            encoded_tokens=self._encoded,
            preemptions=self._preemptions,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
        )

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold. Cheap enough for production."""
        held = [page for s in self._running for page in s.pages]
        self.pool.check(held + self._cross.pages)
        self._cross.check(s.cross for s in self._running)
        slots = [slot for s in self._running for slot in s.slots]
        if sorted(slots + self._free_slots) != list(range(self.max_num_seqs)):
            raise AssertionError(f"slots {slots} and free {self._free_slots} do not make up all")
        if self._running != sorted(self._running, key=lambda s: s.order):
            raise AssertionError("running sequences are out of order")
        waiting = {id(s) for _, s in self._waiting.living()}
        for sequence in self._sequences.values():
            if sequence.state is State.ENDED:
                raise AssertionError(f"{sequence.request.request_id} ended but is still known")
            if (sequence.state is State.WAITING) != (id(sequence) in waiting):
                raise AssertionError(
                    f"{sequence.request.request_id} is {sequence.state} but queued otherwise"
                )
            if sequence.state is State.RUNNING and (
                len(sequence.pages) != self._need(sequence)
                or len(sequence.slots) != sequence.width
                or sequence.computed > sequence.known
            ):
                raise AssertionError(f"{sequence.request.request_id} holds the wrong number of pages")
