"""One of the two models that transformers puts an encoder-decoder model together from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tandem.workers.models.families.entry import Config, WeightNames
from tandem.workers.models.spec import Activation, StackSpec


@dataclass(frozen=True)
class EncoderHalf:
    """A model as an encoder."""

    stack: Callable[[Config], StackSpec]
    names: Callable[[StackSpec, str, str], WeightNames]  # from a stack, its side and its prefix


@dataclass(frozen=True)
class DecoderHalf(EncoderHalf):
    """A model as a decoder."""

    base: str  # what it calls the stack below its head
    head: WeightNames  # names after "decoder."
    transform: Callable[[Config], Activation | None] = lambda _: None
    any_width: bool = False  # the keys and values of its cross-attention may be projected from another width
