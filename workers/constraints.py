"""Constraints that stand at the fields of a dataclass: `size: Annotated[int, AtLeast(1)]`. For values that
must do without pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tandem.errors import InvalidRequest

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class AtLeast:
    least: float


@dataclass(frozen=True)
class Above:
    bound: float


def check_fields(values: object) -> None:
    """Raises InvalidRequest, naming the field, where a value is not what the field's annotation says: a bool,
    int, float or str within bounds, one of a Literal's, or None if the annotation has it."""
    for name, hint in get_type_hints(type(values), include_extras=True).items():
        if (wrong := _wrong(hint, value := getattr(values, name))) is not None:
            raise InvalidRequest(f"must be {wrong}, got {value!r}", field=name)


def _wrong(hint: Any, value: object) -> str | None:
    """What the value must be and is not."""
    if get_origin(hint) in (Union, UnionType):  # one kind and None
        [hint, *more] = (one for one in get_args(hint) if one is not NoneType)
        assert not more
        if value is None:
            return None
    bounds: list[object] = []
    if get_origin(hint) is Annotated:
        hint, *bounds = get_args(hint)
    if get_origin(hint) is Literal:
        known = get_args(hint)
        return None if value in known else f"one of {', '.join(map(str, known))}"
    if not isinstance(value, (int, float) if hint is float else hint) or (
        isinstance(value, bool) and hint is not bool
    ):
        return _KINDS[hint]
    for bound in bounds:
        if isinstance(bound, AtLeast) and not value >= bound.least:
            return f"at least {bound.least:g}"
        if isinstance(bound, Above) and not value > bound.bound:
            return f"above {bound.bound:g}"
    return None
