"""Serve's servers listen where they are told to, and tell nobody of their applications."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import grpc
import httpx
import pytest
from fake_app import answering
from listening_here import grpc_server, http_server
from ray.serve._private.grpc_util import start_grpc_server
from ray.serve.config import gRPCOptions
from serving import free_port
from starlette.responses import PlainTextResponse

from tandem.cluster.listening import Listening


def reached(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except ConnectionRefusedError:
        return False


def handlers(**_: object) -> Any:
    async def answer(*_: object) -> bytes:
        return b"told"

    return answer


async def test_grpc_listens_at_its_address_only() -> None:
    async with grpc_server(Listening(), handlers) as port:
        assert reached("127.0.0.1", port)
        assert not reached("127.0.0.2", port)


async def test_ray_does_not_do_it_by_itself() -> None:
    """When this fails, Ray has learnt it and `grpc_address.py` can be shorter."""
    options = gRPCOptions(port=free_port(), grpc_servicer_functions=[])
    task, server = await start_grpc_server(handlers, options, event_loop=asyncio.get_running_loop())
    assert reached("127.0.0.2", options.port)
    await server.stop(None)
    await task


async def test_nobody_is_told_of_the_applications() -> None:
    async with grpc_server(Listening(), handlers) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/ray.serve.RayServeAPIService/ListApplications")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            health: Any = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")
            assert await health(b"") == b"told"
    async with http_server(answering, Listening()) as port, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/-/routes")).status_code == 404
        assert (await client.get(f"http://127.0.0.1:{port}/-/healthz")).status_code == 200


async def test_serves_bare_503_has_the_shape_that_clients_know() -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        status = 503 if "gone" in scope["path"] else 200
        await PlainTextResponse("Deployment is unavailable.", status)(scope, receive, send)

    async with http_server(bare, Listening()) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            answer = await client.get("/v1/gone")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("service_unavailable_error", "unavailable")
            assert "gone; try again in 1.0 s" in error["message"]
            assert (await client.get("/translate/gone")).json() == {"error": error["message"]}
            for path in ("/-/gone", "/v1/there"):
                assert (await client.get(path)).text == "Deployment is unavailable."


def test_what_is_set_travels_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening("::1", 1, 2, 3.5, 4, "/cert", "/key")
    for name, value in listening.environment().items():
        monkeypatch.setenv(name, value)
    assert Listening.of_environment() == listening
