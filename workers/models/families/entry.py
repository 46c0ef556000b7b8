"""An entry of the families table, and how families read configs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tandem.errors import ModelLoadError
from tandem.workers.models.spec import Activation, ModelSpec, StackSpec

Config = Mapping[str, Any]  # config.json


@dataclass(frozen=True)
class Part:
    """A weight that the checkpoint holds in another layout than ours, [outputs, inputs] or [outputs]."""

    name: str
    transposed: bool = False  # [inputs, outputs], as GPT-2's Conv1D
    index: int = 0  # which of `of` equal parts along the outputs
    of: int = 1
    row: bool = False  # a vector stored as [1, n]


# Our name of a weight → the names it may have in the checkpoint: the first that is there is read.
# The others, if present too, are tied copies. None at the end: a weight that is absent is zero, or what its
# slot is filled with.
WeightNames = dict[str, tuple[str | Part | None, ...]]


@dataclass(frozen=True)
class Family:
    spec: Callable[[Config], ModelSpec]
    names: Callable[[Config, ModelSpec], WeightNames]
    # Shell patterns of weights that occur in the wild, are never read, and are passed over without complaint.
    unused: tuple[str, ...] = ()
    unread: Callable[[Config], tuple[str, ...]] = lambda _: ()  # more such patterns, which the config decides


def sides(spec: ModelSpec) -> Iterator[tuple[str, StackSpec]]:
    if spec.encoder is not None:
        yield "encoder", spec.encoder
    yield "decoder", spec.decoder


def token_id(config: Config, key: str, default: int) -> int:
    """A token id; null means the default, as absence does."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise ModelLoadError(f"must be a token id, got {value!r}", field=key)
    return value


def first_id(key: str, *configs: Config) -> int | None:
    """A token id from the first of the configs that has it."""
    found = (config for config in configs if config.get(key) is not None)
    return next((token_id(config, key, 0) for config in found), None)


def ids(config: Config, key: str, *default: int) -> tuple[int, ...]:
    """Token ids. The file may hold one, a list, or null for none."""
    value = config.get(key, list(default))
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(one) is int for one in values):
        raise ModelLoadError(f"must be a token id or a list of them, got {value!r}", field=key)
    return tuple(values)


# transformers' name → ours.
ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "silu": "silu",
    "swish": "silu",
}


def activation(config: Config, key: str, default: Activation) -> Activation:
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise ModelLoadError(
            f"unsupported activation {name!r}; there are {', '.join(ACTIVATIONS)}", field=key
        )
    return ACTIVATIONS[name]


def head_dim(width: int, heads: int, key: str) -> int:
    """A head's width, for configs that give the number of heads."""
    if heads < 1 or width % heads:
        raise ModelLoadError(f"{heads} heads do not divide the width {width}", field=key)
    return width // heads


def either(*names: WeightNames) -> WeightNames:
    """The names of a stack that may be saved under one prefix or another."""
    return {ours: sum((some.get(ours, ()) for some in names), ()) for ours in names[0]}


def affine(ours: str, *theirs: str) -> WeightNames:
    """Weight and bias of a projection or of a LayerNorm, under each of its module's names."""
    return {
        ours: tuple(f"{name}.weight" for name in theirs),
        f"{ours}.bias": tuple(f"{name}.bias" for name in theirs),
    }
