"""Clients that cancel, vanish or stop reading: their pages come back, others do not wait."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from serving import text_request, text_stream

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
# Runs until its limit unless somebody ends it.
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


@pytest.mark.parametrize("stream", [True, False])
def test_an_http_client_that_disconnects_frees_its_pages(server: Server, stream: bool) -> None:
    host, port = server.endpoints.http[0].split(":")
    fields = {"prompt": PROMPTS[0], "stream": stream} | ENDLESS
    body = json.dumps(fields)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((head + body).encode())
        eventually(lambda: gauge(server, "num_requests_running") == 1)
        if stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
    eventually(lambda: idle(server))


def test_a_deadline_ends_a_request_with_what_it_has(server: Server) -> None:
    request = text_request(PROMPTS[0], **ENDLESS)
    request.timeout_ms = 500
    answer = server.stub.Generate(request, timeout=60)
    assert answer.outputs[0].finish.reason == 4  # FINISH_REASON_DEADLINE
    assert answer.outputs[0].token_ids
    eventually(lambda: idle(server))


def test_a_reader_that_stops_reading_does_not_stall_others(server: Server, expected: dict[str, str]) -> None:
    stuck = [server.stub.GenerateStream(text_stream(PROMPTS[0], **ENDLESS), timeout=300) for _ in range(3)]
    for call in stuck:
        next(call)  # and never again
    for prompt in PROMPTS[:20]:
        answer = server.stub.Generate(text_request(prompt, max_tokens=32), timeout=60)
        assert answer.outputs[0].text == expected[prompt]
    for call in stuck:
        call.cancel()
    eventually(lambda: idle(server))
