"""What a client may send before a body, over raw sockets to the server that Serve starts in both modes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_app import answering
from listening_here import http_server

from tandem.cluster.ingress.edge import bounded_http
from tandem.cluster.listening import Listening

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(port: int, *parts: bytes) -> tuple[int, bytes]:
    """The status and the body of what is sent before the server closes; 0 where it sends nothing."""
    async with connected(port) as (reader, writer):
        got = b""
        with contextlib.suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.005)
            got = await asyncio.wait_for(reader.read(), 5)
    head, _, body = got.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def request(*headers: bytes, line: bytes = b"GET / HTTP/1.1", body: bytes = b"") -> bytes:
    return b"\r\n".join([line, b"Host: x", b"Connection: close", *headers, b"", body])


def lines(count: int, size: int = 1) -> list[bytes]:
    return [b"X-%d: %s" % (number, b"a" * size) for number in range(count)]


CHUNKED = b"Transfer-Encoding: chunked"
POST = b"POST / HTTP/1.1"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([request()], 200),
        ([request(*lines(98))], 200),  # and two
        ([request(*lines(99))], 431),
        ([request(b"X: " + b"a" * 65000)], 200),
        ([request(b"X: " + b"a" * 66000)], 431),
        ([request(*lines(80, 900))], 431),
        ([request(b"a" * 66000 + b": x")], 431),
        ([request(line=b"GET /" + b"a" * 66000 + b" HTTP/1.1")], 431),
        ([b"GET / HTTP/1.1\r\nHost: x\r\nX: ", *[b"a" * 10_000] * 8], 431),  # it never ends
        ([b"GET /", *[b"a" * 10_000] * 8], 431),
        ([b"\r\n" * 5000] * 8, 431),
        ([request(b"Content-Length: 200000", line=POST, body=b"b" * 200_000)], 200),
        ([request(CHUNKED, line=POST, body=b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n")], 200),
        ([request(b"X: \xfc")], 400),
        ([request(b"x-request-id: \xfc", line=b"GET /translate HTTP/1.1")], 400),
        ([request("X: ü".encode())], 200),
        ([b"nonsense\r\n\r\n"], 400),
        ([b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
    ],
)
async def test_every_head_has_its_status(parts: list[bytes], status: int) -> None:
    async with http_server(answering, Listening()) as port:
        found, body = await answer(port, *parts)
        assert found == status
        if status != 200:
            error = json.loads(body)["error"]
            assert isinstance(error, str) or error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "flood",
    [b"0\r\nX: " + b"a" * 90_000, b"0\r\n" + b"X: a\r\n" * 200, b"5;x=" + b"a" * 90_000],
    ids=["trailer", "trailers", "extension"],
)
async def test_what_comes_after_a_head_is_bounded_too(flood: bytes) -> None:
    async with http_server(answering, Listening()) as port:
        parts = [flood[start : start + 10_000] for start in range(0, len(flood), 10_000)]
        status, _ = await answer(port, request(CHUNKED, line=POST, body=b"1\r\nx\r\n"), *parts)
        assert status in (0, 431)  # closed, whether or not the application had begun to answer


async def test_trailers_are_no_headers() -> None:
    async with http_server(answering, Listening()) as port:
        body = b"1\r\nx\r\n0\r\nAuthorization: Bearer late\r\n\r\n"
        assert await answer(port, request(CHUNKED, line=POST, body=body)) == (200, b"1 0")


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"\r\n"])
async def test_a_head_that_does_not_come_is_given_up(sent: bytes) -> None:
    async with http_server(answering, Listening(head_s=0.2)) as port:
        started = time.monotonic()
        assert (await answer(port, sent))[0] == 408
        assert 0.15 < time.monotonic() - started < 3


async def test_a_second_head_has_its_time_too_and_idle_connections_have_none() -> None:
    async with http_server(answering, Listening(head_s=0.2)) as port, connected(port) as (reader, writer):
        kept = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for _ in range(2):
            writer.write(kept)
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"0 0")
            await asyncio.sleep(0.4)  # idle for longer than a head may take
        writer.write(kept[:10])
        assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 408")


async def refusing(scope: Any, _: Any, send: Any) -> None:
    """Answers before it has read any of a body."""
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"no\n"})


async def test_a_body_that_nobody_wants_is_read_for_so_long_alone() -> None:
    async with http_server(refusing, Listening(head_s=0.5)) as port, connected(port) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 5)  # to the end: this connection has no further request
        assert got.startswith(b"HTTP/1.1 413 ")
        assert got.endswith(b"no\n")
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < started + 10:
                writer.write(bytes(2**16))
                await writer.drain()
                await asyncio.sleep(0.01)
        assert time.monotonic() < started + 5


async def test_bodies_that_nobody_wants_are_dropped_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of all clients together, however many there are."""
    monkeypatch.setattr(bounded_http, "_DROPPED", 2**22)
    sent = 0

    async def client(port: int) -> None:
        nonlocal sent
        async with connected(port) as (_, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
            while True:
                writer.write(bytes(2**16))
                await writer.drain()
                sent += 2**16

    async with http_server(refusing, Listening()) as port:
        clients = [asyncio.create_task(client(port)) for _ in range(8)]
        await asyncio.sleep(1)  # until what the kernel holds is full
        before = sent
        await asyncio.sleep(2)
        assert sent - before < 4 * 2**22
        for one in clients:
            one.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def test_a_client_that_sends_a_body_first_reads_why_it_is_refused() -> None:
    async with http_server(refusing, Listening()) as port, httpx.AsyncClient() as client:
        for _ in range(3):
            answer = await client.post(f"http://127.0.0.1:{port}/", content=bytes(2**25))
            assert (answer.status_code, answer.text) == (413, "no\n")


async def test_an_address_has_so_many_connections() -> None:
    async with http_server(answering, Listening(connections_per_address=2)) as port:
        async with connected(port), connected(port):
            await asyncio.sleep(0.05)
            assert (await answer(port))[0] == 429
        await asyncio.sleep(0.05)
        upgrade = request(
            b"Upgrade: websocket", b"Connection: upgrade", b"Sec-WebSocket-Version: 13",
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )  # fmt: skip
        for _ in range(3):  # a WebSocket gives its place back as well
            async with connected(port) as (reader, writer):
                writer.write(upgrade.replace(b"Connection: close\r\n", b""))
                assert b"101" in await reader.readuntil(b"\r\n")
            await asyncio.sleep(0.05)
        assert (await answer(port, request()))[0] == 200


async def test_attackers_take_no_memory_and_hold_up_nobody() -> None:
    async def attack(port: int) -> None:
        with contextlib.suppress(ConnectionError):
            async with connected(port) as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(64):
                    writer.write(b"a" * 2**17)  # 8 MiB in all
                    await writer.drain()

    async with http_server(answering, Listening()) as port:
        await answer(port, request())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        attacks = [asyncio.create_task(attack(port)) for _ in range(20)]
        assert [(await answer(port, request()))[0] for _ in range(20)] == [200] * 20
        await asyncio.gather(*attacks)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 2**10  # KiB
