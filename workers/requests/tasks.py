"""A model's tasks and languages, and how a request's choice of them is resolved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from tandem.errors import InvalidRequest
from tandem.workers.requests.languages.markers import Language, has_target, languages_of, targets_of
from tandem.workers.requests.languages.names import LanguageNames
from tandem.workers.requests.parameters.defaults import GenerationDefaults
from tandem.workers.requests.speech import Opening, Speech

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRANSLATION: Final = re.compile(
    r"translation_([A-Za-z]{2,3}(?:[-_]\w+)?)_to_([A-Za-z]{2,3}(?:[-_]\w+)?)", re.ASCII
)
_ANY: Final = "mul"  # ISO 639's code for several languages: the source of a model that says none


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
    task: str | None = None  # the task that translates it; None where the model does nothing else
    prefix: str = ""  # text before the input that chooses the target, where no task does


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

    def input(self, text: str) -> str:
        """What the encoder reads for a text. One that begins with a token for its target keeps it."""
        return text if has_target(self.prefix) and has_target(text) else self.prefix + text


class Tasks:
    """A model's tasks and languages.

    The languages are in its tokenizer's vocabulary (NLLB, mBART, M2M100; Marian's targets), in its tasks
    (T5), or they are its only pair (Marian). Every name of a language is as good as the model's own code.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        defaults: GenerationDefaults,
        languages: Mapping[str, Language] | None = None,
        pairs: Sequence[Pair] = (),
        speech: Speech | None = None,
    ) -> None:
        """`defaults` hold without a task; `languages` are those of the tokenizer, `pairs` what the model
        translates without a task; `speech` is that of a speech model."""
        self._tasks, self._defaults, self._speech = tasks, defaults, speech
        self.languages: Mapping[str, Language] = languages or {}
        named = ((_TRANSLATION.fullmatch(name), name) for name in tasks)
        self.pairs = [Pair(match[1], match[2], name) for match, name in named if match] + list(pairs)
        if self.languages:
            self.sources = self.targets = LanguageNames(self.languages)
        else:
            self.sources = LanguageNames((pair.source for pair in self.pairs), any_language=True)
            self.targets = LanguageNames(pair.target for pair in self.pairs)

    @classmethod
    def of(
        cls,
        tasks: Mapping[str, Task],
        defaults: GenerationDefaults,
        tokenizer: PreTrainedTokenizerBase,
        speech: Speech | None = None,
    ) -> Tasks:
        return cls(tasks, defaults, languages_of(tokenizer), _pairs_of(tokenizer), speech)

    @cached_property
    def translations(self) -> Mapping[str, Sequence[str]]:
        """The targets of each source, by the model's own codes; empty for a model that says nothing of
        languages."""
        if self.languages:
            return {code: list(self.languages) for code in self.languages}
        targets: dict[str, list[str]] = {}
        for pair in self.pairs:
            targets.setdefault(pair.source, []).append(pair.target)
        return targets

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
        prefix = ""
        if self.languages:
            asked = source_language, target_language
            codes = (
                None if asked[0] is None else self.sources.resolve(asked[0], "source_language"),
                None if asked[1] is None else self.targets.resolve(asked[1], "target_language"),
            )
            source, target = (None if code is None else self.languages[code] for code in codes)
            task = self._tasks_of_languages.get(codes) if task is None else task
        elif source_language is not None or target_language is not None:
            if task is not None:
                field = "target_language" if source_language is None else "source_language"
                raise InvalidRequest("does not go with task, which says it already", field=field)
            pair = self._pair(source_language, target_language)
            task, prefix = pair.task, pair.prefix
        chosen = None if task is None else self._tasks[task]
        return ResolvedTask(
            task=task,
            prefix=prefix or self.prefix(task),
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

    @cached_property
    def _tasks_of_languages(self) -> Mapping[tuple[str | None, str | None], str]:
        """The tasks that translate between languages of the tokenizer, by its own codes."""
        found: dict[tuple[str | None, str | None], str] = {}
        for pair in self.pairs:
            sources, targets = self.sources.matching(pair.source), self.targets.matching(pair.target)
            if len(sources) == len(targets) == 1 and pair.task is not None:
                found[sources[0], targets[0]] = pair.task
        return found

    def _pair(self, source: str | None, target: str | None) -> Pair:
        """The pair from `source` to `target`; one of them may be None where that leaves no choice."""
        found = self.pairs
        asked: tuple[tuple[str, str | None, Literal[0, 1], LanguageNames], ...] = (
            ("target_language", target, 1, self.targets),
            ("source_language", source, 0, self.sources),
        )
        for field, name, at, names in asked:
            there = _listed(found, at)
            if not there:
                raise InvalidRequest("this model says nothing of languages", field=field)
            if name is not None:
                code = names.resolve(name, field)
                found = [pair for pair in found if pair[at] == code]
            if not found:
                raise InvalidRequest(
                    f"{name!r:.40} is not one of this model's languages from which there is {target}: "
                    f"{there}",
                    field=field,
                )
        if len(found) > 1:
            at = 1 if target is None else 0
            raise InvalidRequest(
                f"is needed: one of {_listed(found, at)}",
                field="target_language" if at else "source_language",
            )
        return found[0]


def _pairs_of(tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """What a tokenizer says that its model translates: from one language to another, or to several, which are
    then among its tokens."""
    source, target = (getattr(tokenizer, f"{side}_lang", None) for side in ("source", "target"))
    if tokens := targets_of(tokenizer):
        return [Pair(source or _ANY, code, prefix=f"{token} ") for code, token in tokens.items()]
    return [Pair(source, target)] if source and target else []


def _listed(pairs: Iterable[Pair], at: Literal[0, 1]) -> str:
    return ", ".join(sorted({pair[at] for pair in pairs}))
