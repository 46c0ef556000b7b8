"""/v1/completions and /v1/models as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_router import FakeRouter

from tandem.cluster.ingress.http.app import build_app
from tandem.cluster.ingress.service import Service
from tandem.errors import InternalError, Overloaded, Unavailable
from tandem.workers.request import BeamSearch
from tandem.workers.requests.request_builder import RequestBuilder

SENTENCE = "le chat est sur le tapis"


async def complete(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json={"model": "tiny", "prompt": "the cat", **body})


async def choices(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await complete(http, **body)
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["choices"]
    return found


def events(text: str) -> list[Any]:
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line[6:] == "[DONE]" else json.loads(line[6:]) for line in lines]


async def test_chats_want_a_template(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "cat sat"}]}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "messages: 'tiny' has no chat template; use /v1/completions"
    )
    other = await http.post("/v1/chat/completions", json={**body, "model": "other"})
    assert other.status_code == 404


# -- whole answers


async def test_a_completion(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    response = await http.post(
        "/v1/completions",
        json={"model": "tiny", "prompt": "the cat", "max_tokens": 40, "user": "me", "temperature": None},
        headers={"x-request-id": "r1"},
    )
    body = response.json()
    assert response.status_code == 200
    assert (body["id"], body["object"], body["model"]) == ("cmpl-r1", "text_completion", "tiny")
    assert body["choices"] == [
        {"index": 0, "text": SENTENCE, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    prompt_tokens, tokens = len(request_builder.tokenize("the cat")), len(router.answer) + 1
    assert body["usage"] == {
        "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens,
    }  # fmt: skip


async def test_every_kind_of_prompt(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    ids = request_builder.tokenize("the cat")
    for prompt, count in (("the cat", 1), (["the cat", "the cat"], 2), (ids, 1), ([ids, ids], 2)):
        router.requests.clear()
        assert [choice["index"] for choice in await choices(http, prompt=prompt)] == list(range(count))
        assert {request.encoder.token_ids for request in router.requests} == {tuple(ids)}


async def test_decoder_prompts(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    ids = request_builder.tokenize("le")[:-1]
    for decoder in ("le", ids, ["le", "le"], [ids, ids]):
        router.requests.clear()
        assert all(
            choice["text"] == " " + SENTENCE
            for choice in await choices(http, prompt=["a", "b"], decoder_prompt=decoder)
        )
        assert {request.prefix_ids for request in router.requests} == {(0, *ids)}


async def test_languages_and_task(
    http: httpx.AsyncClient, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    prefixed = tuple(request_builder.tokenize("translate English to French: the cat"))
    for chosen in (
        {"source_language": "en", "target_language": "fr"},
        {"source_language": "eng", "target_language": "fr-CA"},
        {"task": "translation_en_to_fr"},
    ):
        response = await http.post("/v1/completions", json={"prompt": "the cat", **chosen})
        assert response.is_success
        assert router.requests[-1].encoder.token_ids == prefixed
    for field in ("source_language", "target_language", "task"):
        response = await http.post("/v1/completions", json={"prompt": "the cat", field: "xx"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)
        assert "'xx' is not" in response.json()["error"]["message"]
        response = await http.post("/score", json={"prompt": "a", "targets": ["b"], field: "xx"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, field)


async def test_beams(http: httpx.AsyncClient, router: FakeRouter) -> None:
    """One of its own parameters makes it a beam search."""
    body = {"prompt": ["a", "b"], "num_beams": 4, "num_return_sequences": 2, "early_stopping": "never"}
    found = await choices(http, **body)
    assert [(c["index"], c["score"]) for c in found] == [(0, -0.5), (1, -1.5), (2, -0.5), (3, -1.5)]
    assert found[0]["text"] == SENTENCE
    assert router.requests[0].decoding.beams == BeamSearch(4, 2, 1.0, early_stopping="never")
    *streamed, done = events((await complete(http, stream=True, **body)).text)
    assert done == "[DONE]"
    shown = sorted((one for event in streamed for one in event["choices"]), key=lambda one: one["index"])
    assert shown == found


@pytest.fixture
async def searching(service: Service, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose own way is beam search."""
    service.request_builder = RequestBuilder.load(folder, "tiny", overrides={"num_beams": 3})
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://tandem") as client:
        yield client


