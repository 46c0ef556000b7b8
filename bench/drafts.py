"""An engine that drafts from the source and one that does not, in turns. Both must give the same tokens."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from copier import source

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import Decoding, EncoderInput, EngineRequest

Make = Callable[[int, random.Random], list[list[int]]]  # how many → inputs

LONGEST = 256  # most positions of an input, and of an answer


@dataclass(frozen=True)
class Outcome:
    answers: list[list[int]]
    seconds: float
    steps: int
    drafted: int
    accepted: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))


class Contender:
    def __init__(self, folder: Path, start: int, eos: int, draft_tokens: int, **options: Any) -> None:
        """options: fields of EngineConfig."""
        self.start, self.eos, self.drafts = start, eos, draft_tokens > 0
        self._engine = Engine(
            EngineConfig.of(
                model=str(folder), max_encoder_length=LONGEST, max_decoder_length=LONGEST,
                draft_tokens=draft_tokens, **options,
            )
        )  # fmt: skip

    def run(self, inputs: list[list[int]]) -> Outcome:
        how = Decoding(
            max_tokens=200, min_tokens=0, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0,
            repetition_penalty=1.0, seed=0, stop_ids=frozenset({self.eos}), eos_ids=frozenset({self.eos}),
            logprobs=None,
        )  # fmt: skip
        answers: dict[str, list[int]] = {str(number): [] for number in range(len(inputs))}
        before, began = self._engine.stats(), time.perf_counter()
        for name, ids in zip(answers, inputs, strict=True):
            encoder = EncoderInput(str(ids), tuple(ids))
            self._engine.submit(EngineRequest(name, encoder, (self.start,), how))
        while self._engine.has_work:
            for delta in self._engine.step():
                answers[delta.request_id] += delta.token_ids
        seconds, after = time.perf_counter() - began, self._engine.stats()
        return Outcome(
            list(answers.values()),
            seconds,
            after.steps - before.steps,
            after.drafted_tokens - before.drafted_tokens,
            after.accepted_tokens - before.accepted_tokens,
        )


def contenders(folder: Path, start: int, eos: int, **options: Any) -> list[Contender]:
    """The two engines, with one model."""
    return [
        Contender(folder, start, eos, draft_tokens, **options)
        for draft_tokens in (EngineConfig.draft_tokens, 0)
    ]


def copies(wrong: float, vocab_size: int, longest: int = 120) -> Make:
    """The copier's inputs, all of which it copies except this share."""
    return lambda count, rng: [
        source(rng.randint(longest // 3, longest), wrong, vocab_size, rng) for _ in range(count)
    ]


def extracts(span: int, vocab_size: int, turns: tuple[int, int]) -> Make:
    """Inputs of a copier with this span, which copies half of each, in this many turns."""
    return lambda count, rng: [
        source(2 * span * rng.randint(*turns), 0.0, vocab_size, rng) for _ in range(count)
    ]


def measure(both: list[Contender], at_once: int, rounds: int, make: Make, round_s: float) -> dict[str, Any]:
    """The two engines' figures with `at_once` requests. round_s: least seconds of a round."""
    found: list[dict[bool, Outcome]] = []
    for number in range(rounds + 1):
        parts: dict[bool, list[Outcome]] = {True: [], False: []}
        rng = random.Random(number)
        # The contenders alternate batch by batch: the machine is slower at one moment than at another.
        for turn in itertools.count():
            inputs = make(at_once, rng)
            for contender in both[:: 1 if turn % 2 else -1]:
                parts[contender.drafts].append(contender.run(inputs))
            assert parts[True][-1].answers == parts[False][-1].answers
            if all(sum(part.seconds for part in of_one) > round_s for of_one in parts.values()):
                break
        if number:  # the first round warms up
            found.append({drafts: _total(of_one) for drafts, of_one in parts.items()})
    return {
        "tokens_per_s": {
            "without": machine.spread([one[False].tokens / one[False].seconds for one in found]),
            "with": machine.spread([one[True].tokens / one[True].seconds for one in found]),
        },
        "ratio": machine.spread([one[False].seconds / one[True].seconds for one in found]),
        "steps_ratio": machine.spread([one[False].steps / one[True].steps for one in found]),
        "drafted_per_token": machine.spread([one[True].drafted / one[True].tokens for one in found]),
        "accepted_per_drafted": machine.spread(
            [one[True].accepted / max(1, one[True].drafted) for one in found]
        ),
    }


def _total(parts: list[Outcome]) -> Outcome:
    return Outcome(
        [answer for part in parts for answer in part.answers],
        *(sum(getattr(part, name) for part in parts) for name in ("seconds", "steps", "drafted", "accepted")),
    )
