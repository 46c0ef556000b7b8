"""A model's tasks and languages, and how a request's choice of them is resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tandem.errors import InvalidRequest
from tandem.workers.requests.defaults import GenerationDefaults
from tandem.workers.requests.languages import Language, language, languages_of
from tandem.workers.requests.speech import Opening, Speech

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRANSLATION: Final = re.compile(
    r"translation_([A-Za-z]{2,3}(?:[-_]\w+)?)_to_([A-Za-z]{2,3}(?:[-_]\w+)?)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Task:
    """An entry of config.json's `task_specific_params`: "summarization", "translation_en_to_fr", …"""

    settings: Mapping[str, Any]  # as they stand there
    defaults: GenerationDefaults  # the model's own, where the task sets no others

    @property
    def prefix(self) -> str:
        """Text that the model reads before the input."""
        prefix = self.settings.get("prefix")
        return prefix if isinstance(prefix, str) else ""


class Pair(NamedTuple):
    """Languages a model translates between, as its config or its tokenizer spells them."""

    source: str
    target: str
    task: str | None  # the task that translates it; None where the model does nothing else


@dataclass(frozen=True, slots=True)
class ResolvedTask:
    """A request's task and languages, resolved."""

    task: str | None
    prefix: str  # text before the input
    defaults: GenerationDefaults
    source: Language | None = None  # the input's, for a tokenizer that marks it
    target: Language | None = None  # the output's
    opening: Opening = ()  # what follows the decoder's start token, of a speech model
    said: str | None = None  # the request's option that the opening is from


class Tasks:
    """A model's tasks and languages.

    The languages are in its tokenizer's vocabulary (NLLB, mBART, M2M100), in its tasks (T5), or they are its
    only pair (Marian).
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        defaults: GenerationDefaults,
        languages: Mapping[str, Language] | None = None,
        pair: tuple[str, str] | None = None,
        speech: Speech | None = None,
    ) -> None:
        """`defaults` hold without a task; `languages` are those of the tokenizer, `pair` the only ones it
        knows; `speech` is that of a speech model."""
        self._tasks, self._defaults, self._speech = tasks, defaults, speech
        self.languages: Mapping[str, Language] = languages or {}
        named = ((_TRANSLATION.fullmatch(name), name) for name in tasks)
        self.pairs = [Pair(match[1], match[2], name) for match, name in named if match]
        if pair is not None:
            self.pairs.append(Pair(*pair, None))

    @classmethod
    def of(
        cls,
        tasks: Mapping[str, Task],
        defaults: GenerationDefaults,
        tokenizer: PreTrainedTokenizerBase,
        speech: Speech | None = None,
    ) -> Tasks:
        source, target = (getattr(tokenizer, f"{side}_lang", None) for side in ("source", "target"))
        pair = (source, target) if source and target else None
        return cls(tasks, defaults, languages_of(tokenizer), pair, speech)

    def __contains__(self, task: str) -> bool:
        return task in self._tasks

    def prefix(self, task: str | None) -> str:
        """The text before a task's input."""
        return "" if task is None else self._tasks[task].prefix

    def resolve(
        self,
        *,
        task: str | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
    ) -> ResolvedTask:
        """Raises InvalidRequest, naming the field and the choices, for what the model does not have."""
        if self._speech is not None:
            return self._resolve_speech(self._speech, task, source_language, target_language)
        if task is not None and task not in self._tasks:
            there = f"it has {', '.join(self._tasks)}" if self._tasks else "it declares none"
            raise InvalidRequest(f"{task[:60]!r} is not a task of this model; {there}", field="task")
        source = target = None
        if self.languages:
            source = language(self.languages, source_language, "source_language")
            target = language(self.languages, target_language, "target_language")
            named = f"translation_{source_language}_to_{target_language}"
            task = named if task is None and named in self._tasks else task
        elif source_language is not None or target_language is not None:
            if task is not None:
                field = "target_language" if source_language is None else "source_language"
                raise InvalidRequest("does not go with task, which says it already", field=field)
            task = self._pair(source_language, target_language).task
        chosen = None if task is None else self._tasks[task]
        return ResolvedTask(
            task=task,
            prefix=self.prefix(task),
            defaults=self._defaults if chosen is None else chosen.defaults,
            source=source,
            target=target,
        )

    def _resolve_speech(
        self, speech: Speech, task: str | None, source_language: str | None, target_language: str | None
    ) -> ResolvedTask:
        if target_language is not None:
            raise InvalidRequest(
                "is English where task is translate, else the source's", field="target_language"
            )
        return ResolvedTask(
            task=task,
            prefix="",
            defaults=self._defaults,
            opening=speech.opening(source_language, task),
            said="source_language" if source_language is not None else None if task is None else "task",
        )

    def _pair(self, source: str | None, target: str | None) -> Pair:
        """The pair from `source` to `target`; one of them may be None where that leaves no choice."""
        found = self.pairs
        asked: tuple[tuple[str, str | None, Literal[0, 1]], ...] = (
            ("target_language", target, 1),
            ("source_language", source, 0),
        )
        for field, code, at in asked:
            there = _listed(found, at)
            if code is not None:
                found = [pair for pair in found if pair[at] == code]
            if not there:
                raise InvalidRequest("this model says nothing of languages", field=field)
            if not found:
                which = "" if at == 1 or target is None else f" from which there is {target}"
                raise InvalidRequest(
                    f"{code!r:.20} is not one of this model's languages{which}: {there}", field=field
                )
        if len(found) > 1:
            at = 1 if target is None else 0
            raise InvalidRequest(
                f"is needed: one of {_listed(found, at)}",
                field="target_language" if at else "source_language",
            )
        return found[0]


def _listed(pairs: Iterable[Pair], at: Literal[0, 1]) -> str:
    return ", ".join(sorted({pair[at] for pair in pairs}))
