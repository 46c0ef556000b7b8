"""The arguments of transformers' `generate`, said in Tandem's parameters.

They come from those who know transformers, and from checkpoints: `task_specific_params` of a config.json
says in these names how a task is to be decoded.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final

from tandem.errors import InvalidRequest
from tandem.params import SamplingParams

# Called the same here.
_SAME: Final = frozenset({"repetition_penalty"})
_SAMPLING: Final = frozenset({"temperature", "top_k", "top_p", "min_p"})
_BEAMS: Final = frozenset({"length_penalty", "early_stopping"})
_LENGTHS: Final = frozenset({"max_length", "max_new_tokens", "min_length", "min_new_tokens"})
_OURS: Final = frozenset({"seed"})  # transformers has a global one
ARGUMENTS: Final = (
    _SAME | _SAMPLING | _BEAMS | _LENGTHS | _OURS | {"do_sample", "num_beams", "num_return_sequences"}
)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of all layers, later ones first in importance; None means "not said". A length in
    new tokens and one in all tokens exclude each other: the later one stands."""
    arguments: dict[str, Any] = {}
    for layer in layers:
        for bound in ("max", "min"):
            if any(layer.get(name) is not None for name in (f"{bound}_length", f"{bound}_new_tokens")):
                arguments.pop(f"{bound}_length", None)
                arguments.pop(f"{bound}_new_tokens", None)
        arguments |= {name: value for name, value in layer.items() if value is not None}
    return arguments


def to_params(arguments: Mapping[str, Any], prefix_length: int) -> SamplingParams:
    """Decoding parameters that mean the same.

    `max_length` and `min_length` count `prefix_length` tokens that are there before the first new one: the
    decoder's start token, or a decoder-only model's prompt.

    Raises InvalidRequest, naming the argument, for one that is unknown or unusable.
    """
    if unknown := sorted(set(arguments) - ARGUMENTS):
        raise InvalidRequest("unknown parameter", field=unknown[0])
    values = {name: arguments[name] for name in (_SAME | _OURS) & arguments.keys()}
    values |= _lengths(arguments, prefix_length)
    if arguments.get("num_beams", 1) != 1:
        raise InvalidRequest(f"must be 1, got {arguments['num_beams']}", field="num_beams")
    return SamplingParams(**values, **_sampling(arguments))


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


def _sampling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Greedy or sampled, as `do_sample` says; where it says nothing, as the model does."""
    given = {name: arguments[name] for name in sorted(_SAMPLING & arguments.keys())}
    samples = arguments.get("num_return_sequences", 1)
    do_sample = arguments.get("do_sample")
    if not do_sample:
        if samples != 1:
            raise InvalidRequest(
                f"{samples} equal answers: set do_sample=True, or num_beams", field="num_return_sequences"
            )
        if given:
            warnings.warn(f"{', '.join(given)} have no effect without do_sample=True", stacklevel=2)
        return {} if do_sample is None else {"temperature": 0.0}
    return {"temperature": 1.0, **given, "n": samples}
