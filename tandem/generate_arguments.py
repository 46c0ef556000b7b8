"""The arguments of transformers' `generate` as Tandem's parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Set
from typing import Any, Final

from tandem.errors import InvalidRequest
from tandem.params import BeamSearchParams, Params, SamplingParams

# These are called the same here.
_SAME: Final = frozenset(
    {
        "repetition_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
    }
)
_SAMPLING: Final = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "seed"})
_BEAMS: Final = frozenset({"num_beams", "length_penalty", "early_stopping"})
_LENGTHS: Final = frozenset({"max_length", "max_new_tokens", "min_length", "min_new_tokens"})
# All of them, and `seed`, where transformers has a global one.
ARGUMENTS: Final = _SAME | _SAMPLING | _BEAMS | _LENGTHS | {"do_sample", "num_return_sequences"}


def to_params(
    arguments: Mapping[str, Any], prefix_length: int, *, beams: bool, sampling: bool = False
) -> Params:
    """Decoding parameters that mean the same.

    `max_length` and `min_length` count `prefix_length` tokens that are there before the first new one: the
    decoder's start token, or a decoder-only model's prompt. `beams`: the model searches with beams where
    `num_beams` is left out; `sampling`: it samples where `do_sample` is.

    Raises InvalidRequest, naming the argument, for one that is unknown or unusable.
    """
    if unknown := sorted(set(arguments) - ARGUMENTS):
        raise InvalidRequest("unknown parameter", field=unknown[0])
    values = {name: arguments[name] for name in _SAME & arguments.keys()} | _lengths(arguments, prefix_length)
    samples, do_sample = arguments.get("num_return_sequences", 1), arguments.get("do_sample")
    if do_sample is not None:
        sampling = bool(do_sample)
        values["temperature"] = 1.0 if do_sample else 0.0
    if sampling:
        values |= {name: arguments[name] for name in _SAMPLING & arguments.keys()}
    else:
        _warn_of(_SAMPLING, arguments, "do_sample=True")
    if arguments["num_beams"] != 1 if "num_beams" in arguments else beams:
        values |= {name: arguments[name] for name in _BEAMS & arguments.keys()}
        return BeamSearchParams(**values, num_return_sequences=samples)
    _warn_of(_BEAMS - {"num_beams"}, arguments, "num_beams")
    if beams:
        values["num_beams"] = 1
    if sampling:
        return SamplingParams(**values, n=samples)
    if samples != 1:
        raise InvalidRequest(
            f"{samples} equal answers: set do_sample=True, or num_beams", field="num_return_sequences"
        )
    return SamplingParams(**values)


def _warn_of(names: Set[str], arguments: Mapping[str, Any], lack: str) -> None:
    """Arguments without effect are warned of, as transformers does."""
    if idle := sorted(names & arguments.keys()):
        warnings.warn(f"no effect without {lack}: {', '.join(idle)}", stacklevel=3)


def _lengths(arguments: Mapping[str, Any], prefix_length: int) -> dict[str, int]:
    values = {}
    for ours, new, whole, least in (
        ("max_tokens", "max_new_tokens", "max_length", 1),
        ("min_tokens", "min_new_tokens", "min_length", 0),
    ):
        for name in (new, whole):
            if name in arguments and (type(arguments[name]) is not int or arguments[name] < least):
                raise InvalidRequest(
                    f"must be an integer of at least {least}, got {arguments[name]!r}", field=name
                )
        if new in arguments:  # as in transformers, it has precedence
            values[ours] = arguments[new]
        elif whole in arguments:
            values[ours] = max(least, arguments[whole] - prefix_length)
    return values
