"""Draft tokens: guesses at what a sequence says next, from what follows in its source where its last tokens
stand there, too (prompt lookup). The host decides how many get a row each; the device finds the match and
knows the tokens (`kernels.match_prompt_tokens`), and what it found comes back with the step's result.

The step that computes a sequence's next token verifies draft tokens after it, as more rows of the same
forward. That costs little where the source is copied, as in corrections and extractive summaries, and it
never changes an answer: a draft token is kept only if it is the token that would have come anyway.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Final

from tandem.workers.request import EngineRequest
from tandem.workers.scheduling.plan import ON_DEVICE, DraftOutcome, StepPlan
from tandem.workers.scheduling.processor_flags import ProcessorFlags

# The chance of a draft token to be right, by how many tokens before it stand in the source, too, from one
# up: initial values, which experience replaces. A draft token is seen to be right or wrong whether it got a
# row or not, so cautious values cost nothing.
CHANCES: Final = (0.1, 0.4, 0.7)
RATE: Final = 0.2  # at which a chance follows experience

# A draft token gets a row if it is right with this chance at least, …
LEAST: Final = 0.3
# … and with more among many sequences, where a row is a larger share of a step: a step takes as long as its
# rows and this many more, by kind of device. 8 to 12 on two cores, of a tiny and a small model. An estimate:
# an H200 takes 200 rows through a product in bfloat16 while it reads the weight.
STEP_ROWS: Final = {"cpu": 10, "cuda": 200}


class Drafter:
    """One sequence's. Every operation takes constant time."""

    def __init__(self, source: Seq[int]) -> None:
        """source: what may be copied; empty: nothing is drafted."""
        self.source = source  # for the device
        self._chances = list(CHANCES)
        self._run = self._left = 0

    @classmethod
    def of(cls, request: EngineRequest) -> Drafter:
        """No drafts for requests that sample, search beams, are scored or read their history: a draft token
        cannot be verified there in one step."""
        decoding = request.decoding
        if (
            not decoding.greedy
            or decoding.beams is not None
            or request.target_ids
            or ProcessorFlags.of(request) & ProcessorFlags.HISTORY
        ):
            return cls(())
        # Without an encoder the prompt is what can be copied.
        source = request.encoder.token_ids or request.prefix_ids
        # A token that ends the source ends the answer: nothing follows it.
        return cls(source[:-1] if source[-1] in decoding.stop_ids else source)

    def observe(self, outcome: DraftOutcome, tokens: int) -> None:
        """Learns from the next step, which computed so many tokens of the sequence."""
        if self._run:
            for number in range(min(outcome.right + 1, tokens, self._left)):
                level = self._level(number)
                self._chances[level] += RATE * ((number < outcome.right) - self._chances[level])
        _, self._run, self._left = outcome

    def draft(self, most: int, least: float, *, after: int) -> int:
        """How many draft tokens, `most` at most, are all right with a chance of `least`, and of LEAST.

        after: so many tokens, guessed as well, are on their way before them.
        """
        count, chance = 0, 1.0
        for number in range(min(after + most, self._left) if self._run else 0):
            chance *= self._chances[self._level(number)]
            if chance < max(least, LEAST):
                break
            count += number >= after
        return count

    def _level(self, number: int) -> int:
        """The index in `_chances` of the draft token after so many."""
        return min(self._run + number, len(CHANCES)) - 1


def add_drafts(plan: StepPlan, budget: int, most: int, page_size: int, step_rows: int) -> int:
    """Adds draft tokens to the plan's rows; returns how many.

    Args:
        budget: tokens left to the step.
        most: draft tokens of a sequence. They fit into the pages it holds anyway.
        page_size: positions in a page.
        step_rows: a step takes as long as its rows and this many more.
    """
    # The chance that pays for another row.
    least, drafted = len(plan.rows) / (len(plan.rows) + step_rows) if plan.rows else 0, 0
    for row in plan.rows:
        sequence = row.sequence
        drafter = sequence.drafter
        if drafter is None or not row.samples:
            continue
        room = min(
            most,
            budget - drafted,
            len(sequence.pages) * page_size - sequence.computed - sequence.drafted,
            sequence.request.decoding.max_tokens - sequence.generated - sequence.in_flight - sequence.drafted,
        )
        count = drafter.draft(room, least, after=sequence.in_flight - 1 + sequence.drafted)
        row.token_ids += [ON_DEVICE - number for number in range(1, count + 1)]
        row.count += count
        row.samples += count
        sequence.drafted += count
        drafted += count
    return drafted
