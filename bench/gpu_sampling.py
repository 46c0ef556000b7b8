"""The sampler and the beam step by batch size: the device's choices against a CPU's, which the tests check,
and the time of a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import machine
import torch
from clock import Clock, Roofline

from tandem.workers.request import BeamSearch, Decoding, EncoderInput, EngineRequest
from tandem.workers.sampling.sampler import Sampled, Sampler
from tandem.workers.scheduling.plan import Row, Sequence

STEPS = 8  # steps whose choices are compared
MAX_TOKENS = 128
EOS = 1
# The share of choices that may differ: where two candidates differ by rounding only, either is right.
AGREEMENT = 0.99


@dataclass(frozen=True)
class Case:
    """A way to choose tokens for a batch of rows of logits."""

    name: str
    decoding: Decoding
    rows: int
    vocabulary: int
    target: str  # on an H200, an estimate

    @property
    def width(self) -> int:
        return self.decoding.beams.num_beams if self.decoding.beams else 1

    def measured(self, clock: Clock, roofline: Roofline, rounds: int) -> dict[str, Any]:
        """Raises AssertionError where the device chooses otherwise than a CPU."""
        logits = [random_logits(self.rows, self.vocabulary, seed) for seed in range(STEPS)]
        chosen, expected = (self._choices(logits, device) for device in (clock.device, torch.device("cpu")))
        agreement = float((chosen == expected).float().mean())
        assert agreement >= AGREEMENT, f"{agreement:.1%} of the choices are those of a CPU"
        steps, on_device = _Steps(self, clock.device), logits[0].to(clock.device)
        steps(on_device, 0)
        times = clock.launched(lambda: steps(on_device, 1), rounds)
        host, device = zip(*times, strict=True)
        bound = roofline.bound_s(logits[0].nbytes, 0)  # the logits, read once
        return {
            "batch": self.rows,
            "vocabulary": self.vocabulary,
            "agreement": agreement,
            "us": machine.spread([1e6 * value for value in device]),
            "host_us": machine.spread([1e6 * value for value in host]),
            "bound_us": round(1e6 * bound, 4),
            "of_bound": round(bound / median(device), 4),
            "target": self.target,
        }

    def _choices(self, logits: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """The choices, int64 [steps, choices of a step], on the CPU."""
        steps = _Steps(self, device)
        return torch.stack([steps(one.to(device), number).choice.cpu() for number, one in enumerate(logits)])


class _Steps:
    """A batch's steps, with rows as the scheduler makes them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._sampler = Sampler(case.rows, case.vocabulary, device)
        self._sequences = [
            Sequence(
                EngineRequest(str(first), EncoderInput("", ()), (0,), case.decoding),
                arrived=0.0, order=(0.0, first), deadline=None, tokens=[0], width=case.width,
                slots=list(range(first, first + case.width)),
            )
            for first in range(0, case.rows, case.width)
        ]  # fmt: skip
        self._sampler.start(self._sequences)

    def __call__(self, logits: torch.Tensor, number: int) -> Sampled:
        """The step after `number` tokens."""
        rows = [
            Row(one, number, 1, [], samples=1, width=one.width if number else 1) for one in self._sequences
        ]
        if not number:  # the prefix is computed for all beams at once
            logits = logits[:: self._sequences[0].width]
        return self._sampler.sample(logits, rows)


def random_logits(rows: int, vocabulary: int, seed: int) -> torch.Tensor:
    """float32 logits, the same on every machine, as peaked as a model's."""
    return 4 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def cases(vocabulary: int, batches: tuple[int, ...]) -> Iterator[Case]:
    greedy: dict[str, Any] = {
        "max_tokens": MAX_TOKENS, "min_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
        "repetition_penalty": 1.0, "seed": 7, "stop_ids": frozenset({EOS}), "eos_ids": frozenset({EOS}),
        "logprobs": None,
    }  # fmt: skip
    drawn = {
        "temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    }  # fmt: skip
    for beams, name, asked, target in (
        (1, "greedy", {}, ""),
        (1, "top-k, top-p, penalties", drawn, "60 us at 128 rows of 32k"),
        (4, "4 beams", {"beams": BeamSearch(4, 1, 1.0, early_stopping=False)}, "20 us at 128 rows of 32k"),
    ):
        decoding = Decoding(**{**greedy, **asked})
        for rows in batches:
            if rows >= beams:
                yield Case(name, decoding, rows - rows % beams, vocabulary, target)
