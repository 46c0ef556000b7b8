"""No call without a key, on any route and RPC but health: one check, whatever the protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import grpc
import pytest
from fake_router import FakeRouter
from fake_service import connected, make_service
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute
from grpc_calls import Api, Context, consume, refused
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send

from tandem.cluster.callers import Quotas
from tandem.cluster.ingress.edge.guard import Guard
from tandem.cluster.ingress.edge.key_check import KeyCheck
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.cluster.keys import Keys, line_of
from tandem.errors import Overloaded
from tandem.protocol.rpc import HEALTH, RETRY_AFTER, SERVICE
from tandem.workers.requests.request_builder import RequestBuilder

KEY = "tandem-known"
WRONG = ["openai-insecure-api-key.wrong", "tandem-api-key.no", "tandem-api-key.ff", "tandem-api-key.77"]
# To read, and nothing else. Whoever adds one adds it here, too.
OPEN = {"/health", "/", "/docs", "/ui/style.css", "/ui/icon.svg", *(f"/ui/{name}.js" for name in (
    "api", "cluster", "code", "docs", "dom", "live", "main", "metrics", "microphone", "pictures", "streams",
    "tabs", "text", "transcribe", "translate",
))}  # fmt: skip


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(line_of("acme", KEY, Quotas(priority=0)))
    return file


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, router: FakeRouter, keys: Path) -> Service:
    service = make_service(folder, request_builder, router)
    service.guard = Guard(Keys(str(keys), None))
    return service


def all_routes(service: Service) -> list[tuple[str, str]]:
    """Every method and path of the application."""
    app = build_app(service)
    found = [(method, route.path) for route in flat(app.routes) for method in route.methods or ()]
    assert len(found) > 15
    return [(method, path.replace("{name:path}", "a/b").replace("{name}", "a")) for method, path in found]


def flat(routes: Any) -> list[APIRoute]:
    found: list[APIRoute] = []
    for route in routes:
        inner = getattr(route, "original_router", None) or getattr(route, "router", None)
        if isinstance(route, APIRoute):
            found.append(route)
        elif inner is not None:
            found += flat(inner.routes)
    return found


async def status(app: FastAPI, method: str, path: str) -> int:
    """What is answered to a wrong key. The path goes as it is, and decoded as by uvicorn."""
    raw, _, query = path.partition("?")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(b"authorization", b"Bearer x")], "server": ("x", 80), "client": ("x", 1),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found: int = sent[0]["status"]
    return found


def variants(path: str) -> set[str]:
    """The path, and what other servers' checks were got around with."""
    return {
        path, f"/{path}", f"{path}/", path.replace("/", "%2f"), f"/%2e{path}", f"{path};x", f"{path}%00",
        f"{path}?health", f"{path}#/health", f"/health/..{path}", f"/health;{path}", f"/health/{path}",
        f"/health%2f..{path}", f"//health{path}", path.upper(), f"{path}%20", f"/x/..{path}",
    }  # fmt: skip


async def test_every_route_is_closed_in_every_spelling(service: Service) -> None:
    app = build_app(service)
    for method, path in [*all_routes(service), ("GET", "/none")]:
        for one in variants(path):
            for verb in (method, "HEAD", "OPTIONS", "POST"):
                if unquote(one.partition("?")[0]) not in OPEN or verb in ("OPTIONS", "POST"):
                    assert await status(app, verb, one) == 401, (verb, one)
    assert not cast(FakeRouter, service._router).requests


async def test_health_and_the_pages_files_are_public(service: Service) -> None:
    async with connected(service) as http:
        for path in OPEN:
            assert (await http.get(path)).status_code == 200, path
    app = build_app(service)
    for other in ("//health", "/health/", "/%68ealth/x", "/HEALTH", "/health;x", "//", "/ui", "/ui/x.js"):
        assert await status(app, "GET", other) == 401, other


BODY = {"model": "tiny", "prompt": "the cat", "max_tokens": 4}
TEXT = {"q": "the cat", "source": "en", "target": "en"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
        {"authorization": "Basic eDp5", "x-api-key": KEY},
        {"x-api-key": "", "authorization": f"Bearer {KEY}"},
    ],
    ids=str,
)
async def test_a_key_in_a_header_lets_in(service: Service, headers: dict[str, str]) -> None:
    async with connected(service) as http:
        assert (await http.post("/v1/completions", json=BODY, headers=headers)).status_code == 200
        assert (await http.get("/v1/models", headers=headers)).status_code == 200
        assert (await http.get("/none", headers=headers)).status_code == 404


