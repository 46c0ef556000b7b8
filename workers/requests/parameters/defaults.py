"""A model's own decoding parameters, for what a request leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tandem.errors import InvalidRequest
from tandem.params import EarlyStopping
from tandem.workers.requests.parameters.generation_settings import DECODING, sound


@dataclass(frozen=True)
class GenerationDefaults:
    """How to decode: as the server's settings say, else the model's own (see `own_layers`), else greedily.

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
    min_new_tokens: int | None = None
    min_length: int = 0  # decoder start token and prompt included; of no effect where min_new_tokens is set
    stop: tuple[str, ...] = ()  # beam search searches on, and what it has found is cut

    @property
    def beams(self) -> bool:
        """Whether the model's own way is beam search, or beam sampling."""
        return self.num_beams > 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GenerationDefaults:
        """The defaults of settings with transformers' names, as `sound` reads them."""
        values = {SET_BY.get(name, name): settings[name] for name in settings.keys() & DECODING.keys()}
        if not values.pop("do_sample", False):
            values["temperature"] = 0.0
        else:
            values.setdefault("temperature", 1.0)
        return cls(**values)


# The fields that transformers calls otherwise.
SET_BY: Final[Mapping[str, str]] = {
    "forced_bos_token_id": "forced_bos_id",
    "forced_eos_token_id": "forced_eos_ids",
    "suppress_tokens": "suppress_ids",
    "begin_suppress_tokens": "begin_suppress_ids",
    "renormalize_logits": "renormalize",
    "stop_strings": "stop",
}


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


def checked_overrides(settings: Mapping[str, Any], vocab_size: int | None = None) -> dict[str, Any]:
    """The server's own settings, as `sound` reads them. Raises InvalidRequest for a name that would have no
    effect, and for a malformed value."""
    for name in sorted(settings.keys() - DECODING.keys()):
        raise InvalidRequest("unknown parameter", field=f"override_generation_config.{name}")
    good, bad = sound(settings, vocab_size)
    for name, why in bad.items():
        raise InvalidRequest(why, field=f"override_generation_config.{name}")
    return good
