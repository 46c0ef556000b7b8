"""What sequences run on, slots and pages: how much there is, and which sequence holds what."""

from __future__ import annotations

from collections.abc import Iterable

from tandem.errors import InvalidRequest
from tandem.workers.request import EngineRequest
from tandem.workers.scheduling.cross_entries import CrossEntries
from tandem.workers.scheduling.pages import PagePool
from tandem.workers.scheduling.plan import CrossEntry, Sequence, WaitingFor


class Resources:
    """Slots, pages of self-attention, and cross-attention pages shared by encoder input.

    A sequence holds from `admit` to `release`; what it holds is in its `slots`, `pages` and `cross`. Who is
    admitted and who makes room is the scheduler's business.
    """

    def __init__(self, pool: PagePool, slots: int, cross_planes: int = 1) -> None:
        """slots: sequences that run at once, every beam of a search by itself. cross_planes: a page holds so
        many times the positions of an encoder input."""
        self.pool = pool
        self.slots = slots
        self._cross = CrossEntries(pool, slots, cross_planes)
        self._free_slots = list(range(slots - 1, -1, -1))

    @property
    def used_slots(self) -> int:
        return self.slots - len(self._free_slots)

    @property
    def cross_pages(self) -> int:
        """Pages that hold cross-attention K/V, of inputs that are only kept excluded."""
        return self._cross.page_count - self._cross.idle_pages

    @property
    def free_pages(self) -> int:
        """Pages that hold nothing, or inputs that are only kept."""
        return self.pool.free + self._cross.idle_pages

    def check_fits(self, request: EngineRequest, width: int) -> None:
        """Raises InvalidRequest where a request of `width` beams has no room even if it runs alone."""
        if width > self.slots:
            raise InvalidRequest(
                f"the engine decodes {self.slots} sequences at once, got {width}", field="num_beams"
            )
        encoder, prefix = len(request.encoder.token_ids), len(request.prefix_ids)
        new = request.decoding.max_tokens
        need = self._cross.pages_for(encoder) + width * self.pool.pages_for(prefix + new)
        if need > self.pool.total:
            raise InvalidRequest(
                f"{encoder} encoder tokens, {prefix} decoder prompt tokens and {new} new tokens need {need} "
                f"pages of K/V memory, the engine has {self.pool.total}",
                field="max_tokens",
            )

    def holds_input(self, key: str) -> bool:
        """Whether the pages have this encoder input, or will have it by a step in flight."""
        return self._cross.get(key) is not None

    def lacks(self, sequence: Sequence) -> WaitingFor | None:
        """What there is too little of for `admit`."""
        if sequence.width > len(self._free_slots):
            return WaitingFor.SLOTS
        encoder, cross_pages = sequence.request.encoder, 0
        if not self._cross.is_read(encoder.key):
            cross_pages = self._cross.pages_for(len(encoder.token_ids))
        # Room for one more token, and for each running sequence to grow: fewer preemptions.
        self_pages = sequence.width * self.pool.pages_for(len(sequence.tokens) + 1)
        if cross_pages + self_pages + self.used_slots > self.free_pages:
            return WaitingFor.PAGES
        return None

    def admit(self, sequence: Sequence) -> CrossEntry:
        """Gives a sequence that lacks nothing its slots, and its encoder input's pages. The entry's only
        reader is its first: K and V are still to be computed."""
        encoder = sequence.request.encoder
        if not self.holds_input(encoder.key):
            self._make_free(self._cross.pages_for(len(encoder.token_ids)))
        keep = sequence.request.keeps_input
        sequence.cross = entry = self._cross.read(encoder.key, len(encoder.token_ids), keep=keep)
        sequence.slots = [self._free_slots.pop() for _ in range(sequence.width)]
        return entry

    def grow(self, sequence: Sequence, count: int) -> list[tuple[int, int, int]] | None:
        """Gives a sequence the pages of `count` more positions, each as `StepPlan.new_pages` has it. None
        where there are too few: none is given then."""
        more = self._pages(sequence, count) - len(sequence.pages)
        if not more:  # as at most steps
            return []
        self._make_free(more)
        if (pages := self.pool.take(more)) is None:
            return None
        new = []
        for page in pages:
            index, beam = divmod(len(sequence.pages), sequence.width)
            new.append((sequence.slots[beam], index, page))
            sequence.pages.append(page)
        return new

    def trim(self, sequence: Sequence) -> None:
        """Takes back the pages that a sequence needs only if more draft tokens are right than were. A step in
        flight writes to none of them: where it may write is where the sequence may have come to."""
        need = self._pages(sequence)
        self.pool.give_back(sequence.pages[need:])
        del sequence.pages[need:]

    def release(self, sequence: Sequence) -> None:
        """Takes all back. Steps in flight may still write there: the device works in order, so whoever gets
        the pages next writes later."""
        self._free_slots += sequence.slots
        sequence.slots = []
        self.pool.give_back(sequence.pages)
        sequence.pages = []
        assert sequence.cross is not None
        self._cross.release(sequence.cross)
        sequence.cross = None

    def _make_free(self, pages: int) -> None:
        """Drops inputs that are only kept, while fewer pages are free."""
        while self.pool.free < pages and self._cross.drop_idle():
            pass

    def _pages(self, sequence: Sequence, more: int = 0) -> int:
        """Pages for the positions a sequence may have come to, and some more."""
        return sequence.width * self.pool.pages_for(sequence.computed + sequence.drafted + more)

    def check(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError unless these sequences hold what they need, and all else is free."""
        running = list(running)
        self.pool.check([page for s in running for page in s.pages] + self._cross.pages)
        self._cross.check(s.cross for s in running)
        slots = [slot for s in running for slot in s.slots]
        if sorted(slots + self._free_slots) != list(range(self.slots)):
            raise AssertionError(f"slots {slots} and free {self._free_slots} do not make up all")
        for s in running:
            if len(s.pages) != self._pages(s) or len(s.slots) != s.width:
                raise AssertionError(
                    f"{s.request.request_id} holds {len(s.slots)} slots, {len(s.pages)} pages"
                )
