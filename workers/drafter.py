"""Guesses at what a sequence says next: what follows in its source where its last tokens stand there.

The step that computes a sequence's next token verifies guesses at those behind it, as more rows of the same
forward. That costs little where the source is copied, as in corrections and extractive summaries, and it
never changes an answer: a guess is kept only where it is the token that would have come anyway.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Seq
from typing import Final

from tandem.workers.need import Need
from tandem.workers.request import EngineRequest

# A guess's chance to be right, by how many tokens before it stand in the source too, from one up: to begin
# with. Experience replaces it, and costs nothing: a guess is seen to be right or wrong whether it was drafted
# or not. So these may be cautious.
CHANCES: Final = (0.1, 0.4, 0.7)
LONGEST: Final = len(CHANCES)
RATE: Final = 0.2  # at which a chance follows experience

# A guess is drafted if it is right with this chance at least, …
LEAST: Final = 0.3
# … and with more among many sequences, where a row is a larger share of a step: a step takes as long as its
# rows and this many more. (8 to 12 on two cores, of a tiny and a small model.)
STEP_ROWS: Final = 10


class Drafter:
    """The guesses of one sequence. Every operation takes constant time, but for one that reads the source."""

    def __init__(self, source: Seq[int], tokens: Seq[int]) -> None:
        """tokens: of the sequence, so far."""
        self._source = source
        self._chances = list(CHANCES)
        # Token → the position behind it, the last if several; only where something is behind it.
        self._after = dict(zip(source, range(1, len(source)), strict=False))
        # The like for longer n-grams, made when two such tokens come in a row.
        self._longer: list[dict[tuple[int, ...], int]] = []
        self._tokens = list(tokens)
        # The last `run` tokens stand in the source, before the one at `_next`; 0: nothing is known to follow.
        self._next = self.run = 0
        if self._tokens and self._tokens[-1] in self._after:
            self._find()

    def push(self, token: int) -> None:
        """The sequence grew by this one."""
        self._tokens.append(token)
        if self.run:
            right = self._source[self._next] == token
            level = min(self.run, LONGEST) - 1
            self._chances[level] += RATE * (right - self._chances[level])
            self._next += 1
            if right and self._next < len(self._source):
                self.run += 1
                return
            self.run = 0
        if token in self._after:  # most are not, where nothing is copied
            self._find()

    def _find(self) -> None:
        """Where the longest end of the sequence stands in the source; its last token does."""
        self._next, self.run = self._after[self._tokens[-1]], 1
        if len(self._tokens) < 2 or self._tokens[-2] not in self._after:
            return
        if not self._longer:
            self._index()
        for size, after in enumerate(self._longer, 2):
            at = after.get(tuple(self._tokens[-size:]))
            if at is None:
                return
            self._next, self.run = at, size

    def _index(self) -> None:
        source = self._source
        for size in range(2, LONGEST + 1):
            ngrams = zip(*(source[start:] for start in range(size)), strict=False)
            self._longer.append(dict(zip(ngrams, range(size, len(source)), strict=False)))

    def draft(self, most: int, rows: int, *, behind: int, costs: int, stops: Collection[int]) -> list[int]:
        """Up to `most` tokens, all of which will probably follow; none of `stops`, behind which nothing does.

        rows: sequences in the step. behind: so many tokens are on their way, and guessed, too. costs: tokens
        that the sequence goes without if it drafts; fewer are not worth it.
        """
        least = max(LEAST, rows / (rows + STEP_ROWS))
        draft: list[int] = []
        chance, gain = 1.0, 0.0
        guesses = self._source[self._next : self._next + behind + most] if self.run else ()
        for number, token in enumerate(guesses):
            chance *= self._chances[min(self.run + number, LONGEST) - 1]
            if chance < least or token in stops:
                break
            if number >= behind:
                draft.append(token)
                gain += chance
        return draft if gain > costs else []


def drafter_of(request: EngineRequest, tokens: Seq[int]) -> Drafter | None:
    """None where its tokens cannot be verified several at once: where each is not just the likeliest one, or
    depends on those before it by more than the model."""
    decoding = request.decoding
    greedy = decoding.temperature == 0 and decoding.beams is None and not request.target_ids
    if not greedy or Need.of(request) & Need.HISTORY:
        return None
    # Without an encoder the prompt is what can be copied.
    return Drafter(request.encoder.token_ids or request.prefix_ids, tokens)
