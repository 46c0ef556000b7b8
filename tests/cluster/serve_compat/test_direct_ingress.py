"""A replica's port can be had again at once, but not while somebody listens there; requests that come before
a replica is initialized wait for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private import http_util
from ray.serve._private import replica as serve_replica
from ray.serve.config import HTTPOptions

from tandem.cluster.serve_compat.direct_ingress import hold_early_requests, reuse_http_port


@pytest.fixture
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_util, "socket", http_util.socket)  # undone afterwards
    reuse_http_port()


async def application(scope: object, receive: object, send: object) -> None:
    del scope, receive, send


async def serve_and_close(port: int) -> int:
    """Starts Serve's HTTP server, connects, and lets the server end the connection first."""
    options = HTTPOptions(host="127.0.0.1", port=port)
    task, server = await http_util.start_asgi_http_server(
        application, options, event_loop=asyncio.get_running_loop()
    )
    while not server.started:
        await asyncio.sleep(0.01)
    bound: int = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", bound)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await reader.read()  # until the server has closed: its side is in TIME_WAIT now
    writer.close()
    server.should_exit = True
    await task
    return bound


@pytest.mark.usefixtures("_patched")
async def test_a_port_can_be_had_again_at_once() -> None:
    port = await serve_and_close(0)
    assert await serve_and_close(port) == port


@pytest.mark.usefixtures("_patched")
async def test_a_port_where_somebody_listens_is_refused() -> None:
    other = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with other:
        with pytest.raises(RuntimeError, match="bind"):
            await serve_and_close(other.sockets[0].getsockname()[1])


async def test_ray_does_not_do_it_by_itself() -> None:
    """When this fails, Ray has learnt it and `direct_ingress.py` can go."""
    port = await serve_and_close(0)
    with pytest.raises(RuntimeError, match="bind"):
        await serve_and_close(port)


class Replica:
    """What Serve's own has of it: it refuses requests before it is initialized."""

    _user_callable_initialized = False

    async def asgi(self, scope: object, receive: object, send: Any) -> None:
        del scope, receive
        assert self._user_callable_initialized
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def first_line(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line


@pytest.mark.parametrize("held", [True, False])
async def test_a_request_before_the_replica_is_initialized(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is held, it is the bare 500 that Serve answers: when that fails, Ray has learnt it."""
    monkeypatch.setattr(serve_replica, "start_asgi_http_server", serve_replica.start_asgi_http_server)
    if held:
        hold_early_requests()
    replica = Replica()
    options = HTTPOptions(host="127.0.0.1", port=0)
    task, server = await serve_replica.start_asgi_http_server(
        replica.asgi, options, event_loop=asyncio.get_running_loop()
    )
    while not server.started:
        await asyncio.sleep(0.01)
    call = asyncio.create_task(first_line(server.servers[0].sockets[0].getsockname()[1]))
    await asyncio.sleep(0.1)
    assert call.done() != held
    replica._user_callable_initialized = True
    assert await call == (
        b"HTTP/1.1 204 No Content\r\n" if held else b"HTTP/1.1 500 Internal Server Error\r\n"
    )
    server.should_exit = True
    await task


def test_serves_replica_is_what_is_held() -> None:
    """Its HTTP handler is a method of the replica, which has the flag that is waited for."""
    assert hasattr(serve_replica.Replica, "_direct_ingress_asgi")
    assert "_user_callable_initialized" in serve_replica.Replica.__init__.__code__.co_names
