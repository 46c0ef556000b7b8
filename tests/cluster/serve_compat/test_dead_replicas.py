"""What a proxy says of a replica that died: its clients may try again."""

from __future__ import annotations

import grpc
import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private import proxy

from tandem.cluster.serve_compat.dead_replicas import answer_unavailable

STATUSES = {"get_http_response_status": 503, "get_grpc_response_status": grpc.StatusCode.UNAVAILABLE}
SERVES_OWN = {"get_http_response_status": 500, "get_grpc_response_status": grpc.StatusCode.INTERNAL}


@pytest.fixture
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STATUSES:
        monkeypatch.setattr(proxy, name, getattr(getattr(proxy, name), "__wrapped__", getattr(proxy, name)))


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("name", STATUSES)
def test_a_dead_replica_is_unavailable_and_other_errors_stay(name: str) -> None:
    assert getattr(proxy, name)(ActorDiedError(), 1.0, "r").code == SERVES_OWN[name], "Ray has learnt it"
    for _ in range(2):  # several replicas may share a process
        answer_unavailable("gone; try again in 1.0 s")
    status = getattr(proxy, name)(ActorDiedError(), 1.0, "r")
    assert (status.code, status.message, status.is_error) == (
        STATUSES[name],
        "gone; try again in 1.0 s",
        True,
    )
    assert getattr(proxy, name)(ValueError("x"), 1.0, "r").code == SERVES_OWN[name]
    assert getattr(proxy, name)(TimeoutError(), 1.0, "r").code in (408, grpc.StatusCode.DEADLINE_EXCEEDED)
