"""Whatever comes, in thousands, is answered or refused: no 5xx and no INTERNAL, and nothing piles up.

`make fuzz` sends ten times as many.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from fake_service import connected
from fuzzing import Fuzz
from google.protobuf import message_factory
from grpc_calls import Api, Context, consume
from listening_here import http_server

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.cluster.listening import Listening
from tandem.errors import TandemError
from tandem.protocol.rpc import HEALTH, SERVICE

INPUTS = int(os.environ.get("TANDEM_FUZZ_INPUTS", "2000"))  # of each protocol
SEED = int(os.environ.get("TANDEM_FUZZ_SEED", "0"))
GROWTH = 20 * 2**10  # KiB
LOGGED = 400  # bytes for each input
_DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


def memory() -> int:
    """The greatest so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def head_of(reader: asyncio.StreamReader) -> tuple[int, bool, int]:
    """An answer's status, whether its connection goes on, and how many bytes of its body come yet."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
    if length is None and b"transfer-encoding: chunked" in lines:
        while await reader.readuntil(b"\r\n") != b"0\r\n":
            pass
        await reader.readuntil(b"\r\n")
    return int(lines[0].split()[1]), b"connection: close" not in lines, length or 0


async def http_statuses(port: int, fuzz: Fuzz, inputs: int) -> Counter[int]:
    found: Counter[int] = Counter()
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    for _ in range(inputs):
        if connection is None:
            connection = await asyncio.open_connection("127.0.0.1", port)
        reader, writer = connection
        request = fuzz.http()
        writer.write(request)
        try:
            code, goes_on, length = await asyncio.wait_for(head_of(reader), 20)
            if not request.startswith(b"HEAD"):
                await reader.readexactly(length)
        except (ConnectionError, asyncio.IncompleteReadError):
            code, goes_on = 0, False  # refused and closed before all of it was sent
        found[code] += 1
        assert code < 500, request
        if not goes_on:
            writer.close()
            connection = None
    if connection is not None:
        connection[1].close()
    return found


async def test_http_answers_whatever_comes(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(service) as http:
        described = (await http.get("/openapi.json")).json()
    async with http_server(build_app(service), Listening()) as port:
        await http_statuses(port, Fuzz(-1, described), 300)
        before = memory()
        found = await http_statuses(port, Fuzz(SEED, described), INPUTS)
    assert memory() - before < GROWTH
    assert len(caplog.text) < LOGGED * INPUTS
    assert {200, 400, 404} <= found.keys()
    assert found[0] < INPUTS // 20
    async with connected(service) as http:
        assert (await http.get("/health")).status_code == 200


METHODS = [*SERVICE.methods, *HEALTH.methods]


async def grpc_codes(api: Api, fuzz: Fuzz, inputs: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(inputs):
        method = METHODS[number % len(METHODS)]
        if method.name == "Watch":  # it never ends
            continue
        kind = message_factory.GetMessageClass(method.input_type)
        sent = [fuzz.message(kind()) for _ in range(2 if method.client_streaming else 1)]

        async def stream(sent: list[bytes] = sent) -> AsyncIterator[bytes]:
            for one in sent:
                yield one

        context = Context()
        try:
            async with asyncio.timeout(20):
                await consume(
                    getattr(api, method.name)(stream() if method.client_streaming else sent[0], context)
                )
        except TandemError:
            assert context.code not in (None, *_DEFECTS), (method.name, sent)
        found[context.code.name if context.code else "OK"] += 1
    return found


async def test_grpc_answers_whatever_comes(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    api = Api(service)
    await grpc_codes(api, Fuzz(-1, {}), 300)
    before = memory()
    found = await grpc_codes(api, Fuzz(SEED, {}), INPUTS)
    assert memory() - before < GROWTH
    assert len(caplog.text) < LOGGED * INPUTS
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= found.keys()
