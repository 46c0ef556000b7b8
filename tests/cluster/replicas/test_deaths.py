"""Which ends of processes are told, by whom, and in which words."""

from __future__ import annotations

import logging

import pytest

from tandem.cluster.replicas.deaths import DeathWatch
from tandem.cluster.serve_compat.actors import Actor

RAYS = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
    "Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "Some common causes include: (1) the process was killed by the OOM killer"
)
LIVING = {
    "a1": Actor("ServeReplica:tandem:Decoder", "SERVE_REPLICA::tandem#Decoder#d1", 1, "10.0.0.1"),
    "a2": Actor("ServeReplica:tandem:Decoder", "SERVE_REPLICA::tandem#Decoder#d2", 2, "10.0.0.2"),
    "i1": Actor("ServeReplica:tandem:Ingress", "SERVE_REPLICA::tandem#Ingress#i1", 3, "10.0.0.1"),
    "p1": Actor("ProxyActor", "SERVE_PROXY_ACTOR-f00", 4, "10.0.0.1"),
    "c1": Actor("ServeController", "SERVE_CONTROLLER_ACTOR", 5, "10.0.0.1"),
    "e1": Actor("EngineActor", "", 6, "10.0.0.1"),  # its supervisor tells
    "o1": Actor("ServeReplica:other:Ingress", "SERVE_REPLICA::other#Ingress#o1", 7, "10.0.0.1"),
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


def test_a_controller_that_ray_starts_again_is(caplog: pytest.LogCaptureFixture) -> None:
    again = {"c1": LIVING["c1"]._replace(pid=50)}
    [line] = told(caplog, "a1", now=again)
    assert line == "Serve's controller, process 5 on 10.0.0.1: its process ended, and Ray has started another"


def test_one_replica_tells_and_the_next_where_it_is_gone_itself(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, "a2", "i1") == []
    assert len(told(caplog, "a2", "a1", "i1")) == 2
