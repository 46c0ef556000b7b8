"""The file of keys: what it holds, what is refused in it, and that a change is seen."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tandem.cluster.callers import Caller, Quotas
from tandem.cluster.keys import Keys, line_of, new_key, sha256
from tandem.errors import InvalidRequest, Overloaded

HASH = "sha256:" + "0" * 64


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_file_has_hashes_only_and_finds_the_callers(tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("acme", "zoo")}
    quotas = Quotas(requests_per_minute=60, tokens_per_minute=1e6, in_flight=4, priority=-2, weight=0.5)
    lines = [
        line_of("acme", keys["acme"], quotas),
        "",
        "# a comment",
        line_of("zoo", keys["zoo"], Quotas(priority=0)),
    ]
    file = tmp_path / "keys"
    file.write_text("\n".join(lines))
    assert not any(key in file.read_text() for key in keys.values())
    found = Keys(str(file), sha256("single"))
    assert found.asked_for
    acme, zoo, single = (found.caller(key) for key in (keys["acme"], keys["zoo"], "single"))
    assert acme
    assert zoo
    assert single
    assert (acme.name, acme.quotas) == ("acme", quotas)
    assert (zoo.name, zoo.quotas) == ("zoo", Quotas(priority=0))
    assert (single.name, single.quotas) == ("default", Quotas())
    for wrong in ("", "x", keys["acme"] + " ", keys["acme"][:-1], sha256(keys["acme"]), "\udcff"):
        assert found.caller(wrong) is None


def test_without_keys_none_is_asked_for() -> None:
    assert not Keys(None, None).asked_for


@pytest.mark.parametrize("name", ["a b", "#", "é", "a\nb", "-a", "a" * 65, "a=b"])
def test_a_name_that_cannot_stand_in_the_file_gets_no_line(name: str) -> None:
    with pytest.raises(InvalidRequest):
        line_of(name, "key", Quotas())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acme", "sha256:HASH"),
        ("acme secret", "sha256:HASH"),
        ("a/b " + HASH, "sha256:HASH"),
        (f"acme {HASH} rpm=1", "'rpm' is no quota"),
        (f"acme {HASH} weight", "must be a number, got ''"),
        (f"acme {HASH} in_flight=1.5", "must be a number"),
        (f"acme {HASH} weight=0", "must be positive"),
        (f"acme {HASH} weight=nan", "must be positive"),
        (f"\nacme {HASH}\nacme {HASH[:-1]}1 weight=2", "line 3: acme has other quotas"),
    ],
)
def test_a_malformed_file_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message) as caught:
        Keys(str(file), None)
    assert caught.value.field == "api_keys"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Keys(str(tmp_path / "none"), None)


def test_a_change_of_the_file_is_seen_and_keeps_what_a_caller_has_used(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "keys"
    sizes = itertools.count(1)

    def write(text: str) -> None:
        """As Kubernetes does, with another file in its place."""
        new = tmp_path / f"new{next(sizes)}"
        new.write_text(text)
        os.replace(new, file)
        clock.now += 1.1

    write(line_of("acme", "one", Quotas(priority=0)))
    keys = Keys(str(file), None, clock)
    acme = keys.caller("one")
    write(line_of("acme", "two", Quotas(priority=0, in_flight=1)))
    assert keys.caller("one") is None
    assert keys.caller("two") is acme
    assert acme
    assert acme.quotas.in_flight == 1
    write("nonsense")
    assert keys.caller("two") is acme  # as before
    file.unlink()
    clock.now += 1.1
    assert keys.caller("two") is acme
    write("")
    assert keys.caller("two") is None
    assert keys.asked_for


def test_requests_and_tokens_come_back_with_time() -> None:
    clock = Clock()
    caller = Caller("acme", Quotas(requests_per_minute=2, tokens_per_minute=60), clock)

    def call(tokens: int = 0) -> bool:
        try:
            with caller.call():
                caller.spend(tokens)
        except Overloaded:
            return False
        return True

    assert [call(), call(), call()] == [True, True, False]
    clock.now += 30  # one request's time
    assert [call(tokens=120), call()] == [True, False]  # overdrawn: the call went on
    clock.now += 59
    assert not call()
    clock.now += 4
    assert call()


def test_so_many_calls_are_in_flight() -> None:
    caller = Caller("acme", Quotas(in_flight=2))
    with caller.call(), caller.call():
        with pytest.raises(Overloaded, match="acme has 2 calls in flight"), caller.call():
            pass
    with caller.call():
        pass


def test_a_priority_beyond_the_callers_is_refused() -> None:
    caller = Caller("acme", Quotas(priority=1))
    caller.check_priority(1)
    with pytest.raises(InvalidRequest, match="1 at most, got 2"):
        caller.check_priority(2)
    Caller("default").check_priority(10)
