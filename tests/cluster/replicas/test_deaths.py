"""Which ends of processes are told, by whom, and in which words."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cluster.replicas import deaths
from tandem.cluster.replicas.deaths import DeathWatch
from tandem.cluster.serve_compat import actors
from tandem.cluster.serve_compat.actors import STARTED_AGAIN, Actor

RAYS = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "Some common causes include: (1) the process was killed by the OOM killer"
)
LIVING = {
    "a1": Actor("ServeReplica:tandem:Decoder", "SERVE_REPLICA::tandem#Decoder#d1", 1, "10.0.0.1", 1),
    "a2": Actor("ServeReplica:tandem:Decoder", "SERVE_REPLICA::tandem#Decoder#d2", 2, "10.0.0.2", 2),
    "i1": Actor("ServeReplica:tandem:Ingress", "SERVE_REPLICA::tandem#Ingress#i1", 3, "10.0.0.1", 3),
    "p1": Actor("ProxyActor", "SERVE_PROXY_ACTOR-f00", 4, "10.0.0.1", 4),
    "c1": Actor("ServeController", "SERVE_CONTROLLER_ACTOR", 5, "10.0.0.1", 5),
    "e1": Actor("EngineActor", "", 6, "10.0.0.1", 6),  # its supervisor tells
    "o1": Actor("ServeReplica:other:Ingress", "SERVE_REPLICA::other#Ingress#o1", 7, "10.0.0.1", 7),
}


def told(
    caplog: pytest.LogCaptureFixture,
    own_id: str,
    *gone: str,
    asked: tuple[str, ...] = (),
    now: dict[str, Actor] | None = None,
) -> list[str]:
    looks = [LIVING, {each: actor for each, actor in LIVING.items() if each not in gone} | (now or {})]
    watch = DeathWatch(
        "tandem",
        "Decoder",
        own_id,
        living=lambda: looks.pop(0),
        unasked=lambda each: None if each in asked else RAYS,
    )
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="tandem"):
        watch.look()
        assert not caplog.messages
        watch.look()
    return caplog.messages


WHY = "Worker unexpectedly exits with a connection error code 2. End of file."


def test_each_is_told_by_name_and_cause(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, "a1", "i1", "p1", "e1", "o1") == [
        f"Ingress replica i1, process 3 on 10.0.0.1: its process ended: {WHY}",
        f"Serve's proxy, process 4 on 10.0.0.1: its process ended: {WHY}",
    ]


def test_what_serve_has_stopped_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, "a1", "i1", asked=("i1",)) == []


@pytest.mark.parametrize("seen", [True, False])
def test_a_controller_that_ray_starts_again_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """Whether or not a look falls into the time that it takes, in which the actor is in neither list."""
    world = {"a1": LIVING["a1"], "c1": LIVING["c1"]}
    entry = {"State": "RESTARTING"}
    monkeypatch.setattr(actors.state, "actor_table", lambda _: entry)
    watch = DeathWatch("tandem", "Decoder", "a1", living=lambda: dict(world))
    watch.look()
    if seen:
        del world["c1"]
        watch.look()
    world["c1"] = LIVING["c1"]._replace(pid=50)
    watch.look()
    watch.look()
    [line] = caplog.messages
    assert line == f"Serve's controller, process 5 on 10.0.0.1: its process ended: {STARTED_AGAIN}"


def test_one_replica_tells_and_the_next_where_it_is_gone_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, "a2", "i1") == []
    assert len(told(caplog, "a2", "a1", "i1")) == 2


def decoder(number: int, since_ms: int) -> Actor:
    kind, name = "ServeReplica:tandem:Decoder", f"SERVE_REPLICA::tandem#Decoder#{number}"
    return Actor(kind, name, number, "10.0.0.1", since_ms)


def test_a_replica_that_comes_takes_nothing_over(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its id is, and however long it loads before its first look."""
    world = {"b": decoder(1, 10), "i1": LIVING["i1"]}
    make: Callable[[str], DeathWatch] = lambda own: DeathWatch(  # noqa: E731
        "tandem", "Decoder", own, living=lambda: dict(world), unasked=lambda _: RAYS
    )
    old, new = make("b"), make("a")
    old.look()
    world["a"] = decoder(2, 20)
    del world["i1"]
    old.look()
    assert len(caplog.messages) == 1
    world["i2"] = LIVING["i1"]
    old.look()
    del world["i2"]
    old.look()
    assert len(caplog.messages) == 2
    new.look()
    del world["b"]
    new.look()
    assert len(caplog.messages) == 3


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 7)), max_size=12), st.permutations(range(4)))
def test_an_end_is_told_while_one_of_them_lives(ends: list[tuple[int, int]], ids: list[int]) -> None:
    """Four decoder replicas look every 10 ticks, each at ticks of its own; they and four others end."""
    living = {f"d{ids[n]}": decoder(n, n) for n in range(4)} | {
        f"i{n}": LIVING["i1"]._replace(name=f"x#i{n}", pid=10 + n) for n in range(4)
    }
    names = list(living)
    watches = {
        each: DeathWatch("tandem", "Decoder", each, living=lambda: dict(living), unasked=lambda _: RAYS)
        for each in names[:4]
    }
    ended, told = list[str](), Counter[str]()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told[record.getMessage()] += 1

    heard = Heard()
    deaths.logger.addHandler(heard)
    try:
        for tick in range(-10, 90):
            for at, which in ends:
                title = names[which]
                if at == tick and title in living:
                    ended.append(f"process {living.pop(title).pid} on")
            for n, (each, watch) in enumerate(watches.items()):
                if each in living and tick % 10 == 2 * n + 1:
                    watch.look()
    finally:
        deaths.logger.removeHandler(heard)
    writers_ended = sum(f"process {n} on" in ended for n in range(4))
    for one in ended if writers_ended < 4 else []:
        times = sum(count for line, count in told.items() if one in line)
        assert times >= 1, one
        assert writers_ended or times == 1, one
