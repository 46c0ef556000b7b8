"""Drafts in a step's plan: how long they may be."""

from __future__ import annotations

from tandem.workers.scheduling.plan import ON_DEVICE, StepPlan


def add_drafts(plan: StepPlan, budget: int, most: int, page_size: int, step_rows: int) -> int:
    """Lengthens rows by guesses at what follows them; returns how many.

    Args:
        budget: tokens left to the step; a sequence's draft fits into the pages it holds anyway.
        most: guesses for a sequence.
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
        count = drafter.draft(room, least, behind=sequence.in_flight - 1 + sequence.drafted)
        row.token_ids += [ON_DEVICE - number for number in range(1, count + 1)]
        row.count += count
        row.samples += count
        sequence.drafted += count
        drafted += count
    return drafted
