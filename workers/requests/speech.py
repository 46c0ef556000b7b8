"""What a speech model's decoder starts from: Whisper's tokens of language, task and timestamps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.workers.requests.languages.names import LanguageNames

T = TypeVar("T")
Heads = tuple[tuple[int, int], ...]  # the decoder's cross-attention has them: layer and head
Opening = tuple[tuple[int, ...], ...]  # for each position after the start token, the ids that may stand there


@dataclass(frozen=True)
class Speech:
    """A model's `generation_config.json`, read as transformers' `_retrieve_init_tokens` reads it.

    English-only models know no languages and no tasks.
    """

    languages: Mapping[str, int]  # token ids by code, as "en"
    tasks: Mapping[str, int]  # the token ids of "transcribe" and "translate"
    language: str | None  # the configuration's own, for requests that say none
    task: str | None
    # What follows the start token where neither a request nor the configuration says a language or a task:
    # the older `forced_decoder_ids`. None: the language, to be detected.
    forced: tuple[int | None, ...]
    no_timestamps_id: int | None
    before_id: int | None = None  # begins what was said before the start token: "<|startofprev|>"
    max_initial_timestamp: int | None = None  # in steps of a time; None: any may come first
    # How recordings of many windows are transcribed, for requests that do not say.
    condition_on_prev_tokens: bool = False
    compression_ratio_threshold: float | None = None
    logprob_threshold: float | None = None
    no_speech_threshold: float | None = None
    # The heads that follow the audio, for the times of words; None: the configuration names none.
    alignment_heads: Heads | None = None
    decoder_heads: tuple[int, int] = (0, 0)  # layers of the decoder, heads of each
    median_filter_width: int = 7  # encoder positions along which attention is filtered; odd

    @classmethod
    def read(cls, config: Mapping[str, Any], generation: Mapping[str, Any]) -> Speech:
        """Raises ModelLoadError, naming the key that is malformed."""
        multilingual = generation.get("is_multilingual", True)
        forced = generation.get("forced_decoder_ids") or config.get("forced_decoder_ids") or []
        return cls(
            languages=_languages(generation.get("lang_to_id")) if multilingual else {},
            tasks=_ids(generation.get("task_to_id"), "task_to_id") if multilingual else {},
            language=_typed(generation, "language", str),
            task=_typed(generation, "task", str),
            forced=_forced(forced),
            no_timestamps_id=_typed(generation, "no_timestamps_token_id", int),
            before_id=_before_id(config, generation),
            max_initial_timestamp=_typed(generation, "max_initial_timestamp_index", int),
            condition_on_prev_tokens=bool(generation.get("condition_on_prev_tokens")),
            compression_ratio_threshold=_number(generation, "compression_ratio_threshold"),
            logprob_threshold=_number(generation, "logprob_threshold"),
            no_speech_threshold=_number(generation, "no_speech_threshold"),
            alignment_heads=_heads(generation.get("alignment_heads")),
            decoder_heads=(config.get("decoder_layers", 0), config.get("decoder_attention_heads", 0)),
            median_filter_width=config.get("median_filter_width", 7),
        )

    @property
    def first_time_id(self) -> int:
        """The time 0; those after it are 0.02 s apart each. For models that have times."""
        assert self.no_timestamps_id is not None
        return self.no_timestamps_id + 1

    def code(self, token_id: int) -> str:
        """A language's, of its token."""
        return next(code for code, one in self.languages.items() if one == token_id)

    def opening(self, language: str | None, task: str | None, *, timestamps: bool = False) -> Opening:
        """What follows the start token. The one position with several ids is the language's, where none is
        said: the model is to say it.

        language: its name, code or token ("<|en|>"). Raises InvalidRequest for what the model
        does not know.
        """
        for field, said in (("source_language", language), ("task", task)):
            if said is not None and not self.languages:
                raise InvalidRequest("is not for an English-only model", field=field)
        language, task = language or self.language, task or self.task
        ids: list[int | None] = [] if language or task else list(self.forced)
        if language is not None:
            ids[:1] = [self._language_id(language)]
        elif ids[:1] in ([], [None]):
            ids[:1] = [None] if self.languages else []
        if task is not None:
            ids.append(self._task_id(task))
        elif language is not None and "transcribe" in self.tasks:
            ids.append(self.tasks["transcribe"])
        if timestamps and ids[-1:] == [self.no_timestamps_id]:
            del ids[-1]
        elif not timestamps and self.no_timestamps_id is not None and ids[-1:] != [self.no_timestamps_id]:
            ids.append(self.no_timestamps_id)
        every = tuple(self.languages.values())
        return tuple(every if token_id is None else (token_id,) for token_id in ids)

    def _language_id(self, language: str) -> int:
        names = _names(tuple(self.languages))
        return self.languages[names.resolve(language, "source_language")]

    def _task_id(self, task: str) -> int:
        if task not in self.tasks:
            raise InvalidRequest(
                f"{task[:60]!r} is not a task of this model; it has {', '.join(sorted(self.tasks))}",
                field="task",
            )
        return self.tasks[task]