async def test_a_default_that_is_written_out_leaves_the_models_beams(
    searching: httpx.AsyncClient, router: FakeRouter
) -> None:
    client = client_of(searching)
    await client.completions.create(model="tiny", prompt="the cat")
    await client.completions.create(
        model="tiny", prompt="the cat", n=1, temperature=0, top_p=1, stop=[], seed=3, presence_penalty=0,
        frequency_penalty=0, logprobs=None, max_tokens=20, best_of=1, echo=False, logit_bias={},
        extra_body={"top_k": -1, "min_p": 0, "length_penalty": 1.0, "num_return_sequences": 1},
    )  # fmt: skip
    assert [request.decoding.beams and request.decoding.beams.num_beams for request in router.requests] == [
        3,
        3,
    ]
    router.requests.clear()
    await client.completions.create(model="tiny", prompt="the cat", temperature=0.7, n=2)
    await client.completions.create(model="tiny", prompt="the cat", stop="x", extra_body={"num_beams": 1})
    assert [request.decoding.beams for request in router.requests] == [None] * 3
    refused: dict[str, Any] = {"n": 2, "stop": ["x"], "logprobs": 1}
    for name, value in refused.items():
        with pytest.raises(openai.BadRequestError, match=f"{name}: does not go with beam search") as caught:
            await client.completions.create(model="tiny", prompt="the cat", **{name: value})
        assert caught.value.param == name


async def test_beam_sampling(http: httpx.AsyncClient, router: FakeRouter) -> None:
    await choices(http, num_beams=2, temperature=0.7, top_k=5, seed=3)
    how = router.requests[-1].decoding
    assert how.beams is not None
    assert (how.temperature, how.top_k, how.seed) == (0.7, 5, 3)


async def test_samples_of_several_prompts_are_numbered_through(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    body = {"prompt": ["a", "b"], "n": 3, "temperature": 1.0, "seed": 4}
    first = await choices(http, **body)
    assert [choice["index"] for choice in first] == list(range(6))
    assert len({choice["text"] for choice in first[:3]}) > 1
    assert await choices(http, **body) == first
    assert len({request.request_id for request in router.requests}) == 12


async def test_parameters_reach_the_engine(http: httpx.AsyncClient, router: FakeRouter) -> None:
    await complete(
        http, temperature=0.5, top_k=3, min_p=0.1, repetition_penalty=1.5, priority=2, timeout_s=9,
        ignore_eos=True, min_tokens=2, best_of=1, echo=False, presence_penalty=0, logit_bias=None,
    )  # fmt: skip
    [request] = router.requests
    decoding = request.decoding
    assert (decoding.temperature, decoding.top_k, decoding.min_p) == (0.5, 3, 0.1)
    assert (decoding.repetition_penalty, decoding.min_tokens, decoding.stop_ids) == (1.5, 2, frozenset())
    assert (request.priority, request.timeout_s) == (2, 9)


async def test_a_stop_string_ends_the_request_on_the_engine(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    router.stall_after = len(router.answer)
    [choice] = await choices(http, stop=[" sur"])
    assert (choice["text"], choice["finish_reason"]) == ("le chat est", "stop")
    assert choice["stop_reason"] == " sur"
    assert len(router.cancelled) == 1


async def test_logprobs_in_the_legacy_shape(http: httpx.AsyncClient) -> None:
    [choice] = await choices(http, logprobs=2)
    logprobs = choice["logprobs"]
    *tokens, end = logprobs["tokens"]
    assert "".join(tokens) == choice["text"]
    assert end == "</s>"
    assert logprobs["token_logprobs"] == [-0.25] * len(logprobs["tokens"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"].startswith(token if token != end else "", offset)
    assert all(token in top for token, top in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
    assert next(iter(logprobs["top_logprobs"][0].values())) == -0.25


async def test_prompt_logprobs_in_vllms_shape(
    http: httpx.AsyncClient, request_builder: RequestBuilder
) -> None:
    [token_id] = request_builder.tokenize("cat")[:1]
    asked = {"decoder_prompt": [[0, token_id]], "n": 2, "prompt_logprobs": 1, "seed": 1}
    whole = await choices(http, **asked)
    for choice in whole:
        first, entries = choice["prompt_logprobs"]
        assert first is None
        assert list(entries) == ["5", str(token_id)]
        assert (entries["5"]["logprob"], entries["5"]["rank"]) == (-0.5, 1)
        assert (entries[str(token_id)]["logprob"], entries[str(token_id)]["rank"]) == (-2.5, 7)
        assert entries["5"]["decoded_token"]
    assert all("prompt_logprobs" not in choice for choice in await choices(http))


async def test_a_deadline_with_some_tokens_is_an_answer(http: httpx.AsyncClient, router: FakeRouter) -> None:
    router.deadline_after = 3
    [choice] = await choices(http)
    assert choice["finish_reason"] == "deadline"
    assert SENTENCE.startswith(choice["text"])
    router.deadline_after = 0
    response = await complete(http)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")


# -- streams


async def test_a_stream(http: httpx.AsyncClient, router: FakeRouter) -> None:
    response = await complete(http, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response.text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == SENTENCE
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == len(router.answer) + 1
    assert done == "[DONE]"


async def test_streams_have_the_same_texts_as_whole_answers(http: httpx.AsyncClient) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "temperature": 1.0, "seed": 1, "stop": [" est"], "logprobs": 1}
    whole = await choices(http, **body)
    for index, choice in enumerate(whole):
        text, tokens, offsets = "", [], []
        for event in events((await complete(http, stream=True, **body)).text)[:-1]:
            [part] = event["choices"]
            if part["index"] == index:
                text += part["text"]
                tokens += part["logprobs"]["tokens"]
                offsets += part["logprobs"]["text_offset"]
        assert (text, tokens, offsets) == (
            choice["text"], choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"],
        )  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_is_a_status(
    http: httpx.AsyncClient, router: FakeRouter, stream: bool
) -> None:
    full, gone = Overloaded("full", retry_after_s=2.25), Unavailable("gone")
    for error, status, after in ((full, 429, "3"), (gone, 503, None)):
        router.fail(error)
        response = await complete(http, stream=stream)
        assert response.status_code == status
        assert response.headers.get("retry-after") == after
        assert response.json()["error"]["message"] == str(error)
    assert not router.live


async def test_an_error_later_is_the_streams_last_event(
    http: httpx.AsyncClient, router: FakeRouter, service: Service
) -> None:
    router.fail(Unavailable("gone"), after=3)
    response = await complete(http, stream=True)
    *chunks, error = events(response.text)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text
    assert SENTENCE.startswith(text)
    assert error["error"]["type"] == "service_unavailable_error"
    assert b'method="completions",model="tiny",protocol="http",replica="replica-1",status="UNAVAILABLE"' in (
        service.metrics.text()
    )


async def test_an_unexpected_error_is_logged_and_not_shown(
    http: httpx.AsyncClient, router: FakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    router.fail(RuntimeError("secret"))
    response = await complete(http)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "request id" in caplog.text
    router.fail(RuntimeError("secret"), after=2)
    response = await complete(http, stream=True)
    assert "secret" not in response.text
    assert "internal" in response.text


async def test_one_failing_sample_cancels_the_others(http: httpx.AsyncClient, router: FakeRouter) -> None:
    router.fail(InternalError("broken"), after=2)
    assert (await complete(http, n=4)).status_code == 500
    assert not router.live


# -- refusals


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [10_000]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"prompt": ["a"] * 3, "n": 3}, "prompt"),
        ({"prompt": "a b c d " * 30}, "prompt"),
        ({"decoder_prompt": ["a", "b"]}, "decoder_prompt"),
        ({"decoder_prompt": [10_000]}, "decoder_prompt"),
        ({"decoder_prompt": 3}, "decoder_prompt"),
        ({"model": "other"}, "model"),
        ({"model": 3}, "model"),
        ({"best_of": 2}, "best_of"),
        ({"num_beams": 4, "temperature": -0.5}, "temperature"),
        ({"num_beams": 4, "stop": ["a"]}, "stop"),
        ({"num_beam_groups": 2}, "num_beam_groups"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"wild": 1}, "wild"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": "2"}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": 61}, "timeout_s"),
        ({"priority": 99}, "priority"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "num_beams": 2}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"seed": -2}, "seed"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"stop": 3}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"user": 3}, "user"),
    ],
)
async def test_a_bad_value_is_refused_by_name(
    http: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str
) -> None:
    content = json.dumps({"model": "tiny", "prompt": "the cat", **change})
    response = await http.post(
        "/v1/completions", content=content, headers={"content-type": "application/json"}
    )
    error = response.json()["error"]
    assert response.status_code == (404 if change.get("model") == "other" else 400)
    assert error["param"] == param
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert not router.requests


