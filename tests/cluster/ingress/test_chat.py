"""/v1/chat/completions: the model's own template, OpenAI's shapes, refusals by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from fake_router import FakeRouter
from fake_service import ANSWER, connected
from tiny_t5 import write_model
from transformers import AutoTokenizer

from tandem.cluster.ingress.service import Service
from tandem.workers.requests.request_builder import RequestBuilder

# A template of the kind that instruction-tuned checkpoints have: it says what it does not take.
TEMPLATE = (
    "{% if messages[0].role == 'system' and not brief %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) and not brief %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{{ 'the ' if message.role == 'user' else 'a ' }}{{ message.content | trim }}\n"
    "{% endfor %}"
    "{% if documents %}{{ documents[0].text }}{% endif %}"
    "{% if add_generation_prompt %}a cat {% endif %}</s>"
)
USER = {"role": "user", "content": "cat sat"}
MESSAGES = [USER, {"role": "assistant", "content": "dog"}, {"role": "user", "content": " on the mat "}]


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def folder(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Callable[..., Path],
) -> Path:
    """A model with a chat template: a T5 and a GPT-2, both with a T5-like tokenizer."""
    folder = write_model(tmp_path_factory.mktemp("chat"), chat_template=TEMPLATE)
    if request.param == "decoder-only":
        config = (checkpoint("gpt2") / "config.json").read_text()
        (folder / "config.json").write_text(config)
        (folder / "generation_config.json").write_text("{}")
    return folder


async def chat(http: httpx.AsyncClient, messages: Any = (USER,), **body: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, **body})


def read_ids(router: FakeRouter) -> list[int]:
    """What the model read of the last request: the encoder's input, or a decoder-only model's prompt."""
    request = router.requests[-1]
    return list(request.encoder.token_ids or request.prefix_ids)


def events(text: str) -> list[Any]:
    *lines, done = text[:-2].split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# -- the prompt


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        ({}, {}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True}),
        ({"documents": [{"text": "on the mat"}]}, {"documents": [{"text": "on the mat"}]}),
        ({"chat_template_kwargs": {"brief": True}}, {"brief": True}),
    ],
)
async def test_the_prompt_is_that_of_apply_chat_template(
    http: httpx.AsyncClient,
    router: FakeRouter,
    folder: Path,
    fields: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    response = await chat(http, MESSAGES, **fields)
    assert response.status_code == 200, response.text
    right = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        MESSAGES, **{"add_generation_prompt": True, "return_dict": False, **arguments}
    )
    assert read_ids(router) == right
    assert response.json()["usage"]["prompt_tokens"] == len(right)


async def test_parts_of_text_and_what_clients_add_to_messages(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    await chat(http, [USER])
    plain = read_ids(router)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "cat sat"}]},
        {**USER, "name": None},  # an older aiperf's
        {**USER, "name": "me"},
        {**USER, "refusal": None, "tool_calls": None, "audio": None, "annotations": []},  # openai's dump
        {**USER, "reasoning_content": ""},
        {"role": "user", "content": [{"type": "input_text", "text": "cat sat"}]},  # the Responses API's
    ]
    for message in messages:
        assert (await chat(http, [message])).status_code == 200
        assert read_ids(router) == plain
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "dog"}]}
    assert (await chat(http, [MESSAGES[0], refusal, MESSAGES[2]])).status_code == 200
    refused = read_ids(router)
    await chat(http, MESSAGES)
    assert read_ids(router) == refused
    two = [{"type": "text", "text": "cat"}, {"type": "text", "text": "sat"}]
    await chat(http, [{"role": "user", "content": two}])
    joined = read_ids(router)
    await chat(http, [{"role": "user", "content": "cat\nsat"}])
    assert read_ids(router) == joined


async def test_the_developer_is_the_system_where_a_template_does_not_know_it(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    brief = {"chat_template_kwargs": {"brief": True}}
    for role in ("system", "developer"):
        said = [{"role": role, "content": "dog"}, USER]
        assert (await chat(http, said, **brief)).status_code == 200
        response = await chat(http, said)
        assert response.status_code == 400
        assert "System role not supported" in response.json()["error"]["message"]
    first, second = (list(one.encoder.token_ids or one.prefix_ids) for one in router.requests)
    assert first == second


# -- the answer


async def test_a_chat(http: httpx.AsyncClient, router: FakeRouter) -> None:
    response = await chat(http, max_completion_tokens=40, user="me", request_id="r1")
    body = response.json()
    assert response.status_code == 200
    assert (body["id"], body["object"], body["model"]) == ("chatcmpl-r1", "chat.completion", "tiny")
    [choice] = body["choices"]
    content = choice["message"]["content"]
    assert content.strip() == ANSWER
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert body["usage"]["completion_tokens"] == len(router.answer) + 1
    assert router.requests[0].decoding.max_tokens == 40


async def test_a_stream_is_the_whole_answer(http: httpx.AsyncClient) -> None:
    asked = {"n": 2, "temperature": 1.0, "seed": 3, "logprobs": True, "top_logprobs": 1, "stop": [" est"]}
    whole = (await chat(http, **asked)).json()
    chunks = events((await chat(http, stream=True, **asked)).text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        first, *rest = parts
        assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert all(part["delta"].keys() <= {"content"} for part in rest)
        assert "".join(part["delta"].get("content", "") for part in rest) == choice["message"]["content"]
        logprobs = [entry for part in rest for entry in part["logprobs"]["content"]]
        assert logprobs == choice["logprobs"]["content"]
        assert [part["finish_reason"] for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


async def test_log_probabilities_have_the_shape_of_chats(http: httpx.AsyncClient) -> None:
    [choice] = (await chat(http, logprobs=True, top_logprobs=2)).json()["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["refusal"] is None
    *entries, end = logprobs["content"]
    assert end["token"] == "</s>"
    assert "".join(entry["token"] for entry in entries).strip() == ANSWER
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] == -0.25
        assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.25, -2.0]
        assert entry["top_logprobs"][0]["token"] == entry["token"]
    [choice] = (await chat(http, logprobs=True)).json()["choices"]
    assert {tuple(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]} == {()}


async def test_usage_in_a_stream(http: httpx.AsyncClient) -> None:
    *chunks, last = events((await chat(http, stream=True, stream_options={"include_usage": True})).text)
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert last["choices"] == []
    whole = (await chat(http)).json()
    assert last["usage"] == whole["usage"]


async def test_token_ids(http: httpx.AsyncClient, router: FakeRouter) -> None:
    """vLLM's `return_token_ids`: a chat's prompt is the answer's, in a stream the first chunk's."""
    whole = (await chat(http, return_token_ids=True)).json()
    assert whole["prompt_token_ids"] == read_ids(router)
    assert whole["choices"][0]["token_ids"] == [*router.answer, 1]
    first, *rest = events((await chat(http, return_token_ids=True, stream=True)).text)
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    assert all("prompt_token_ids" not in chunk for chunk in rest)
    ids = [i for chunk in rest for i in chunk["choices"][0]["token_ids"]]
    assert ids == whole["choices"][0]["token_ids"]


# -- refusals


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "cat", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "a", "name": 3}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "a", "wild": 3}]}, "messages[0].wild"),
        ({"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "messages[0]"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[1]"),
        ({"messages": [USER, USER]}, "messages"),  # the template's own refusal
        ({"messages": [{"role": "user", "content": "cat " * 100}]}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [{}]}, "functions"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"conversations": 1}}, "chat_template_kwargs.conversations"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"task": "translation_en_to_fr"}, "task"),
        ({"target_language": "fr"}, "target_language"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 64}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"logprobs": 2}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"prompt": "a"}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"request_id": 3}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"wild": 1}, "wild"),
    ],
)
async def test_a_bad_value_is_refused_by_name(
    http: httpx.AsyncClient, router: FakeRouter, change: dict[str, Any], param: str
) -> None:
    content = json.dumps({"model": "tiny", "messages": [USER], **change})
    response = await http.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    assert not router.requests


async def test_a_template_that_breaks_is_the_requests_fault(
    service: Service, request_builder: RequestBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for broken in (
        "{{ messages[7].content }}{{ messages[7].content.x }}",
        "{{ 1 // 0 }}",
        "{{ messages | map(attribute='x') | sum }}",
        "{% for m in messages %}",
        "{{ ''.__class__.__mro__ }}{{ cycler.__init__.__globals__ }}",
    ):
        monkeypatch.setattr(request_builder.chat_template._tokenizer, "chat_template", broken)
        async with connected(service) as client:
            response = await chat(client)
            assert (response.status_code, response.json()["error"]["param"]) == (400, "messages"), broken


# -- OpenAI's own client


async def test_openai_python(http: httpx.AsyncClient) -> None:
    client = openai.AsyncOpenAI(base_url="http://tandem/v1", api_key="-", http_client=cast(Any, http))
    whole = await client.chat.completions.create(
        model="tiny", messages=cast(Any, [USER]), logprobs=True, top_logprobs=1, n=2, max_completion_tokens=30
    )
    assert [choice.message.content.strip() for choice in whole.choices if choice.message.content] == [
        ANSWER
    ] * 2
    assert whole.choices[0].logprobs is not None
    again = [USER, whole.choices[0].message.model_dump(), USER]
    assert (await client.chat.completions.create(model="tiny", messages=cast(Any, again))).usage is not None
    text, usage = "", None
    async for chunk in await client.chat.completions.create(
        model="tiny", messages=cast(Any, [USER]), stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text.strip() == ANSWER
    assert usage is not None
    async with client.chat.completions.stream(model="tiny", messages=cast(Any, [USER])) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == text
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        await client.chat.completions.create(
            model="tiny",
            messages=cast(Any, [USER]),
            tools=cast(Any, [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        )
