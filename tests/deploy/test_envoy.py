"""The Envoy example against what Tandem serves: its services, ports and limits, without Envoy itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem.cluster.config import ServeConfig
from tandem.limits import DEFAULT_LIMITS
from tandem.protocol.rpc import HEALTH, SERVICE


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    text = (Path(__file__).parents[2] / "deploy" / "envoy" / "envoy.yaml").read_text()
    read: dict[str, Any] = yaml.safe_load(text)["static_resources"]
    return read


@pytest.fixture(scope="module")
def manager(example: dict[str, Any]) -> dict[str, Any]:
    [listener] = example["listeners"]
    [chain] = listener["filter_chains"]
    assert chain["transport_socket"]["typed_config"]["common_tls_context"]["alpn_protocols"] == [
        "h2",
        "http/1.1",
    ]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]
    return found


def test_its_limits_are_ours(manager: dict[str, Any]) -> None:
    assert manager["max_request_headers_kb"] * 1024 == DEFAULT_LIMITS.header_bytes
    assert manager["common_http_protocol_options"]["max_headers_count"] == DEFAULT_LIMITS.headers
    assert manager["request_headers_timeout"] == f"{DEFAULT_LIMITS.head_s:.0f}s"
    assert int(manager["stream_idle_timeout"][:-1]) > DEFAULT_LIMITS.timeout_s


def test_every_service_of_ours_has_a_route_and_no_other(manager: dict[str, Any]) -> None:
    [host] = manager["route_config"]["virtual_hosts"]
    grpc = [route["match"]["prefix"] for route in host["routes"] if "grpc" in route["match"]]
    assert grpc == [f"/{service.full_name}/" for service in (SERVICE, HEALTH)]
    routed = {route["match"].get("prefix"): route["route"] for route in host["routes"] if "route" in route}
    assert all(route["timeout"] == "0s" for route in routed.values())  # streams are as long as they are
    hidden = {str(route["match"]) for route in host["routes"] if "direct_response" in route}
    assert hidden == {"{'path': '/metrics'}", "{'prefix': '/-/'}"}
    assert host["routes"][-1]["match"] == {"prefix": "/"}


def test_its_clusters_are_our_ports(example: dict[str, Any]) -> None:
    ports = {}
    for cluster in example["clusters"]:
        [endpoints] = cluster["load_assignment"]["endpoints"]
        [endpoint] = endpoints["lb_endpoints"]
        ports[cluster["name"]] = endpoint["endpoint"]["address"]["socket_address"]["port_value"]
        assert cluster["health_checks"]
    assert ports == {"http": ServeConfig().http_port, "grpc": ServeConfig().grpc_port}
    [grpc] = [cluster for cluster in example["clusters"] if cluster["name"] == "grpc"]
    assert "http2_protocol_options" in str(grpc["typed_extension_protocol_options"])
