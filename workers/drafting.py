"""Drafts in a step's plan: how long they may be."""

from __future__ import annotations

from tandem.workers.step_plan import StepPlan


def lengthen(plan: StepPlan, budget: int, most: int, page_size: int, depth: int) -> int:
    """Lengthens rows by guesses at what follows them; returns how many.

    Args:
        budget: tokens left to the step; a sequence's draft fits into the pages it holds anyway.
        most: guesses for a sequence.
        page_size: positions in a page.
        depth: steps that are planned before the first of them is applied, at most.
    """
    rows, drafted = len(plan.rows), 0
    for row in plan.rows:
        sequence = row.sequence
        drafter = sequence.drafter
        if drafter is None or not drafter.run or not row.samples:
            continue
        decoding = sequence.request.decoding
        room = min(
            most,
            budget - drafted,
            len(sequence.pages) * page_size - sequence.computed,
            decoding.max_tokens - sequence.generated - sequence.in_flight,
        )
        draft = drafter.draft(
            room, rows, behind=sequence.in_flight - 1, costs=depth - 1, stops=decoding.stop_ids
        )
        row.token_ids += draft
        row.count += len(draft)
        row.samples += len(draft)
        sequence.drafted = len(draft)
        drafted += len(draft)
    return drafted
