"""How many guesses at what a sequence says next are worth a row each: at what follows in its source where its
last tokens stand there, too. The device finds that and knows the guesses
(`kernels.match_prompt_tokens`); what it saw comes back with the tokens.

The step that computes a sequence's next token verifies guesses at those behind it, as more rows of the same
forward. That costs little where the source is copied, as in corrections and extractive summaries, and it
never changes an answer: a guess is kept only where it is the token that would have come anyway.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Final, NamedTuple

from tandem.workers.request import EngineRequest
from tandem.workers.scheduling.processor_flags import ProcessorFlags

# A guess's chance to be right, by how many tokens before it stand in the source too, from one up: to begin
# with. Experience replaces it, and costs nothing: a guess is seen to be right or wrong whether it was drafted
# or not. So these may be cautious.
CHANCES: Final = (0.1, 0.4, 0.7)
RATE: Final = 0.2  # at which a chance follows experience

# A guess is drafted if it is right with this chance at least, …
LEAST: Final = 0.3
# … and with more among many sequences, where a row is a larger share of a step: a step takes as long as its
# rows and this many more, by kind of device. 8 to 12 on two cores, of a tiny and a small model. An estimate:
# an H200 takes 200 rows through a product in bfloat16 while it reads the weight.
STEP_ROWS: Final = {"cpu": 10, "cuda": 200}


class DraftOutcome(NamedTuple):
    """Of a sequence, by a step."""

    right: int  # guesses, those not drafted included, up to the first wrong one
    run: int  # so many of its last tokens stand in its source, too; 0: nothing is known to follow
    left: int  # tokens of the source behind those


class Drafter:
    """One sequence's. Every operation takes constant time."""

    def __init__(self, source: Seq[int]) -> None:
        self.source = source  # for the device
        self._chances = list(CHANCES)
        self._run = self._left = 0

    def observe(self, seen: DraftOutcome, tokens: int) -> None:
        """What the next step showed, which computed so many tokens of the sequence."""
        if self._run:
            for number in range(min(seen.right + 1, tokens, self._left)):
                level = self._level(number)
                self._chances[level] += RATE * ((number < seen.right) - self._chances[level])
        _, self._run, self._left = seen

    def draft(self, most: int, least: float, *, behind: int) -> int:
        """How many guesses, `most` at most, are all right with a chance of `least`, and of LEAST.

        behind: so many guessed tokens are on their way before.
        """
        count, chance = 0, 1.0
        for number in range(min(behind + most, self._left) if self._run else 0):
            chance *= self._chances[self._level(number)]
            if chance < max(least, LEAST):
                break
            count += number >= behind
        return count

    def _level(self, number: int) -> int:
        """In `_chances`, of the guess behind so many."""
        return min(self._run + number, len(CHANCES)) - 1


def drafter_of(request: EngineRequest) -> Drafter:
    """Of no source where its tokens cannot be verified several at once: where each is not just the likeliest
    one, or depends on those before it by more than the model."""
    decoding = request.decoding
    greedy = decoding.temperature == 0 and decoding.beams is None and not request.target_ids
    if not greedy or ProcessorFlags.of(request) & ProcessorFlags.HISTORY:
        return Drafter(())
    # Without an encoder the prompt is what can be copied.
    source = request.encoder.token_ids or request.prefix_ids
    # Behind the token that ends both there is nothing to guess.
    return Drafter(source[:-1] if source[-1] in decoding.stop_ids else source)