def english_name(code: str) -> str:
    """A language's name in English and small letters, as transformers and OpenAI have it."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    name: str = LANGUAGES.get(code, code)
    return name


def opened(opening: Opening, language_id: int) -> Opening:
    """The opening after the model has said the language."""
    return tuple((language_id,) if len(ids) > 1 else ids for ids in opening)


def language_of(speech: Speech, opening: Opening) -> str:
    """The code of the language in an opening; "" where the model is still to say it."""
    if not speech.languages:
        return "en"
    known = set(speech.languages.values())
    said = [ids[0] for ids in opening if len(ids) == 1 and ids[0] in known]
    return speech.code(said[0]) if said else ""


@cache
def _names(codes: tuple[str, ...]) -> LanguageNames:
    """A model's languages by the names that transformers has for them, and all others."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return LanguageNames(codes, {name: code for name, code in TO_LANGUAGE_CODE.items() if code in codes})


def _typed(generation: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    value = generation.get(key)
    if value is not None and type(value) is not kind:
        raise ModelLoadError(f"must be of type {kind.__name__}, got {value!r:.100}", field=key)
    return value


def _number(generation: Mapping[str, Any], key: str) -> float | None:
    value = generation.get(key)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise ModelLoadError(f"must be a number, got {value!r:.100}", field=key)
    return value


def _before_id(config: Mapping[str, Any], generation: Mapping[str, Any]) -> int | None:
    """As transformers' `_prepare_decoder_input_ids` finds it, where older configurations do not have it."""
    suppressed = generation.get("suppress_tokens") or config.get("suppress_tokens") or []
    if generation.get("prev_sot_token_id") is None and isinstance(suppressed, list) and len(suppressed) > 1:
        return _typed({"suppress_tokens": suppressed[-2]}, "suppress_tokens", int)
    return _typed(generation, "prev_sot_token_id", int)


def _languages(value: object) -> dict[str, int]:
    """transformers has them by token, "<|en|>"."""
    return {
        token.removeprefix("<|").removesuffix("|>"): token_id
        for token, token_id in _ids(value, "lang_to_id").items()
    }


def _ids(value: object, key: str) -> dict[str, int]:
    value = {} if value is None else value
    if not isinstance(value, dict) or not all(type(token_id) is int for token_id in value.values()):
        raise ModelLoadError(f"must be an object of token ids, got {value!r:.100}", field=key)
    return dict(value)


def _heads(value: object) -> Heads | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in value
    ):
        raise ModelLoadError(f"must be pairs of layer and head, got {value!r:.100}", field="alignment_heads")
    return tuple((layer, head) for layer, head in value)


def _forced(value: object) -> tuple[int | None, ...]:
    """Pairs of position and token id, the positions 1, 2, …"""
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and (pair[1] is None or type(pair[1]) is int)
        for pair in value
    ):
        raise ModelLoadError(
            f"must be pairs of position and id, got {value!r:.100}", field="forced_decoder_ids"
        )
    if [pair[0] for pair in value] != list(range(1, len(value) + 1)):
        raise ModelLoadError("must be for the positions from 1 on, without a gap", field="forced_decoder_ids")
    return tuple(pair[1] for pair in value)
