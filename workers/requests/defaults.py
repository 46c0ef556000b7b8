"""A model's own decoding parameters, for what a request leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.params import EarlyStopping


@dataclass(frozen=True)
class GenerationDefaults:
    """From the server's settings, else `generation_config.json`, else `config.json`, else greedy.

    A sampling parameter that none sets is off: transformers' implicit `top_k=50` is not copied.
    """

    temperature: float = 0.0  # 0: greedy, also where `do_sample` is false
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_id: int | None = None
    forced_eos_ids: tuple[int, ...] = ()
    suppress_ids: tuple[int, ...] = ()
    begin_suppress_ids: tuple[int, ...] = ()
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    renormalize: bool = False
    max_new_tokens: int | None = None
    max_length: int | None = None  # decoder start token and prompt included
    min_new_tokens: int = 0
    min_length: int = 0  # decoder start token and prompt included

    @property
    def beams(self) -> bool:
        """Whether the model's own way is beam search, or beam sampling."""
        return self.num_beams > 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GenerationDefaults:
        """From settings of transformers' names. Raises ModelLoadError for a malformed one."""

        def number(
            key: str, default: float, high: float = math.inf, *, low: float = 0, positive: bool = False
        ) -> float:
            value = settings.get(key)
            if value is None:
                return default
            real = isinstance(value, int | float) and not isinstance(value, bool)
            if not real or not low <= value <= high or (positive and value == 0):
                raise ModelLoadError(f"generation default {key} is out of range: {value!r}")
            return float(value)

        def count(key: str) -> int | None:
            return int(number(key, 0, positive=True)) if settings.get(key) is not None else None

        def ids(key: str) -> tuple[int, ...]:
            return ids_of(settings.get(key), key)

        return cls(
            temperature=number("temperature", 1.0) if settings.get("do_sample") else 0.0,
            top_k=int(number("top_k", 0)),
            top_p=number("top_p", 1.0, 1.0, positive=True),
            min_p=number("min_p", 0.0, 1.0),
            typical_p=number("typical_p", 1.0, 1.0, positive=True),
            repetition_penalty=number("repetition_penalty", 1.0, positive=True),
            no_repeat_ngram_size=int(number("no_repeat_ngram_size", 0)),
            encoder_no_repeat_ngram_size=int(number("encoder_no_repeat_ngram_size", 0)),
            bad_words_ids=_bad_words(settings.get("bad_words_ids")),
            forced_bos_id=next(iter(ids("forced_bos_token_id")), None),
            forced_eos_ids=ids("forced_eos_token_id"),
            suppress_ids=ids("suppress_tokens"),
            begin_suppress_ids=ids("begin_suppress_tokens"),
            num_beams=count("num_beams") or 1,
            length_penalty=number("length_penalty", 1.0, low=-math.inf),
            early_stopping=_early_stopping(settings.get("early_stopping")),
            renormalize=bool(settings.get("renormalize_logits")),
            max_new_tokens=count("max_new_tokens"),
            max_length=count("max_length"),
            min_new_tokens=int(number("min_new_tokens", 0)),
            min_length=int(number("min_length", 0)),
        )


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings or arguments of all layers, under transformers' names. A later layer goes before an earlier
    one; None counts as left out. A length in new tokens and one in all tokens exclude each other: the later
    one stands."""
    settings: dict[str, Any] = {}
    for layer in layers:
        for bound in ("max", "min"):
            if any(layer.get(name) is not None for name in (f"{bound}_length", f"{bound}_new_tokens")):
                settings.pop(f"{bound}_length", None)
                settings.pop(f"{bound}_new_tokens", None)
        settings |= {name: value for name, value in layer.items() if value is not None}
    return settings


# The settings that a server may make in place of the model's.
_NAMES: Final = frozenset(
    [
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
        "num_beams",
        "length_penalty",
        "early_stopping",
        "renormalize_logits",
        "max_new_tokens",
        "max_length",
        "min_new_tokens",
        "min_length",
    ]
)


def checked_overrides(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The server's own settings. Raises InvalidRequest for a name that would have no effect."""
    for name in sorted(settings.keys() - _NAMES):
        raise InvalidRequest("unknown parameter", field=f"override_generation_config.{name}")
    return settings


# Settings of models that Tandem does not have, with the value that changes nothing.
_NOT_APPLIED: Final[Mapping[str, object]] = {
    "num_beam_groups": 1,
    "forced_decoder_ids": None,
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def not_applied(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that would change the answers and have no effect here."""
    return {k: settings[k] for k, off in _NOT_APPLIED.items() if settings.get(k) not in (None, off)}


def ids_of(value: object, key: str) -> tuple[int, ...]:
    """An id, a list of ids or None as a tuple. Raises ModelLoadError for anything else."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ModelLoadError(f"{key} must be an id or a list of ids, got {value!r}")
    return tuple(ids)


def _early_stopping(value: object) -> EarlyStopping:
    if value is None or value is False or value is True:
        return bool(value)
    if value == "never":
        return "never"
    raise ModelLoadError(f'early_stopping must be true, false or "never", got {value!r}')


def _bad_words(value: object) -> tuple[tuple[int, ...], ...]:
    words = [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise ModelLoadError(f"bad_words_ids must be a list of lists of ids, got {value!r}")
    return tuple(ids_of(word, "bad_words_ids") for word in words)
