"""A request's terms: what is accepted, and what a refusal names."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tandem.errors import InvalidRequest
from tandem.limits import Limits
from tandem.workers.requests.parameters.options import CheckedOptions, check_options
from tandem.workers.requests.tasks import Tasks


class AnyTasks(Tasks):
    def __init__(self) -> None: ...

    def resolve(self, **asked: Any) -> Any:
        return asked


def checked(limits: Limits | None = None, **terms: Any) -> CheckedOptions:
    return check_options(limits or Limits(), AnyTasks(), **terms)


def test_what_is_not_said_is_completed() -> None:
    one, other = checked(), checked()
    assert one.priority == 0
    assert one.timeout_s == Limits().timeout_s
    assert one.request_id != other.request_id
    assert checked(Limits(timeout_s=math.inf)).timeout_s is None


def test_what_is_said_is_kept() -> None:
    one = checked(request_id="mine", priority=-2, timeout_s=1.5, task="summarization")
    assert (one.request_id, one.priority, one.timeout_s) == ("mine", -2, 1.5)
    assert one.task == {"task": "summarization"}


def test_an_id_used_again_is_another_for_engines() -> None:
    one, other = checked(request_id="mine"), checked(request_id="mine")
    assert len({one.engine_id(0), one.engine_id(1), other.engine_id(0)}) == 3


@pytest.mark.parametrize(
    ("field", "value", "limit"),
    [
        ("priority", 101, "at most 100"),
        ("priority", -101, "at most 100"),
        ("priority", 1.0, "an integer"),
        ("priority", True, "an integer"),
        ("timeout_s", 0.0, "above 0"),
        ("timeout_s", -1.0, "above 0"),
        ("timeout_s", math.nan, "above 0"),
        ("timeout_s", 61.0, "at most 60 s"),
        ("request_id", "", "1 to 64"),
        ("request_id", "a" * 65, "1 to 64"),
        ("request_id", "a\nb", "printable"),
        ("request_id", "é", "ASCII"),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(field: str, value: Any, limit: str) -> None:
    with pytest.raises(InvalidRequest, match=limit) as caught:
        checked(Limits(priority=100, timeout_s=60.0, request_id_chars=64), **{field: value})
    assert caught.value.field == field
