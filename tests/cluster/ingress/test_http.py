"""What all HTTP routes share: bodies, errors, disconnects; and health, metrics, tokenize."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from asgi_connection import Connection
from fake_router import FakeRouter, engine_stats
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tandem.cluster.ingress.health import Health
from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.limits import Limits
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.requests.request_builder import RequestBuilder

JSON = {"content-type": "application/json"}


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


async def post(http: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    return await http.post("/v1/completions", content=content, headers=JSON | headers)


# -- bodies


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'{"prompt": "a",}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud83d"}',
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"seed": ' + b"9" * 10_000 + b"}",
        b'\xef\xbb\xbf{"prompt": "a"}',
    ],
)
async def test_a_malformed_body_is_refused(http: httpx.AsyncClient, content: bytes) -> None:
    response = await post(http, content)
    assert response.status_code == 400
    assert error(response)["type"] == "invalid_request_error"


async def test_errors_do_not_repeat_the_whole_request(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", "x" * 10_000: 1})
    assert error(response)["param"] == "x" * 1000
    assert len(response.content) < 3000


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/x-www-form-urlencoded"])
async def test_another_media_type_is_refused(http: httpx.AsyncClient, media_type: str) -> None:
    response = await http.post(
        "/v1/completions", content=b'{"prompt": "a"}', headers={"content-type": media_type}
    )
    assert (response.status_code, error(response)["param"]) == (400, "content-type")


async def test_a_media_types_parameters_do_not_matter(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)).is_success


async def test_a_body_beyond_the_limit_is_not_read(http: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    response = await http.post("/v1/completions", content=endless(), headers=JSON)
    assert (response.status_code, error(response)["code"]) == (413, "resource_exhausted")
    assert sent <= 22_000
    announced = await post(http, b" " * 20_001)
    assert announced.status_code == 413


async def test_fastapis_own_refusals_have_the_same_shape(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v1/responses")
    assert (missing.status_code, error(missing)["type"]) == (404, "not_found_error")
    method = await http.get("/v1/completions")
    assert (method.status_code, error(method)["type"]) == (405, "invalid_request_error")
    assert method.headers["allow"] == "POST"
    assert (await http.get("/redoc")).status_code == 404


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["model", "prompt", "decoder_prompt", "n", "stream", "stream_options", "logprobs", "stop", "seed",
     "max_tokens", "temperature", "stop_token_ids", "priority", "timeout_s", "q", "source", "text"]
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/v1/completions", "/translate", "/tokenize"]),
    body=st.dictionaries(NAMES, VALUES, max_size=5) | VALUES,
    noise=st.none() | st.binary(max_size=20),
)
async def test_whatever_is_sent_is_answered_and_never_with_500(
    service: Service, path: str, body: Any, noise: bytes | None
) -> None:
    content = json.dumps(body).encode() if noise is None else noise
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as http:
        response = await http.post(path, content=content, headers=JSON)
    assert response.status_code in (200, 400, 404)
    assert response.status_code == 200 or "error" in response.json()


# -- clients that go away


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stall_after", [0, 2])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_disconnect_ends_the_request_on_the_engine(
    service: Service, router: FakeRouter, stream: bool, stall_after: int, n: int
) -> None:
    router.stall_after = stall_after
    connection = Connection(service, json.dumps({"prompt": "the cat", "stream": stream, "n": n}).encode())
    serving = connection.open()
    await until(lambda: len(router.live) == n)
    await asyncio.sleep(0.05)
    connection.hang_up()
    await until(lambda: not router.live)
    assert len(router.cancelled) == n
    await asyncio.wait_for(serving, 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_so_does_a_server_that_cancels_the_handler(
    service: Service, router: FakeRouter, stream: bool
) -> None:
    """As Serve does where it notices the disconnect first."""
    router.stall_after = 2
    serving = Connection(service, json.dumps({"prompt": "the cat", "stream": stream}).encode()).open()
    await until(lambda: len(router.live) == 1)
    await asyncio.sleep(0.05)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not router.live
    assert b'status="CANCELLED"' in service.metrics.text()


async def test_a_client_that_does_not_read_holds_up_nobody(service: Service, router: FakeRouter) -> None:
    connection = Connection(service, json.dumps({"prompt": "the cat", "stream": True}).encode())
    connection.sent = asyncio.Queue(maxsize=2)  # a full socket
    serving = connection.open()
    await until(connection.sent.full)
    other = Connection(service, json.dumps({"prompt": "the cat"}).encode())
    await asyncio.wait_for(other.open(), 5)
    connection.hang_up()
    await asyncio.wait_for(serving, 5)
    assert not router.live


async def test_a_body_that_does_not_arrive_is_not_waited_for(service: Service) -> None:
    service.config = replace(service.config, limits=Limits(body_s=0.05))
    connection = Connection(service, json.dumps({"prompt": "the cat"}).encode())
    await connection._messages.get()
    connection._messages.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    await asyncio.wait_for(connection.open(), 5)
    assert (await connection.sent.get())["status"] == 504
    assert b"within 0.05 s" in (await connection.sent.get())["body"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "the cat"}),
        ("/translate", {"q": "the cat", "source": "en", "target": "fr"}),
        ("/score", {"prompt": "the cat", "targets": ["le chat"]}),
    ],
)
async def test_a_full_server_does_not_tokenize(
    http: httpx.AsyncClient,
    service: Service,
    router: FakeRouter,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    router.full = True
    monkeypatch.setattr(service, "tokenizing", None)
    assert (await http.post(path, json=body)).status_code == 429


@pytest.mark.parametrize(
    ("body", "status", "thread"),
    [
        ({"prompt": "the cat"}, 200, "MainThread"),
        ({"prompt": "the cat " * 200}, 400, "tokenizer_0"),  # longer than the limit, as is found out there
        ({"prompt": ["a", "b"]}, 200, "tokenizer_0"),
        ({"prompt": "the cat", "bad_words": ["dog"]}, 200, "tokenizer_0"),
    ],
)
async def test_much_is_tokenized_beside_the_event_loop(
    http: httpx.AsyncClient,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    body: dict[str, Any],
    status: int,
    thread: str,
) -> None:
    prepare, threads = service.request_builder.prepare, set()

    def noted(*args: Any, **options: Any) -> PreparedRequest:
        threads.add(threading.current_thread().name)
        return prepare(*args, **options)

    monkeypatch.setattr(service.request_builder, "prepare", noted)
    assert (await http.post("/v1/completions", json=body)).status_code == status
    assert threads == {thread}


async def test_an_answer_that_is_there_waits_for_nothing(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.cluster.ingress.service._LONGEST_GATHER_S", 3600.0)
    monkeypatch.setattr("tandem.cluster.ingress.service._MESSAGES_PER_S", 1e-6)
    async with asyncio.timeout(5):
        assert (await http.post("/v1/completions", json={"prompt": "the cat"})).status_code == 200


async def test_a_client_that_never_reads_is_let_go_after_the_deadline(
    service: Service, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.cluster.ingress.call._UNREAD_S", 0.05)
    connection = Connection(
        service, json.dumps({"prompt": "the cat", "stream": True, "timeout_s": 0.05}).encode()
    )
    connection.sent = asyncio.Queue(maxsize=2)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(connection.open(), 5)
    assert not router.live
    assert b'status="CANCELLED"' in service.metrics.text()


# -- the small routes


async def test_tokenize(http: httpx.AsyncClient, request_builder: RequestBuilder) -> None:
    ids = request_builder.tokenize("the cat")
    for field in ("text", "prompt"):
        response = await http.post("/tokenize", json={field: "the cat", "model": "tiny"})
        assert response.json() == {"tokens": ids, "count": len(ids), "max_model_len": 64}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "prompt": "a"}, "text"),
        ({"text": 3}, "text"),
        ({"prompt": ""}, "prompt"),
        ({"text": "a b c d " * 30}, "text"),
        ({"text": "a", "wild": 1}, "wild"),
        ({"text": "a", "model": 3}, "model"),
        ({"text": "a", "model": "other"}, "model"),
    ],
)
async def test_tokenize_refuses_by_name(http: httpx.AsyncClient, body: Any, param: str) -> None:
    response = await http.post("/tokenize", json=body)
    assert response.status_code == (404 if body.get("model") == "other" else 400)
    assert error(response)["param"] == param


async def test_health_is_that_of_the_workers(http: httpx.AsyncClient, router: FakeRouter) -> None:
    assert (await http.get("/health")).status_code == 200
    router.is_ready = False
    response = await http.get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unhealthy")


async def test_health_warns_of_a_disk_with_little_room(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is well all the same: nothing needs room there until something has to be started."""
    disk = SimpleNamespace(f_frsize=2**30, f_blocks=1000, f_bfree=51, f_bavail=51)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    assert (await http.get("/health")).json() == {"status": "ok"}
    disk.f_bavail = 49
    response = await http.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    assert response.json()["warning"].startswith("49.0 GiB, 4.9%, left on ")