async def test_libretranslates_key_lets_in_wherever_its_clients_put_it(service: Service) -> None:
    async with connected(service) as http:
        for key, status in ((KEY, 403), ("wrong", 401), ("", 401)):
            own = {"q": "the cat", "api_key": key}
            for sent in (
                {"json": own},
                {"data": own},
                {"data": own, "files": {"unused": b""}},
                {"data": {"q": "the cat"}, "params": {"api_key": key}},
            ):
                answer = await http.post("/suggest", **cast(dict[str, Any], sent))
                assert answer.status_code == status, sent
        assert (await http.get("/languages", params={"api_key": KEY})).status_code == 200
        assert (await http.get("/v1/models", params={"api_key": KEY})).status_code == 401
        assert (await http.post("/v1/completions", json={**BODY, "api_key": KEY})).status_code == 401
        for broken in (b"{", b"\xff", b"[]", b'{"api_key": 3}'):
            answer = await http.post("/detect", content=broken, headers={"content-type": "application/json"})
            assert answer.status_code == 401


async def test_bodies_that_are_read_for_their_keys_are_bounded(service: Service) -> None:
    big = json.dumps({**TEXT, "q": "a" * 30_000, "api_key": KEY}).encode()
    json_type = {"content-type": "application/json"}

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.5)

    async with connected(service) as http:
        assert (await http.post("/translate", content=big, headers=json_type)).status_code == 413
        # Each takes 20,000 bytes of the 120,000.
        many = await asyncio.gather(
            *(http.post("/translate", content=slow(), headers=json_type) for _ in range(8))
        )
        assert sorted(answer.status_code for answer in many) == [401] * 6 + [429] * 2
        assert (await http.post("/suggest", json={"api_key": KEY})).status_code == 403


async def test_a_refusal_has_the_shape_of_its_api(service: Service) -> None:
    async with connected(service) as http:
        answer = await http.post("/v1/completions", json=BODY)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.json()["error"]["code"] == "unauthenticated"
        assert isinstance((await http.post("/translate", json=TEXT)).json()["error"], str)
        settings = await http.get("/frontend/settings", headers={"x-api-key": KEY})
        assert settings.json()["keyRequired"] is True


def websockets(service: Service) -> list[str]:
    routes = build_app(service).routes
    inner = [getattr(route, "original_router", None) for route in routes]
    every = [*routes, *(one for router in inner if router is not None for one in router.routes)]
    return [route.path for route in every if isinstance(route, APIWebSocketRoute)]


def test_a_websocket_needs_a_key_too(service: Service) -> None:
    offered = ["realtime", f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1"]
    paths = websockets(service)
    assert paths
    with TestClient(build_app(service)) as client:
        for path in (*paths, "/none"):
            for wrong in ([], *(["realtime", one] for one in WRONG)):
                with pytest.raises(WebSocketDenialResponse) as caught:
                    client.websocket_connect(path, subprotocols=wrong).__enter__()
                assert caught.value.status_code == 401
        with client.websocket_connect(paths[0], subprotocols=offered) as socket:
            chosen: Any = socket.accepted_subprotocol
            assert chosen == "realtime"
        encoded = ["realtime", f"tandem-api-key.{KEY.encode().hex()}"]
        with client.websocket_connect(paths[0], subprotocols=encoded):
            pass
        with client.websocket_connect(paths[0], headers={"authorization": f"Bearer {KEY}"}) as plain:
            assert plain.accepted_subprotocol is None


async def test_a_websocket_counts_until_its_client_has_gone(service: Service, tmp_path: Path) -> None:
    """And not until what it has begun has ended."""
    (file := tmp_path / "one").write_text(line_of("acme", KEY, Quotas(in_flight=1)))
    service.guard = Guard(Keys(str(file), None))

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        with pytest.raises(Overloaded), service.guard.admit(KEY):
            pass
        assert (await receive())["type"] == "websocket.disconnect"
        with service.guard.admit(KEY):
            pass

    arriving = [{"type": f"websocket.{what}"} for what in ("connect", "disconnect")]

    async def receive() -> Message:
        return arriving.pop(0)

    async def send(_: Message) -> None:
        raise AssertionError

    headers = [(b"x-api-key", KEY.encode())]
    for _ in range(2):
        await KeyCheck(app, service)({"type": "websocket", "path": "/", "headers": headers}, receive, send)
        arriving.extend({"type": f"websocket.{what}"} for what in ("connect", "disconnect"))
    with service.guard.admit(KEY):
        pass


async def test_every_rpc_but_health_is_closed(service: Service) -> None:
    api = Api(service)

    async def none() -> AsyncIterator[bytes]:
        return
        yield

    for method in SERVICE.methods:
        for metadata in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}):
            context = Context(**metadata)
            request = none() if method.client_streaming else b""
            code, _ = await refused(getattr(api, method.name)(request, context), context)
            assert code is grpc.StatusCode.UNAUTHENTICATED, method.name
    for metadata in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        await consume(api.ListModels(b"", Context(**metadata)))
    for method in HEALTH.methods:
        answer = getattr(api, method.name)(b"", Context())
        assert await (anext(answer) if method.server_streaming else answer)


