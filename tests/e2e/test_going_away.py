"""Clients cancel, vanish or stop reading: their pages come back, and others do not wait."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import text_request, text_stream

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
# Runs until its limit unless it is ended.
ENDLESS = {"max_tokens": 4000, "ignore_eos": True}


def gauge(server: Server, name: str) -> float:
    lines = httpx.get(f"{server.http}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"tandem_{name}"))


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def idle(server: Server) -> bool:
    return gauge(server, "num_requests_running") == 0 and gauge(server, "kv_cache_usage") == 0


@pytest.fixture(autouse=True)
def _starts_idle(server: Server) -> None:
    eventually(lambda: idle(server))


def test_a_cancelled_grpc_stream_frees_its_pages(server: Server) -> None:
    call = server.stub.GenerateStream(text_stream(PROMPTS[0], **ENDLESS), timeout=300)
    for _ in range(5):
        next(call)
    eventually(lambda: gauge(server, "num_requests_running") == 1)
    call.cancel()
    eventually(lambda: idle(server))


def test_a_cancelled_unary_call_frees_its_pages(server: Server) -> None:
    call = server.stub.Generate.future(text_request(PROMPTS[0], **ENDLESS), timeout=300)
    eventually(lambda: gauge(server, "num_requests_running") == 1)
    call.cancel()
    eventually(lambda: idle(server))


@contextmanager
def posted(server: Server, *, small_buffers: bool = False, **fields: Any) -> Iterator[socket.socket]:
    """A connection that has asked for a completion and read nothing yet. `small_buffers`: the kernel
    takes 50 KiB for a client that does not read, instead of 2 MiB."""
    host, port = server.endpoints.http[0].split(":")
    body = json.dumps({"prompt": PROMPTS[0]} | ENDLESS | fields)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as connection:
        if small_buffers:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # the server's depends on it
        connection.connect((host, int(port)))
        connection.sendall((head + body).encode())
        yield connection


@pytest.mark.parametrize("stream", [True, False])
def test_an_http_client_that_disconnects_frees_its_pages(server: Server, stream: bool) -> None:
    with posted(server, stream=stream) as connection:
        eventually(lambda: gauge(server, "num_requests_running") == 1)
        if stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
    eventually(lambda: idle(server))


def test_a_deadline_ends_a_request_with_what_it_has(server: Server) -> None:
    request = text_request(PROMPTS[0], **ENDLESS)
    request.options.timeout_ms = 500
    answer = server.stub.Generate(request, timeout=60)
    assert answer.outputs[0].finish.reason == 4  # FINISH_REASON_DEADLINE
    assert answer.outputs[0].token_ids
    eventually(lambda: idle(server))


def unsent(connection: socket.socket) -> int:
    """Bytes that the server has written and its kernel has not sent."""
    _, port = connection.getsockname()
    _, server_port = connection.getpeername()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if local.endswith(f":{server_port:04X}") and remote.endswith(f":{port:04X}"):
            return int(queues.split(":")[0], 16)
    raise AssertionError("no such connection")


def test_a_reader_that_stops_reading_does_not_stall_others(server: Server, expected: dict[str, str]) -> None:
    large = {"stream": True, "n": 8, "logprobs": 20, "timeout_s": 15}  # nearly a KiB for each token
    with posted(server, small_buffers=True, **large) as connection:
        seen = (0, 0.0)

        def blocked() -> bool:
            """The kernel takes nothing while the engine goes on, for more than the server's own buffer."""
            nonlocal seen
            now = unsent(connection), gauge(server, "engine_generated_tokens_total")
            if now[0] != seen[0]:
                seen = now
            return now[0] > 0 and now[1] > seen[1] + 120

        eventually(blocked)
        assert gauge(server, "num_requests_running") == 8
        for prompt in PROMPTS[:20]:
            answer = server.stub.Generate(text_request(prompt, max_tokens=32), timeout=60)
            assert answer.outputs[0].text == expected[prompt]
        assert unsent(connection) == seen[0], "it was stuck all the time"
        # At the deadline; no byte has been read.
        eventually(lambda: idle(server) and gauge(server, "router_requests{") == 0)