async def test_a_bad_request_id_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "x" * 129})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-request-id")


# -- OpenAI's own client


def client_of(http: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://tandem/v1", api_key="-", http_client=http, max_retries=2)


async def test_openai_python(http: httpx.AsyncClient, router: FakeRouter) -> None:
    client = client_of(http)
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "tandem"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")
    whole = await client.completions.create(model="tiny", prompt="the cat", logprobs=1, n=2)
    assert [choice.text for choice in whole.choices] == [SENTENCE] * 2
    text = ""
    async for chunk in await client.completions.create(
        model="tiny", prompt="the cat", stream=True, extra_body={"decoder_prompt": "le"}
    ):
        text += chunk.choices[0].text
    assert text == " " + SENTENCE
    with pytest.raises(openai.BadRequestError, match="best_of"):
        await client.completions.create(model="tiny", prompt="the cat", best_of=3)
    router.fail(Unavailable("gone"), after=2)
    with pytest.raises(openai.APIError, match="gone"):
        async for _ in await client.completions.create(model="tiny", prompt="the cat", stream=True):
            pass


async def test_openai_python_tries_an_overloaded_server_again(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    client = client_of(http)
    router.fail(Overloaded("full"))

    async def recover() -> None:
        await asyncio.sleep(0.2)
        router.error = None

    recovery = asyncio.create_task(recover())
    answer = await client.completions.create(model="tiny", prompt="the cat")
    await recovery
    assert answer.choices[0].text == SENTENCE
