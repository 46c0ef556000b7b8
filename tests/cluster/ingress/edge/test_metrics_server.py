"""Metrics on a port of their own, and then nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fake_router import FakeRouter
from fake_service import connected, make_service
from serving import free_port

from tandem.cluster.ingress.edge.metrics_server import serve_metrics
from tandem.cluster.listening import Listening
from tandem.errors import Unavailable
from tandem.workers.requests.request_builder import RequestBuilder


async def test_they_are_there_and_nothing_else(
    folder: Path, request_builder: RequestBuilder, router: FakeRouter
) -> None:
    service = make_service(folder, request_builder, router)
    port = free_port()
    service.config = replace(service.config, metrics_port=port)
    first = await serve_metrics("127.0.0.1", port, Listening(), service.metrics.text)
    second = await serve_metrics("127.0.0.1", port, Listening(), lambda: b"other")
    next_port = second.sockets[0].getsockname()[1]
    assert port < next_port
    async with first, second, httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
        assert answer.status_code == 200
        assert "tandem_requests" in answer.text
        assert (await client.get(f"http://127.0.0.1:{next_port}/metrics")).text == "other"
        assert (await client.get(f"http://127.0.0.1:{port}/v1/models")).status_code == 404
        assert (await client.post(f"http://127.0.0.1:{port}/metrics")).status_code == 404
        large = {"x": "a" * 70_000}
        assert (await client.get(f"http://127.0.0.1:{port}/metrics", headers=large)).status_code == 431
    async with connected(service) as http:
        assert (await http.get("/metrics")).status_code == 404
        assert "/metrics" not in (await http.get("/openapi.json")).json()["paths"]


async def test_no_port_is_an_error() -> None:
    with pytest.raises(Unavailable, match="no port from 70000"):
        await serve_metrics("127.0.0.1", 70000, Listening(), bytes)
