"""The settings of transformers' GenerationConfig: which are a model's own, and which can be applied."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from tandem.errors import ModelLoadError
from tandem.params import BeamSearchParams, EarlyStopping
from tandem.workers.models.model_folder import read_json

logger = logging.getLogger(__name__)

Settings = Mapping[str, Any]  # under transformers' names
Reader = Callable[
    [Any], Any
]  # a value as JSON has it → as it is applied; raises ValueError, saying what it must be

_INNER: Final = ("decoder", "generator", "text_config")


def generation_config(folder: Path) -> Settings | None:
    """A model's `generation_config.json`; None where there is none or, as in transformers and with a warning,
    one that is no JSON object."""
    name = "generation_config.json"
    try:
        return read_json(folder, name) if (folder / name).is_file() else None
    except ModelLoadError as error:
        logger.warning("%s: config.json counts alone", error.message)
        return None


def own_layers(config: Settings, generation: Settings | None) -> dict[str, Settings]:
    """Where a model's own settings stand, by who says them; an earlier one goes before a later.

    As transformers' `from_pretrained` (5.24): `generation_config.json` alone where there is one, whatever
    config.json says; otherwise config.json, and for what it leaves open its decoder's config. What the
    classes of configs have for defaults does not count.
    """
    if generation is not None:
        return {"generation_config.json": generation}
    layers = {"config.json": config}
    if config.get("force_bos_token_to_be_generated"):
        layers["config.json"] = {**config, "forced_bos_token_id": config.get("bos_token_id")}
    for name in _INNER:
        if isinstance(inner := config.get(name), Mapping) and inner:
            layers[f"config.json, {name}"] = inner
            break
    return layers


def own_settings(config: Settings, generation: Settings | None) -> dict[str, Any]:
    """A model's own settings. Null counts as left out."""
    settings: dict[str, Any] = {}
    for layer in reversed(own_layers(config, generation).values()):
        settings |= {name: value for name, value in layer.items() if value is not None}
    return settings


def sound(settings: Settings, vocab_size: int | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that can be applied, as `READERS` read them, and for each that is malformed why.

    vocab_size: the decoder's; None: not known, any id will do.
    """
    good: dict[str, Any] = {}
    bad: dict[str, str] = {}
    for name, read in READERS.items():
        if (value := settings.get(name)) is None:
            continue
        try:
            good[name] = read(value)
            if (
                vocab_size is not None
                and name in _OF_TOKENS
                and max(_flat(good[name]), default=0) >= vocab_size
            ):
                raise ValueError(f"must be of the vocabulary, 0 to {vocab_size - 1}")
        except ValueError as error:
            good.pop(name, None)
            bad[name] = f"{error}, got {value!r:.60}"
    return good, bad


def not_applied(settings: Settings) -> dict[str, Any]:
    """Settings that ask for something that is not done here."""
    return {k: settings[k] for k, neutral in NOT_APPLIED.items() if settings.get(k) not in (None, neutral)}


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def _bounds(field: str) -> dict[str, float]:
    """What a request's field says of its numbers: "ge", "gt" and "le"."""
    metadata = BeamSearchParams.model_fields[field].metadata
    return {kind: getattr(bound, kind) for bound in metadata for kind in _BOUNDS if hasattr(bound, kind)}


_BOUNDS: Final[Mapping[str, tuple[str, Callable[[float, float], bool]]]] = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
}


def _bounded(what: str, bounds: Mapping[str, float], value: Any) -> float:
    """A number within bounds, in which NaN never is."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not all(_BOUNDS[kind][1](value, bound) for kind, bound in bounds.items()):
        said = (f"{_BOUNDS[kind][0]} {bound:.10g}" for kind, bound in bounds.items())
        raise ValueError(f"must be {what} {' and '.join(said)}")
    return cast(float, value)


def _number(field: str) -> Reader:
    """A number within the bounds that a request's field has."""
    bounds = _bounds(field)
    return lambda value: float(_bounded("a number", bounds, value))


def _count(low: int, field: str | None = None) -> Reader:
    """An integer from `low`, and no greater than a request's field may be. A length may be of any size: it
    ends where the room does."""
    bounds = {"ge": low} if field is None else {"ge": low, "le": _bounds(field)["le"]}

    def read(value: Any) -> int:
        number = _bounded("an integer of", bounds, value)
        if number == math.inf or number != int(number):
            _bounded("an integer of", bounds, None)
        return int(number)

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _early_stopping(value: Any) -> EarlyStopping:
    if value == "never":
        return "never"
    if not isinstance(value, bool):
        raise ValueError('must be true, false or "never"')
    return value


def _ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if not all(type(one) is int and one >= 0 for one in ids):
        raise ValueError("must be a token id or a list of them")
    return tuple(ids)


def _id(value: Any) -> int:
    ids = _ids(value)
    if len(ids) != 1:
        raise ValueError("must be one token id")
    return ids[0]


def _id_lists(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(ids, list) and ids for ids in value):
        raise ValueError("must be a list of lists of token ids")
    return tuple(_ids(ids) for ids in value)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("must be a text or a list of them, none of them empty")
    return tuple(texts)


# The ids that make a model's sequences: see `ModelInfo.read`.
_SPECIAL: Final[Mapping[str, Reader]] = {
    "eos_token_id": _ids,
    "bos_token_id": _id,
    "decoder_start_token_id": _id,
}
# How answers are decoded: see `GenerationDefaults`. A server may set them, too.
DECODING: Final[Mapping[str, Reader]] = {
    "do_sample": _flag,
    "temperature": _number("temperature"),
    "top_k": _count(0, "top_k"),
    "top_p": _number("top_p"),
    "min_p": _number("min_p"),
    "typical_p": _number("typical_p"),
    "repetition_penalty": _number("repetition_penalty"),
    "no_repeat_ngram_size": _count(0, "no_repeat_ngram_size"),
    "encoder_no_repeat_ngram_size": _count(0, "encoder_no_repeat_ngram_size"),
    "bad_words_ids": _id_lists,
    "forced_bos_token_id": _id,
    "forced_eos_token_id": _ids,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "num_beams": _count(1, "num_beams"),
    "length_penalty": _number("length_penalty"),
    "early_stopping": _early_stopping,
    "renormalize_logits": _flag,
    "max_new_tokens": _count(1),
    "max_length": _count(1),
    "min_new_tokens": _count(0),
    "min_length": _count(0),
    "stop_strings": _texts,
}
READERS: Final[Mapping[str, Reader]] = {**_SPECIAL, **DECODING}
_OF_TOKENS: Final = frozenset(name for name, read in READERS.items() if read in (_id, _ids, _id_lists))

# All others, with the value that asks for nothing; so does null.
NOT_APPLIED: Final[Settings] = {
    # Other ways of decoding.
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "constraints": None,
    "force_words_ids": None,
    "forced_decoder_ids": None,  # older files have it
    "num_return_sequences": 1,  # a request says it
    "max_time": None,  # a request's timeout does
    # What is done to scores.
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "remove_invalid_values": False,
    "token_healing": False,
    # What is faster, or takes less memory, in transformers.
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "max_cache_len": None,
    "low_memory": False,
    "prefill_chunk_size": None,
    "compile_config": None,
    "disable_compile": False,
    "continuous_batching_config": None,
    "use_mtp": False,
    "speculation_type": None,
    "prompt_lookup_num_tokens": None,
    "max_matching_ngram_size": None,
    "is_assistant": False,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_early_exit": None,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "assistant_ensemble_weight": None,
    # What `generate` returns besides tokens.
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "return_dict_in_generate": False,
}
