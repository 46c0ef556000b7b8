"""What Serve's listeners note and say for Tandem, on Serve's own servers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import httpx
import pytest
from fake_app import answering
from listening_here import grpc_server, http_server
from ray.serve._private.proxy_request_response import gRPCStreamingType
from ray.serve.grpc_util import RayServegRPCContext

from tandem.cluster.ingress.arrivals import grpc_arrival, http_arrival
from tandem.cluster.listening import Listening
from tandem.cluster.serve_compat.grpc_handlers import ARRIVED, DEADLINE
from tandem.errors import Overloaded
from tandem.protocol.rpc import set_error

SERVICE = "tandem.v1.InferenceService"


@asynccontextmanager
async def serving(answer: Callable[[Any], None]) -> AsyncIterator[str]:
    """The address of a server of Serve's whose handlers have `answer` called with Serve's context, and answer
    as Serve's do."""

    def handle(context: Any) -> None:
        ours = RayServegRPCContext(context)
        answer(ours)
        if ours.code():  # all that is left of the context of a call that fails
            context.set_code(ours.code())
            context.set_details(ours.details())

    def factory(service_method: str, streaming_type: gRPCStreamingType) -> Any:
        del service_method

        async def unary(_: Any, context: Any) -> bytes:
            handle(context)
            return b""

        async def stream(_: Any, context: Any) -> AsyncIterator[bytes]:
            yield b"x"
            handle(context)

        return stream if streaming_type is gRPCStreamingType.UNARY_STREAM else unary

    service = "tandem.protocol.rpc.add_inference_service"
    async with grpc_server(Listening(), factory, service) as port:
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_a_refusal_says_when_to_try_again_in_grpcs_own_words(method: str) -> None:
    error = Overloaded("full", retry_after_s=2.25)
    async with serving(lambda context: set_error(context, error)) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            path = f"/{SERVICE}/{method}"
            call: Any
            if method == "Generate":
                call = cast(Any, channel.unary_unary(path))(b"")
            else:
                call = cast(Any, channel.unary_stream(path))(b"")
                assert await call.read() == b"x"
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await call.details() == "full; try again in 2.2 s"
            assert dict(await call.trailing_metadata())["grpc-retry-pushback-ms"] == "2200"


async def test_a_call_comes_with_its_arrival_and_its_clients_deadline() -> None:
    arrivals = []
    async with serving(lambda context: arrivals.append(grpc_arrival(context))) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            generate: Any = channel.unary_unary(f"/{SERVICE}/Generate")
            # A client has no say in when it came.
            await generate(b"", metadata=[(ARRIVED, "17.5"), (DEADLINE, "18.5")])
            await generate(b"", timeout=5.0)
    now = asyncio.get_running_loop().time()
    for one in arrivals:
        assert now - 3.0 < one.at <= now
    assert arrivals[0].deadline == float("inf")
    assert 2.0 < arrivals[1].deadline - now < 5.2  # gRPC rounds up


async def test_an_http_request_has_its_arrival_in_its_scope() -> None:
    found = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.2)
        found.append(http_arrival(scope))
        await answering(scope, receive, send)

    async with http_server(app, Listening()) as port, httpx.AsyncClient() as client:
        began = asyncio.get_running_loop().time()
        await client.get(f"http://127.0.0.1:{port}/")
    assert found[0].at - began == pytest.approx(0.0, abs=0.15)
    assert found[0].deadline == float("inf")


def test_what_a_clock_that_is_wrong_noted_counts_for_nothing() -> None:
    async def at(noted: object) -> float:
        return http_arrival({ARRIVED: noted}).at - asyncio.get_running_loop().time()

    for noted in (time.time() - 3600, time.time() + 5, "yesterday", None):
        assert asyncio.run(at(noted)) == pytest.approx(0.0, abs=0.1)
    assert asyncio.run(at(time.time() - 2)) == pytest.approx(-2.0, abs=0.1)


def statuses(address: str, calls: int) -> Iterator[grpc.StatusCode]:
    """Of calls that are sent at once."""
    with grpc.insecure_channel(address) as channel:
        generate: Any = channel.unary_unary(f"/{SERVICE}/Generate")
        for call in [generate.future(b"", timeout=60) for _ in range(calls)]:
            yield call.code()


async def test_an_event_loop_that_is_busy_loses_no_call() -> None:
    """By default gRPC resets hundreds of these: see `_SHED_NOTHING`."""
    async with serving(lambda _: None) as address:
        found: list[grpc.StatusCode] = []
        client = threading.Thread(target=lambda: found.extend(statuses(address, 2000)))
        client.start()
        time.sleep(1.5)  # the loop does not take them
        while client.is_alive():
            await asyncio.sleep(0.01)
    assert found == [grpc.StatusCode.OK] * 2000
