"""Serve's gRPC servers listen where they are told to, and nowhere else."""

from __future__ import annotations

import asyncio
import socket

import pytest
from ray.serve._private import default_impl, http_util
from ray.serve._private.grpc_util import start_grpc_server
from ray.serve.config import HTTPOptions, gRPCOptions
from serving import free_port

from tandem.cluster.serve_compat import grpc_address, listening


async def answers(host: str) -> bool:
    """Whether one of Serve's gRPC servers, started now, is reached under an address."""
    port = free_port()
    options = gRPCOptions(port=port, grpc_servicer_functions=[])
    task, server = await start_grpc_server(lambda **_: None, options, event_loop=asyncio.get_running_loop())
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except ConnectionRefusedError:
        return False
    finally:
        await server.stop(None)
        await task


async def test_it_listens_at_its_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_impl, "add_grpc_address", default_impl.add_grpc_address)  # undone afterwards
    for name, value in {**listening.CALLBACK, grpc_address.HOST: "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setattr(http_util, name, value, raising=False)  # Serve reads it when it is imported
    http_util.configure_http_middlewares(HTTPOptions())
    assert await answers("127.0.0.1")
    assert not await answers("127.0.0.2")


async def test_ray_does_not_do_it_by_itself() -> None:
    """When this fails, Ray has learnt it and `grpc_address.py` can go."""
    assert await answers("127.0.0.2")
