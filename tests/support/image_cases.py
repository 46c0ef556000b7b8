"""What tests of models share that read images within a text: prompts with images, tiny checkpoints with
transformers' answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from PIL.Image import Image

from tandem import LLM, SamplingParams
from tandem.params import Params


@dataclass(frozen=True)
class Case:
    prompt: str
    images: list[Image]

    @property
    def asked(self) -> Any:
        """The prompt of `LLM.generate`."""
        if not self.images:
            return self.prompt
        return {"prompt": self.prompt, "multi_modal_data": {"image": self.images}}


ReferenceT = TypeVar("ReferenceT", bound="OneByOne")
Answered = list[tuple[Case, list[int]]]  # cases and generated ids, EOS included


class OneByOne(ABC):
    """transformers with one checkpoint, one request at a time."""

    least_lead: ClassVar[float]  # of each token's logit over the next: below it rounding decides

    @abstractmethod
    def generate(self, case: Case, **options: Any) -> tuple[list[int], float]:
        """The generated ids, EOS included, and the smallest lead of a token's logit over the next."""

    def clear(self, cases: Iterable[Case], **options: Any) -> Answered:
        """The cases whose answers do not hang on rounding, and these answers."""
        found = [(one, *self.generate(one, **options)) for one in cases]
        return [(one, ids) for one, ids, lead in found if lead > self.least_lead]


class Tiny(Generic[ReferenceT]):
    """A checkpoint, and prompts with no, one, two and three images with transformers' answers."""

    def __init__(
        self, folder: Path, reference: ReferenceT, cases: Sequence[Case], params: SamplingParams, longest: int
    ) -> None:
        """`params` are greedy, with a length; `longest`: encoder positions."""
        self.folder, self.reference = folder, reference
        self._cases, self._params, self._longest = cases, params, longest

    @cached_property
    def found(self) -> Answered:
        """The cases whose answers are clear."""
        found = self.reference.clear(self._cases, max_new_tokens=self._params.max_tokens)
        assert {len(one.images) for one, _ in found} == {0, 1, 2, 3}
        return found

    @property
    def expected(self) -> list[list[int]]:
        return [ids for _, ids in self.found]

    def answers(self, **options: Any) -> Any:
        """What an engine with these options answers to all at once, and its stats; nothing is left in it."""
        usual: dict[str, Any] = {
            "dtype": "float32",
            "max_encoder_length": self._longest,
            "check_invariants": True,
        }
        with LLM(str(self.folder), **(usual | options)) as llm:
            answers = generate(llm, [one for one, _ in self.found], self._params)
            stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
        return answers, stats


def generate(llm: LLM, cases: Sequence[Case], params: Params) -> list[list[int]]:
    outputs = llm.generate([one.asked for one in cases], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]
