"""Beam search alone, on a model that is a table. Against transformers: parity/test_matrix.py."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from models import decoding

from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.sampling.sampler import Sampler
from tandem.workers.scheduling.plan import Found, Row, Sequence, StepResult

VOCAB, EOS, START = 5, 1, 0
CPU = torch.device("cpu")


class Table:
    """A model whose next token depends on the last one and on how many there are."""

    def __init__(self, seed: int, length: int) -> None:
        self.length = length
        self.logits = torch.randn(
            length, VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed)
        ).mul_(1.5)  # fmt: skip

    def all(self, penalty: float) -> Found:
        """Every answer there is, best first."""
        scores = self.logits.double().log_softmax(-1)
        found: Found = []
        for length in range(1, self.length + 1):
            for ids in itertools.product(range(VOCAB), repeat=length):
                if EOS in ids[:-1] or (ids[-1] != EOS and length < self.length):
                    continue
                pairs = enumerate(zip((START, *ids), ids, strict=False))
                total = sum(float(scores[step, last, token]) for step, (last, token) in pairs)
                found.append((list(ids), total / length**penalty, None))
        return sorted(found, key=lambda one: -one[1])


def sequence(slots: list[int], length: int, how: BeamSearch, **options: Any) -> Sequence:
    asked = decoding(max_tokens=length, beams=how, **options)
    request = EngineRequest(str(slots), EncoderInput("key", (1,)), (START,), asked)
    return Sequence(
        request, arrived=0.0, order=(0.0, 0), deadline=None, tokens=[START], width=how.num_beams, slots=slots
    )


class Searches:
    """Searches side by side, whose rows are made as the scheduler and the runner make them."""

    def __init__(self, slots: int) -> None:
        self.sampler = Sampler(slots, VOCAB, CPU)
        self.running: list[tuple[Sequence, Table]] = []
        self.last: dict[int, int] = {}  # slot → token

    def start(self, of: Sequence, table: Table) -> None:
        of.tokens = [START]
        self.sampler.start([of])
        self.running.append((of, table))

    def step(self) -> list[Found | None]:
        rows, logits = [], []
        for of, table in self.running:
            step = of.generated
            rows.append(Row(of, step, 1, [], samples=1, width=of.width if step else 1))
            lasts = [self.last[slot] for slot in of.slots] if step else [START]
            logits += [table.logits[step, last] for last in lasts]
        sampled = self.sampler.sample(torch.stack(logits), rows)
        slots = [slot for of, _ in self.running for slot in of.slots]
        self.last.update(zip(slots, sampled.choice.tolist(), strict=False))
        result: StepResult = sampled.wait()
        found = list(result.beams)
        for (of, _), answers in zip(list(self.running), found, strict=True):
            of.tokens.append(-1)
            if answers is not None:
                self.running = [one for one in self.running if one[0] is not of]
        return found

    def run(self) -> Found:
        while True:
            [found] = self.step()
            if found is not None:
                return found


def exhaustive(width: int, penalty: float, count: int = 8) -> BeamSearch:
    """Wide enough to lose nothing on the way."""
    return BeamSearch(width, count, penalty, early_stopping="never")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_search_finds_the_best_there_is(seed: int, penalty: float) -> None:
    table = Table(seed, length=3)
    width = (VOCAB - 1) ** 3 + (VOCAB - 1) ** 2
    searches = Searches(width)
    searches.start(sequence(list(range(width)), 3, exhaustive(width, penalty)), table)
    found, best = searches.run(), table.all(penalty)[:8]
    assert [ids for ids, *_ in found] == [ids for ids, *_ in best]
    assert [score for _, score, _ in found] == pytest.approx([score for _, score, _ in best], abs=1e-5)


def test_searches_of_all_widths_side_by_side_are_as_alone() -> None:
    """In any slots, begun at different steps."""
    shapes = [(2, False), (4, True), (2, "never"), (3, False)]
    cases = [
        (Table(20 + n, length=6), BeamSearch(width, width, 0.8, early_stopping=early))  # type: ignore[arg-type]
        for n, (width, early) in enumerate(shapes)
    ]
    alone = []
    for table, how in cases:
        searches = Searches(4)
        searches.start(sequence(list(range(how.num_beams)), 6, how), table)
        alone.append(searches.run())
    slots = iter([7, 2, 9, 0, 4, 1, 10, 3, 6, 8, 5])
    together = Searches(11)
    begun = [sequence(list(itertools.islice(slots, how.num_beams)), 6, how) for _, how in cases]
    found: dict[int, Found] = {}
    for number, (table, _) in enumerate(cases):
        together.start(begun[number], table)
        _collect(together, begun, found)
    while together.running:
        _collect(together, begun, found)
    assert [found[number] for number in range(4)] == alone


def _collect(searches: Searches, begun: list[Sequence], found: dict[int, Found]) -> None:
    order = [of for of, _ in searches.running]
    for of, answers in zip(order, searches.step(), strict=True):
        if answers is not None:
            found[begun.index(of)] = answers


def test_a_search_that_begins_anew_finds_the_same() -> None:
    table, how = Table(5, length=6), BeamSearch(3, 3, 1.0, early_stopping=False)
    searches, of = Searches(3), sequence([0, 1, 2], 6, how)
    searches.start(of, table)
    whole = searches.run()
    searches.start(of, table)
    for _ in range(2):
        searches.step()
    searches.running.clear()
    searches.start(of, table)
    assert searches.run() == whole


def test_a_longer_history_of_another_sequence_does_no_harm() -> None:
    table, how = Table(6, length=6), BeamSearch(3, 3, 1.0, early_stopping=False)
    searches, of = Searches(4), sequence([0, 1, 2], 6, how)
    searches.start(of, table)
    alone = searches.run()
    searches.start(of, table)
    searches.step()
    asked = decoding(max_tokens=90, repetition_penalty=2.0)
    request = EngineRequest("long", EncoderInput("key", (1,)), (START,) * 50, asked)
    other = Sequence(request, 0.0, (0.0, 1), None, [START] * 50, slots=[3])
    searches.sampler.start([other])
    searches.sampler.sample(torch.randn(1, VOCAB), [Row(other, 49, 1, [], samples=1)])
    assert searches.run() == alone