async def test_an_engine_with_work_and_no_step_is_stuck(router: FakeRouter) -> None:
    now = 0.0
    health = Health(router, 60, clock=lambda: now)
    router.engines = {"a": engine_stats(running=1, steps=5), "b": engine_stats(running=0, steps=9)}
    assert await health.problem() is None
    now = 59.0
    assert await health.problem() is None
    now = 60.0
    assert await health.problem() is None  # b idles, which is no fault
    router.engines["b"] = engine_stats(running=1, steps=9)
    now = 100.0
    assert await health.problem() is None
    now = 120.0
    assert "a, b" in str(await health.problem())
    router.engines["a"] = router.engines["a"]._replace(steps=6)
    assert await health.problem() is None


async def test_metrics(http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder) -> None:
    router.delay_s = 0.01
    assert (await http.post("/v1/completions", json={"prompt": "the cat"})).is_success
    assert (await http.post("/v1/completions", json={"prompt": "the cat", "stream": True})).is_success
    assert (await http.post("/v1/completions", json={"prompt": ""})).status_code == 400
    router.fail(RuntimeError("x"))
    await http.post("/v1/completions", json={"prompt": "the cat"})
    response = await http.get("/metrics")
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = {
                k: v for k, v in sample.labels.items() if k not in ("model", "replica", "method", "tenant")
            }
            assert (sample.labels["model"], sample.labels["replica"]) == ("tiny", "replica-1")
            values[sample.name + "".join(f" {k}={v}" for k, v in sorted(labels.items()))] = sample.value
    tokens = len(router.answer) + 1
    assert values["tandem_time_to_first_token_seconds_count"] == 2
    assert values["tandem_request_queue_time_seconds_count"] == 2
    assert values["tandem_request_queue_time_seconds_sum"] == 0.5
    assert values["tandem_inter_token_latency_seconds_count"] == 2 * (tokens - 1)
    assert values["tandem_inter_token_latency_seconds_sum"] >= 2 * (tokens - 1) * 0.009
    assert values["tandem_e2e_request_latency_seconds_count"] == 2
    assert values["tandem_generation_tokens_total"] == 2 * tokens
    assert values["tandem_prompt_tokens_total"] == 2 * len(request_builder.tokenize("the cat"))
    assert values["tandem_requests_total protocol=http status=OK"] == 2
    assert values["tandem_requests_total protocol=http status=INVALID_ARGUMENT"] == 1
    assert values["tandem_requests_total protocol=http status=INTERNAL"] == 1
    assert values["tandem_kv_cache_usage engine=engine-1"] == 0.25
    assert values["tandem_preemptions_total engine=engine-1"] == 1
    assert values["tandem_waiting_for_total engine=engine-1 reason=slots"] == 3
    assert values["tandem_waiting_for_total engine=engine-1 reason=pages"] == 0
    assert values["tandem_handoff_bytes_total engine=engine-1"] == 4096
    assert values["tandem_encoder_batch_tokens_total"] == 40
    assert values["tandem_encoder_queued_tokens"] == 3
    for name, counted in (
        ("media_encoded_total", 1), ("media_reused_total", 19), ("media_cache_bytes", 256),
        ("engine_media_encoded_total engine=engine-1", 2), ("engine_media_reused_total engine=engine-1", 38),
        ("engine_media_cache_bytes engine=engine-1", 512),
    ):  # fmt: skip
        assert values[f"tandem_{name}"] == counted