async def test_quotas_are_told_from_other_refusals(service: Service, keys: Path) -> None:
    keys.write_text(line_of("acme", KEY, Quotas(priority=0, requests_per_minute=2)))
    service.guard = Guard(Keys(str(keys), None))
    async with connected(service) as http:
        headers = {"x-api-key": KEY}
        assert [(await http.get("/v1/models", headers=headers)).status_code for _ in range(3)] == [
            200,
            200,
            429,
        ]
        answer = await http.get("/v1/models", headers=headers)
        assert int(answer.headers["retry-after"]) >= 1
        assert "acme has used its 2 requests a minute" in answer.json()["error"]["message"]
    context = Context(authorization=f"Bearer {KEY}")
    code, details = await refused(Api(service).ListModels(b"", context), context)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(RETRY_AFTER, details)
    counted = 'tandem_refused_total{model="tiny",reason="quota",replica="replica-1"} 3.0'
    assert counted in service.metrics.text().decode()


async def test_tokens_are_counted_against_the_callers_quota_and_in_its_series(
    service: Service, keys: Path
) -> None:
    keys.write_text(line_of("acme", KEY, Quotas(priority=0, tokens_per_minute=5)))
    service.guard = Guard(Keys(str(keys), None))
    async with connected(service) as http:
        headers = {"x-api-key": KEY}
        statuses = [
            (await http.post("/v1/completions", json=BODY, headers=headers)).status_code for _ in range(2)
        ]
    assert statuses == [200, 429]
    series = service.metrics.text().decode()
    assert 'tandem_generation_tokens_total{model="tiny",replica="replica-1",tenant="acme"} 4.0' in series
    assert (
        'method="completions",model="tiny",protocol="http",replica="replica-1",status="OK",tenant="acme"'
        in series
    )
    assert 'status="RESOURCE_EXHAUSTED",tenant=""' in series


async def test_calls_in_flight_are_counted_until_their_streams_end(
    service: Service, router: FakeRouter, keys: Path
) -> None:
    keys.write_text(line_of("acme", KEY, Quotas(priority=0, in_flight=1)))
    service.guard = Guard(Keys(str(keys), None))
    router.delay_s = 0.05
    async with connected(service) as http:
        headers = {"x-api-key": KEY}

        async def stream() -> int:
            answer = await http.post("/v1/completions", json={**BODY, "stream": True}, headers=headers)
            return answer.status_code

        running = asyncio.create_task(stream())
        await asyncio.sleep(0.1)
        assert await stream() == 429
        assert await running == 200
        assert await stream() == 200


def test_a_server_without_keys_asks_for_none(
    folder: Path, request_builder: RequestBuilder, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not make_service(folder, request_builder, router).guard.closed
    monkeypatch.setenv("TANDEM_API_KEY", KEY)
    closed = make_service(folder, request_builder, router).guard
    assert closed.closed
    with closed.admit(KEY) as caller:
        assert caller.name == "default"
