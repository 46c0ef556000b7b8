"""/v1/embeddings and the RPCs Embed and Detokenize over the fake router, whose hidden states are known."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, cast

import httpx
import numpy as np
import openai
import pytest
from fake_router import WIDTH, FakeRouter
from grpc_calls import Api, Context, refused
from transformers import AutoTokenizer

from tandem.cluster.ingress.call import Call
from tandem.cluster.ingress.service import Service
from tandem.errors import Unavailable
from tandem.protocol import wire, wire_answers
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.request_builder import RequestBuilder

COLUMNS = np.arange(1.0, WIDTH + 1, dtype=np.float32)


async def embed(http: httpx.AsyncClient, input_: Any = "the cat", **fields: Any) -> httpx.Response:
    return await http.post("/v1/embeddings", json={"model": "tiny", "input": input_, **fields})


def mean(ids: list[int]) -> list[float]:
    floats: list[float] = (np.mean(ids) * COLUMNS).tolist()
    return floats


async def test_every_kind_of_input(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    ids = request_builder.tokenize("the cat")
    for given, count in (("the cat", 1), (["the cat", "the cat"], 2), (ids, 1), ([ids, ids], 2)):
        body = (await embed(http, given)).json()
        assert (body["object"], body["model"]) == ("list", "tiny")
        assert [entry["index"] for entry in body["data"]] == list(range(count))
        for entry in body["data"]:
            assert entry["object"] == "embedding"
            assert entry["embedding"] == pytest.approx(mean(ids))
        tokens = count * len(ids)
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert {one.encoder.token_ids for one in router.encoded} == {tuple(ids)}


async def test_encodings_and_pooling(http: httpx.AsyncClient, request_builder: RequestBuilder) -> None:
    ids = request_builder.tokenize("the cat")
    [entry] = (await embed(http, encoding_format="base64")).json()["data"]
    values = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4")
    assert values == pytest.approx(mean(ids))
    [entry] = (await embed(http, pooling="first")).json()["data"]
    assert entry["embedding"] == pytest.approx((ids[0] * COLUMNS).tolist())
    [entry] = (await embed(http, normalize=True)).json()["data"]
    assert np.linalg.norm(entry["embedding"]) == pytest.approx(1)


async def test_as_many_inputs_as_openai_takes_a_few_at_a_time(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    words = ["the", "cat", "sat"] * 7
    body = (await embed(http, words)).json()
    ids = [request_builder.tokenize(word) for word in words]
    assert [entry["embedding"] for entry in body["data"]] == [pytest.approx(mean(one)) for one in ids]
    assert [list(one.encoder.token_ids) for one in router.encoded] == ids
    assert body["usage"]["prompt_tokens"] == sum(map(len, ids))
    assert len((await embed(http, [[5, 1]] * 2048)).json()["data"]) == 2048


async def test_options_reach_the_router(http: httpx.AsyncClient, router: FakeRouter) -> None:
    await embed(http, priority=3, timeout_s=9)
    [one] = router.encoded
    assert (one.priority, one.timeout_s) == (3, 9)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [10_000]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a b c d " * 30}, "input"),
        ({"encoding_format": "bytes"}, "encoding_format"),
        ({"dimensions": 3}, "dimensions"),
        ({"pooling": "none"}, "pooling"),
        ({"pooling": "max"}, "pooling"),
        ({"normalize": 1}, "normalize"),
        ({"timeout_s": 61}, "timeout_s"),
        ({"priority": 99}, "priority"),
        ({"temperature": 1}, "temperature"),
        ({"user": 3}, "user"),
        ({"model": "other"}, "model"),
    ],
)
async def test_a_bad_value_is_refused_by_name(
    http: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str
) -> None:
    response = await embed(http, **{"input_": change.pop("input", "the cat"), **change})
    assert response.status_code == (404 if change.get("model") == "other" else 400)
    assert response.json()["error"]["param"] == param, response.text
    assert not router.encoded


async def test_failures_and_a_full_server(http: httpx.AsyncClient, router: FakeRouter) -> None:
    router.fail(Unavailable("gone"))
    assert (await embed(http)).status_code == 503
    router.full = True
    assert (await embed(http)).status_code == 429


async def test_a_client_that_goes_cancels(service: Service, router: FakeRouter) -> None:
    router.stall_after = 0
    with Call(service, "grpc", "Embed") as call:
        prepared = await call.prepare_embed(["the cat"], "mean")
        working = asyncio.create_task(call.embed(prepared))
        await asyncio.sleep(0.01)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    assert len(router.cancelled) == 1


async def test_openai_python(http: httpx.AsyncClient, request_builder: RequestBuilder) -> None:
    client = openai.AsyncOpenAI(base_url="http://tandem/v1", api_key="-", http_client=cast(Any, http))
    ids = request_builder.tokenize("the cat")
    for extra in ({}, {"encoding_format": "float"}):  # it asks for base64 by itself
        answer = await client.embeddings.create(model="tiny", input=["the cat"], **cast(Any, extra))
        assert answer.data[0].embedding == pytest.approx(mean(ids))
        assert answer.usage.prompt_tokens == len(ids)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        await client.embeddings.create(model="tiny", input="a", dimensions=3)


# -- gRPC


@pytest.fixture
def api(service: Service) -> Api:
    return Api(service)


async def test_embed(api: Api, request_builder: RequestBuilder, router: FakeRouter) -> None:
    ids = request_builder.tokenize("the cat")
    prompts: list[Any] = ["the cat", {"prompt_token_ids": [7, 5, 1]}]
    right = {
        "mean": [np.mean(ids) * COLUMNS, np.mean([7, 5, 1]) * COLUMNS],
        "first": [ids[0] * COLUMNS, 7 * COLUMNS],
        "none": [np.outer(ids, COLUMNS), np.outer([7, 5, 1], COLUMNS)],
    }
    for pooling, states in right.items():
        request = wire.embed_request(prompts, cast(Any, pooling), request_id="r1", priority=2, timeout_s=1.5)
        response = await api.Embed(request.SerializeToString(), Context())
        outputs = wire_answers.embeddings_of(request, response)
        assert [output.request_id for output in outputs] == ["r1", "r1"]
        assert [output.encoder_tokens for output in outputs] == [len(ids), 3]
        for output, one in zip(outputs, states, strict=True):
            np.testing.assert_allclose(output.embedding, one, rtol=1e-6)
    assert {(one.priority, one.timeout_s) for one in router.encoded} == {(2, 1.5)}
    plain = pb.EmbedRequest(encoder_prompts=[pb.EncoderPrompt(text="the cat")])
    [embedding] = (await api.Embed(plain.SerializeToString(), Context())).embeddings
    assert list(embedding.values) == pytest.approx(mean(ids)), "the mean is what is left unsaid"


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (pb.EmbedRequest(), "encoder_prompts: 1 to 2048 prompts, got 0"),
        (
            pb.EmbedRequest(encoder_prompts=[{"text": "a"}] * 2049),
            "encoder_prompts: 1 to 2048 prompts, got",
        ),
        (pb.EmbedRequest(encoder_prompts=[{"text": "a"}, {}]), "encoder_prompts.1: one of text"),
        (pb.EmbedRequest(encoder_prompts=[{"text": ""}]), "encoder_prompts: must not be empty"),
        (
            pb.EmbedRequest(encoder_prompts=[{"token_ids": {"ids": [2**31]}}]),
            "encoder_prompts.token_ids: id 2147483648",
        ),
        (
            pb.EmbedRequest(encoder_prompts=[{"media": [{"modality": 1, "data": b"x"}]}]),
            "encoder_prompts.media: 'tiny' takes text only",
        ),
        (
            pb.EmbedRequest(encoder_prompts=[{"text": "a"}], pooling=cast(Any, 9)),
            "pooling: must be one of POOLING_",
        ),
        (pb.EmbedRequest(encoder_prompts=[{"text": "a"}], options={"timeout_ms": 0}), "timeout_ms: "),
        (pb.EmbedRequest(encoder_prompts=[{"text": "a"}], options={"model": "other"}), "model: no model"),
    ],
)
async def test_a_bad_message_is_refused_by_name(api: Api, request_: pb.EmbedRequest, details: str) -> None:
    context = Context()
    code, said = await refused(api.Embed(request_.SerializeToString(), context), context)
    assert said.startswith(details), said
    assert code.name == ("NOT_FOUND" if "model" in said[:6] else "INVALID_ARGUMENT")


async def test_raw_states_have_a_limit(api: Api, service: Service) -> None:
    width = service.request_builder.info.encoder_width
    assert width == 16
    limits = service.request_builder.limits
    object.__setattr__(limits, "embedding_values", 4 * width)
    try:
        for prompts, pooling, refused_ in (
            ([[5, 6, 7, 1]], "none", False),
            ([[5, 6, 7, 8, 1]], "none", True),
            ([[5, 6, 7, 8, 9, 1]] * 4, "mean", False),
            ([[5, 1]] * 5, "mean", True),
        ):
            given: list[Any] = [{"prompt_token_ids": ids} for ids in prompts]
            message = wire.embed_request(given, cast(Any, pooling)).SerializeToString()
            context = Context()
            if refused_:
                _, said = await refused(api.Embed(message, context), context)
                assert "have 80 numbers, the limit is 64" in said
            else:
                await api.Embed(message, context)
    finally:
        object.__setattr__(limits, "embedding_values", 2**21)


async def test_detokenize(
    api: Api, http: httpx.AsyncClient, request_builder: RequestBuilder, folder: Any
) -> None:
    """The text of transformers' `decode`, special tokens included unless they are to be left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for ids in (request_builder.tokenize("the cat sat"), [0, 5, 1, 6], [5], []):
        for skip in (False, True):
            right = tokenizer.decode(ids, skip_special_tokens=skip)
            request = wire.detokenize_request(ids, skip_special_tokens=skip)
            assert (await api.Detokenize(request.SerializeToString(), Context())).text == right
            answer = await http.post("/detokenize", json={"tokens": ids, "skip_special_tokens": skip})
            assert answer.json() == {"prompt": right}
    assert (await http.post("/detokenize", json={"tokens": [5], "model": "tiny"})).status_code == 200
    for body, param in (
        ({}, "tokens"),
        ({"tokens": "a"}, "tokens"),
        ({"tokens": [1.5]}, "tokens.0"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": [10_000]}, "tokens"),
        ({"tokens": [5], "wild": 1}, "wild"),
        ({"tokens": [5], "model": "other"}, "model"),
    ):
        answer = await http.post(
            "/detokenize", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code == (404 if param == "model" else 400)
        assert answer.json()["error"]["param"] == param
    context = Context()
    message = pb.DetokenizeRequest(token_ids=[2**31]).SerializeToString()
    _, said = await refused(api.Detokenize(message, context), context)
    assert said.startswith("token_ids: id 2147483648")


async def test_tokenize_as_vllm_has_it(http: httpx.AsyncClient, request_builder: RequestBuilder) -> None:
    ids = request_builder.tokenize("the cat")
    asked = {"prompt": "the cat", "add_special_tokens": False, "return_token_strs": True}
    said = (await http.post("/tokenize", json=asked)).json()
    assert said["tokens"] == ids[:-1]
    assert len(said["token_strs"]) == said["count"] == len(ids) - 1
    assert "".join(said["token_strs"]).replace("▁", " ").strip() == "the cat"
    for body in ({**asked, "prompt": ""}, {**asked, "prompt": "a b c d " * 30}):
        answer = await http.post("/tokenize", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
