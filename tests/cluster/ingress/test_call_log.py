"""Each call of a client is one line, short, with all that is known of it and nothing of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fake_router import FakeRouter
from grpc_calls import Api, Context, refused

from tandem.cluster.callers import Quotas
from tandem.cluster.ingress.service import Service
from tandem.cluster.keys import line_of
from tandem.cluster.telemetry import logs
from tandem.v1 import inference_pb2 as pb

SECRET = "chat"  # of the prompt and of the answer


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []

    def call(fields: Mapping[str, object]) -> None:
        line = logs._text(0.0, "INFO", "call", fields)
        assert len(line) < 300
        assert SECRET not in line
        said.append(logs._given(fields))

    monkeypatch.setattr(logs, "call", call)
    return said


async def test_an_answer(http: httpx.AsyncClient, lines: list[dict[str, Any]]) -> None:
    body = {"prompt": f"le {SECRET}", "max_tokens": 3}
    answer = await http.post("/v1/completions", json=body, headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    [line] = lines
    usage = answer.json()["usage"]
    times = {name: line.pop(name) for name in ("first_token_ms", "total_ms")}
    assert 0 <= times["first_token_ms"] <= times["total_ms"] < 60_000
    line.pop("queue_ms", None)
    assert line == {
        "protocol": "http", "method": "completions", "status": "OK", "request_id": "mine",
        "finish_reason": "length", "prompt_tokens": usage["prompt_tokens"],
        "generated_tokens": usage["completion_tokens"],
    }  # fmt: skip


async def test_refusals_of_both_protocols(
    service: Service, http: httpx.AsyncClient, lines: list[dict[str, Any]]
) -> None:
    assert (await http.post("/v1/completions", json={"prompt": SECRET, SECRET: 1})).status_code == 400
    await refused(Api(service).Generate(SECRET.encode(), context := Context()), context)
    assert [(line["protocol"], line["method"], line["status"]) for line in lines] == [
        ("http", "completions", "INVALID_ARGUMENT"), ("grpc", "Generate", "INVALID_ARGUMENT"),
    ]  # fmt: skip


async def test_a_defect_is_logged_without_what_it_quotes(
    http: httpx.AsyncClient, router: FakeRouter, lines: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise ValueError(f"cannot read {SECRET}")

    monkeypatch.setattr(router, "accept", fail)
    answer = await http.post("/v1/completions", json={"prompt": "le"}, headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    [line] = lines
    assert (line["status"], line["request_id"]) == ("INTERNAL", "mine")
    [record] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "request id mine: ValueError" in record.getMessage()
    assert "in fail" in record.getMessage()
    assert SECRET not in caplog.text.replace('"cannot read {SECRET}"', "")


async def test_a_caller_is_named_and_a_stranger_is_refused_in_one_line(
    service: Service, lines: list[dict[str, Any]], tmp_path: Any
) -> None:
    from tandem.cluster.ingress.edge.guard import Guard
    from tandem.cluster.keys import Keys

    (path := tmp_path / "keys").write_text(line_of("acme", "the-key", Quotas()))
    service.guard = Guard(Keys(str(path), None))
    api, empty = Api(service), pb.ListModelsRequest().SerializeToString()
    await api.ListModels(empty, Context(**{"x-api-key": "the-key"}))
    await refused(api.ListModels(empty, context := Context()), context)
    assert [line.get("tenant") for line in lines] == ["acme", None]
    assert lines[1]["status"] == "UNAUTHENTICATED"
