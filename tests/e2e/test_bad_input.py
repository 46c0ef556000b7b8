"""Bad input over both protocols gets a typed error that names the field, and no process dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from serving import sampling_params, text_request

from tandem.v1 import inference_pb2 as pb

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
GOOD = PROMPTS[0]
SERVICE = "/tandem.v1.InferenceService/"

# What is wrong, the field the error names, the HTTP body's change, the gRPC request's.
Case = tuple[str, str, dict[str, Any], dict[str, Any]]


def text(value: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"prompt": value}, {"encoder_prompt": {"text": value}}


def ids(value: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"prompt": value}, {"encoder_prompt": {"token_ids": {"ids": value}}}


def sampling(**values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return values, {"sampling_params": sampling_params(**values)}


BOTH: list[Case] = [
    ("empty prompt", "prompt", *text("")),
    ("too long in tokens", "prompt", *text("dog " * 5000)),
    ("too long in characters", "prompt", *text("x" * 10**6)),
    ("no ids", "prompt", *ids([])),
    ("id out of range", "prompt", *ids([5, 4000])),
    ("n beyond the cap", "n", *sampling(n=65)),
    ("n of zero", "n", *sampling(n=0)),
    ("max_tokens beyond the cap", "max_tokens", *sampling(max_tokens=10**6)),
    ("too many stops", "stop", *sampling(stop=["a"] * 17)),
    ("a stop too long", "stop", *sampling(stop=["a" * 257])),
    ("min_tokens above max_tokens", "min_tokens", *sampling(min_tokens=9, max_tokens=3)),
    ("logprobs beyond the cap", "logprobs", *sampling(logprobs=21)),
    ("negative temperature", "temperature", *sampling(temperature=-1.0)),
    ("temperature NaN", "temperature", *sampling(temperature=float("nan"))),
    ("temperature infinite", "temperature", *sampling(temperature=float("inf"))),
    ("top_p below zero", "top_p", *sampling(top_p=-0.5)),
    ("priority beyond the cap", "priority", {"priority": 11}, {"options": {"priority": 11}}),
    ("unknown model", "model", {"model": "gpt-5"}, {"options": {"model": "gpt-5"}}),
]
HTTP_ONLY: list[tuple[str, str, Any]] = [
    ("wrong type", "temperature", {"prompt": GOOD, "temperature": "warm"}),
    ("wrong prompt type", "prompt", {"prompt": {"a": 1}}),
    ("a float among ids", "prompt", {"prompt": [1, 2.5]}),
    ("a number as a boolean", "stream", {"prompt": GOOD, "stream": "yes"}),
    ("unknown field", "temprature", {"prompt": GOOD, "temprature": 1}),
    ("unsupported parameter", "best_of", {"prompt": GOOD, "best_of": 3}),
    ("no prompt", "prompt", {"max_tokens": 3}),
    ("too many prompts", "prompt", {"prompt": [GOOD] * 257}),
]


@pytest.fixture(autouse=True)
def _the_server_goes_on(server: Server, expected: dict[str, str]) -> Iterator[None]:
    yield
    answer = server.stub.Generate(text_request(GOOD, max_tokens=32), timeout=60)
    assert answer.outputs[0].text == expected[GOOD]


def post(server: Server, content: bytes, **headers: str) -> httpx.Response:
    headers = {"content-type": "application/json"} | headers
    return httpx.post(f"{server.http}/v1/completions", content=content, headers=headers, timeout=60)


def check_http(response: httpx.Response, field: str | None) -> None:
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error["message"]
    if field is not None:
        assert (error["param"] or "").split(".")[0] == field, error


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case[0])
def test_http(server: Server, case: Case) -> None:
    _, field, change, _ = case
    response = post(server, json.dumps({"prompt": GOOD} | change).encode())
    check_http(response, field)
    assert response.status_code == (404 if field == "model" else 400)


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case[0])
@pytest.mark.parametrize("streaming", [False, True])
def test_grpc(server: Server, case: Case, streaming: bool) -> None:
    _, field, _, change = case
    kind: Any = pb.GenerateStreamRequest if streaming else pb.GenerateRequest
    request = kind(**({"encoder_prompt": {"text": GOOD}} | change))
    call: Any = server.stub.GenerateStream if streaming else server.stub.Generate
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request, timeout=60))
    error: Any = caught.value
    wanted = grpc.StatusCode.NOT_FOUND if field == "model" else grpc.StatusCode.INVALID_ARGUMENT
    assert error.code() is wanted, error.details()
    assert field in error.details()


@pytest.mark.parametrize(("field", "body"), [pytest.param(*rest, id=name) for name, *rest in HTTP_ONLY])
def test_what_only_json_can_say(server: Server, field: str, body: Any) -> None:
    check_http(post(server, json.dumps(body).encode()), field)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"prompt": "\xff\xfe"}', b'"text"', b'{"prompt": "\\ud800"}']
)
def test_bodies_that_are_no_json_object(server: Server, content: bytes) -> None:
    check_http(post(server, content), None)


def test_other_content_types_paths_and_methods(server: Server) -> None:
    check_http(post(server, b"prompt=x", **{"content-type": "text/plain"}), None)
    check_http(httpx.get(f"{server.http}/v1/completions", timeout=60), None)
    check_http(httpx.get(f"{server.http}/v1/nothing", timeout=60), None)


def test_a_body_over_the_limit(server: Server) -> None:
    response = post(server, json.dumps({"prompt": "x" * (5 * 2**20)}).encode())
    assert response.status_code == 413
    assert response.json()["error"]["message"]


def test_bad_translations(server: Server) -> None:
    url = f"{server.http}/translate"
    for body, word in (
        ({"q": "Hi.", "source": "en", "target": "xx"}, "xx is not supported"),
        ({"source": "en", "target": "fr"}, "q"),
        ({"q": "Hi.", "source": "en", "target": "fr", "colour": 1}, "colour"),
    ):
        response = httpx.post(url, json=body, timeout=60)
        assert response.status_code == 400, response.text
        assert word in response.json()["error"]


def raw(server: Server, data: bytes, method: str = "Generate") -> grpc.RpcError:
    """Sends bytes that no stub would send."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(SERVICE + method, lambda data: data, lambda data: data)
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=60)
        return caught.value


def test_grpc_no_prompt(server: Server) -> None:
    error: Any = raw(server, b"")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "encoder_prompt" in error.details()


def test_grpc_invalid_utf8(server: Server) -> None:
    # encoder_prompt { text: "\xff\xfe" }
    error: Any = raw(server, b"\x0a\x04\x0a\x02\xff\xfe")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "encoder_prompt.text" in error.details()


def test_grpc_unknown_field(server: Server) -> None:
    # Field 99, a varint.
    error: Any = raw(server, text_request(GOOD).SerializeToString() + b"\x98\x06\x01")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "99" in error.details()


@pytest.mark.parametrize("data", [b"\xff", b"\x1a\x7f", b"\x08" * 40])
def test_grpc_garbage(server: Server, data: bytes) -> None:
    error: Any = raw(server, data)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [5 * 2**20, 40 * 2**20])
def test_grpc_message_over_the_limit(server: Server, size: int) -> None:
    error: Any = raw(server, text_request("x" * size).SerializeToString())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_grpc_unknown_method(server: Server) -> None:
    error: Any = raw(server, b"", "Transcend")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
