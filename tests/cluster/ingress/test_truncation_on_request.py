"""`truncate_prompt_tokens` over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_router import FakeRouter
from grpc_calls import Api, Context
from transformers import AutoTokenizer

from tandem.cluster.ingress.service import Service
from tandem.protocol import wire
from tandem.v1 import inference_pb2 as pb

LONG = "the cat sat on the mat " * 40


@pytest.fixture
def expected(service: Service) -> list[int]:
    tokenizer: Any = AutoTokenizer.from_pretrained(service.config.model)
    return list(tokenizer(LONG, truncation=True, max_length=9)["input_ids"])


@pytest.mark.parametrize(
    ("path", "rest"), [("/v1/completions", {"max_tokens": 3}), ("/score", {"targets": ["the cat"]})]
)
async def test_over_http(
    http: httpx.AsyncClient, router: FakeRouter, expected: list[int], path: str, rest: dict[str, Any]
) -> None:
    body = {"model": "tiny", "prompt": LONG, **rest}
    refused = (await http.post(path, json=body)).json()["error"]
    assert refused["param"] == "prompt"
    assert refused["message"].endswith(": shorten it or set truncate_prompt_tokens")
    answer = await http.post(path, json={**body, "truncate_prompt_tokens": 9})
    assert answer.status_code == 200, answer.text
    assert list(router.requests[0].encoder.token_ids) == expected
    for value in (0, 65, "9"):
        refused = (await http.post(path, json={**body, "truncate_prompt_tokens": value})).json()["error"]
        assert refused["param"] == "truncate_prompt_tokens"
    assert (await http.post(path, json={**body, "truncate_prompt_tokens": -1})).status_code == 200
    assert len(router.requests[1].encoder.token_ids) == 64


async def test_over_grpc(service: Service, router: FakeRouter, expected: list[int]) -> None:
    request = wire.generate_request(pb.GenerateRequest, LONG, truncate_prompt_tokens=9)
    assert request.options.truncate_prompt_tokens == 9
    await Api(service).Generate(request.SerializeToString(), Context())
    assert list(router.requests[0].encoder.token_ids) == expected
