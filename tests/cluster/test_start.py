"""What is decided before Ray starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tandem.cluster import start
from tandem.cluster.config import ServeConfig
from tandem.cluster.start import (
    _LISTENING,
    DIRECT_PORTS,
    _environment,
    _proxy_ports,
    _refuse_other_settings,
    serve_settings,
    start_ray,
)
from tandem.errors import InvalidRequest


def port_range(settings: dict[str, str], protocol: str) -> range:
    name = f"RAY_SERVE_DIRECT_INGRESS_{{}}_{protocol}_PORT"
    return range(int(settings[name.format("MIN")]), int(settings[name.format("MAX")]))


@pytest.mark.parametrize(("http", "grpc"), [(8000, 9000), (9000, 8000), (8000, 8001), (65535, 65530)])
def test_the_ranges_of_direct_ports_begin_where_asked_and_do_not_overlap(http: int, grpc: int) -> None:
    settings = serve_settings(ServeConfig(http_port=http, grpc_port=grpc))
    http_ports, grpc_ports = port_range(settings, "HTTP"), port_range(settings, "GRPC")
    assert (http_ports[0], grpc_ports[0]) == (http, grpc)
    assert not set(http_ports) & set(grpc_ports)
    assert max(*http_ports, *grpc_ports) <= 65535


def test_the_proxy_keeps_out_of_the_ranges_of_direct_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [[8000, 20000], [20000, 9000 + DIRECT_PORTS - 1], [20000, 9000 + DIRECT_PORTS]]
    monkeypatch.setattr(start, "free_ports", lambda *_: free.pop(0))
    assert _proxy_ports(ServeConfig(http_port=8000, grpc_port=9000)) == (20000, 9000 + DIRECT_PORTS)
    assert not free
    assert _proxy_ports(ServeConfig(ingress_mode="proxy", http_port=1, grpc_port=2)) == (1, 2)


def test_proxy_mode_leaves_direct_ingress_off() -> None:
    settings = serve_settings(ServeConfig(ingress_mode="proxy"))
    assert not any("DIRECT" in name for name in settings)


def test_a_cluster_that_is_joined_must_listen_where_it_is_asked_to() -> None:
    settings = serve_settings(ServeConfig())
    _refuse_other_settings(ServeConfig(), settings, _LISTENING)
    for theirs in ({}, settings | {"RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": "40000"}):
        with pytest.raises(InvalidRequest, match=r"need RAY_SERVE_.*") as caught:
            _refuse_other_settings(ServeConfig(), theirs, _LISTENING)
        assert caught.value.field == "ingress_mode"


def test_the_manual_names_every_setting() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "run.md").read_text()
    for name, value in serve_settings(ServeConfig(host="0.0.0.0")).items():
        assert f"`{name}`" in manual
        assert f"`{value}`" in manual, name


def test_a_used_port_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InvalidRequest) as caught:
            start_ray(ServeConfig(http_port=taken.getsockname()[1]), None)
        assert caught.value.field == "http_port"


def test_the_environment_is_set_for_the_time_being_and_the_users_own_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_SERVE_ENABLE_DIRECT_INGRESS", raising=False)
    with _environment({"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"}):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
        assert os.environ["RAY_SERVE_ENABLE_DIRECT_INGRESS"] == "1"
    assert "RAY_SERVE_ENABLE_DIRECT_INGRESS" not in os.environ
