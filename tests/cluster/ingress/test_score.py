"""/score."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fake_router import FakeRouter

from tandem.errors import Unavailable
from tandem.workers.requests.request_builder import RequestBuilder

SENTENCE = "le chat est sur le tapis"


async def test_targets_of_text_and_ids(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    body = {"prompt": "the cat", "decoder_prompt": "le", "targets": [SENTENCE, [7, 1]], "model": "tiny"}
    response = await http.post("/score", json=body, headers={"x-request-id": "r1"})
    ids = request_builder.tokenize(SENTENCE)
    logprobs = [-0.25 * n for n in range(len(ids))]
    assert response.json() == {
        "id": "r1",
        "object": "score",
        "model": "tiny",
        "scores": [
            {"index": 0, "token_ids": ids, "token_logprobs": logprobs, "logprob": sum(logprobs)},
            {"index": 1, "token_ids": [7, 1], "token_logprobs": [0, -0.25], "logprob": -0.25},
        ],
        "usage": {"prompt_tokens": len(request_builder.tokenize("the cat")), "target_tokens": len(ids) + 2},
    }
    assert {len(request.prefix_ids) > 1 for request in router.requests} == {True}
    metrics = (await http.get("/metrics")).text
    assert 'method="score"' in metrics


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": []}, "prompt", "has no tokens"),
        ({"prompt": [2**31]}, "prompt", "id 2147483648"),
        ({"prompt": "", "decoder_prompt": "le"}, "prompt", "must not be empty"),
        ({"decoder_prompt": []}, "decoder_prompt", "has no tokens"),
        ({"targets": []}, "targets", "1 to 256 targets, got 0"),
        ({"targets": ["a"] * 257}, "targets", "1 to 256 targets, got 257"),
        ({"targets": ["a", ""]}, "targets.1", "must not be empty"),
        ({"targets": ["a", [1, 2**31]]}, "targets.1", "id 2147483648 at 1"),
        ({"targets": ["a b c d " * 30]}, "targets.0", "has"),
        ({"priority": 99}, "priority", "must be an integer"),
        ({"timeout_s": 0}, "timeout_s", "must be above 0"),
        ({"temperature": 1}, "temperature", "unknown parameter"),
        ({"model": "other"}, "model", "no model"),
    ],
)
async def test_a_bad_value_is_refused_by_name(
    http: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str, message: str
) -> None:
    response = await http.post("/score", json={"prompt": "the cat", "targets": ["le chat"], **change})
    assert response.status_code == (404 if param == "model" else 400)
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert not router.requests


async def test_errors_become_statuses(http: httpx.AsyncClient, router: FakeRouter) -> None:
    router.fail(Unavailable("gone"))
    response = await http.post("/score", json={"prompt": "the cat", "targets": ["a", "le"]})
    assert (response.status_code, response.json()["error"]["message"]) == (503, "gone")
    assert not router.live
