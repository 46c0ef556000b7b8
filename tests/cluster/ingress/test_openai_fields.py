"""Every field that OpenAI and vLLM document is done, or is refused by name with a reason. What clients write
out although it is the default changes nothing."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fake_router import FakeRouter
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from tiny_t5 import write_model

from tandem.workers.request import BeamSearch

NO_DEFAULT = object()


class Field(NamedTuple):
    """A field of vLLM's beyond OpenAI's, as its protocol files have it."""

    default: Any  # as a client writes it out; NO_DEFAULT: it has none
    asking: Any  # a value that asks for something
    reason: str | None = None  # why that is refused; None: it is done


# vllm/entrypoints/openai/completion/protocol.py and chat_completion/protocol.py, and names of older versions.
SHARED = {
    "use_beam_search": Field(False, True),
    "top_k": Field(0, 5),
    "min_p": Field(0.0, 0.1),
    "repetition_penalty": Field(1.0, 1.2),
    "watermarking": Field(False, True, "not supported"),
    "length_penalty": Field(1.0, 0.6),
    "stop_token_ids": Field([], [5]),
    "include_stop_str_in_output": Field(False, True, "stop_reason names it"),
    "ignore_eos": Field(False, True),
    "min_tokens": Field(0, 2),
    "skip_special_tokens": Field(True, False),
    "spaces_between_special_tokens": Field(True, False, "decode"),
    "allowed_token_ids": Field(None, [5], "suppress_tokens"),
    "prompt_logprobs": Field(None, 1),
    "logprob_token_ids": Field(None, [5], "likeliest"),
    "bad_words": Field([], ["dog"]),
    "response_format": Field({"type": "text"}, {"type": "json_object"}, "schema"),
    "structured_outputs": Field(None, {"regex": "a+"}, "grammar"),
    "guided_json": Field(None, {}, "grammar"),
    "guided_regex": Field(None, "a+", "grammar"),
    "guided_choice": Field(None, ["a"], "grammar"),
    "guided_grammar": Field(None, "root ::= a", "grammar"),
    "guided_decoding_backend": Field(None, "xgrammar", "grammar"),
    "guided_whitespace_pattern": Field(None, " ", "grammar"),
    "structural_tag": Field(None, "x", "grammar"),
    "logits_processors": Field(None, ["m.f"], "runs no code"),
    "priority": Field(0, 3),
    "request_id": Field(NO_DEFAULT, "r7"),
    "session_id": Field(None, "s7"),
    "return_tokens_as_token_ids": Field(None, True),
    "return_token_ids": Field(None, True),
    "routed_experts_prompt_start": Field(0, 3, "experts"),
    "return_token_offsets": Field(False, True, "not supported"),
    "return_mm_kwargs": Field(True, False),
    "cache_salt": Field(None, "salt", "share"),
    "kv_transfer_params": Field(None, {"a": 1}, "server's own"),
    "ec_transfer_params": Field(None, {"a": 1}, "server's own"),
    "vllm_xargs": Field(None, {"a": 1}, "plug-ins"),
    "repetition_detection": Field(None, {"max_pattern_size": 3}, "repetition_penalty"),
    "thinking_token_budget": Field(-1, 3, "think"),
    "stream_interval": Field(1, 4, "as they come"),
    "truncate_prompt_tokens": Field(None, -1),
    "truncation_side": Field(None, "left", "keeps a prompt's beginning"),
    "echo": Field(False, True, "/score"),
    "seed": Field(-1, 5),
    "top_p": Field(1, 0),
    "best_of": Field(1, 2, "n answers"),
    "early_stopping": Field(False, NO_DEFAULT),
}
COMPLETION = {
    **SHARED,
    "add_special_tokens": Field(True, False, "token ids"),
    "prompt_embeds": Field(None, "AAAA", "text or token ids"),
    "prompt_token_ids": Field(None, [5], "give prompt a list of token ids"),
    "suffix": Field("", "x", "not supported"),
}
CHAT = {
    **SHARED,
    "add_special_tokens": Field(False, True, "template"),
    "add_generation_prompt": Field(True, False),
    "continue_final_message": Field(False, NO_DEFAULT),
    "documents": Field(None, [{"text": "a", "title": "b"}]),
    "chat_template": Field(None, "{{ messages }}", "model's own"),
    "chat_template_kwargs": Field(None, {"brief": True}),
    "media_io_kwargs": Field(None, {"image": {}}, "processor"),
    "mm_processor_kwargs": Field(None, {"a": 1}, "processor"),
    "return_prompt_text": Field(False, True, "return_token_ids"),
    "reasoning_effort": Field("none", "high", "think"),
    "include_reasoning": Field(True, False),
    "prompt_token_ids": Field(None, [5], "/v1/completions takes a list of ids"),
    "functions": Field([], [{"name": "f"}], "no tools"),
    "tools": Field([], [{"type": "function", "function": {"name": "f"}}], "no tools"),
    "tool_choice": Field("none", "auto", "no tools"),
    "parallel_tool_calls": Field(True, False),
}
EMBEDDING = {
    "add_special_tokens": Field(True, False, "token ids"),
    "priority": Field(0, 3),
    "request_id": Field(NO_DEFAULT, "r7"),
    "session_id": Field(None, "s7"),
    "normalize": Field(None, True),
    "truncate_prompt_tokens": Field(None, 3),
    "truncation_side": Field(None, "left", "keeps a prompt's beginning"),
    "use_activation": Field(None, True, "as they are"),
    "embed_dtype": Field("float32", "float16", "float32"),
    "endianness": Field("native", "big", "little-endian"),
    "dimensions": Field(16, 8, "16 numbers"),
    "encoding_format": Field("float", "base64"),
    "mm_processor_kwargs": Field(None, {"a": 1}, "processor"),
    "media_io_kwargs": Field(None, {"a": 1}, "processor"),
    "cache_salt": Field(None, "salt", "share"),
    "messages": Field(None, [], "input"),
    "prompt_token_ids": Field(None, [5], "give input a list of token ids"),
    "padding": Field(False, True, "does not change it"),
}
TOKENIZE = {
    "messages": Field(NO_DEFAULT, [{"role": "user", "content": "a"}], "return_token_ids"),
    "tools": Field([], [{}], "return_token_ids"),
    "chat_template": Field(None, "x", "return_token_ids"),
    "chat_template_kwargs": Field({}, {"a": 1}, "return_token_ids"),
    "add_generation_prompt": Field(True, False, "return_token_ids"),
    "continue_final_message": Field(False, True, "return_token_ids"),
    "media_io_kwargs": Field(None, {"a": 1}, "processor"),
    "mm_processor_kwargs": Field(None, {"a": 1}, "processor"),
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the cat"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "the cat"}]},
    "/v1/embeddings": {"input": "the cat"},
    "/tokenize": {"prompt": "the cat"},
}
TABLE = [
    (path, name, field)
    for path, fields in zip(BODIES, (COMPLETION, CHAT, EMBEDDING, TOKENIZE), strict=True)
    for name, field in fields.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = "{{ messages[0].content }}{{ '.' if add_generation_prompt }}"
    return write_model(tmp_path_factory.mktemp("fields"), chat_template=template)


async def ask(http: httpx.AsyncClient, path: str, **fields: Any) -> httpx.Response:
    return await http.post(path, json={"model": "tiny", **BODIES[path], **fields})


def without_names(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return {name: value for name, value in body.items() if name not in ("id", "created")}


@pytest.mark.parametrize(("path", "name", "field"), TABLE, ids=lambda value: str(value).split("(")[0])
async def test_each_is_done_or_refused_with_a_reason(
    http: httpx.AsyncClient, path: str, name: str, field: Field
) -> None:
    plain = without_names(await ask(http, path))
    assert without_names(await ask(http, path, **{name: None})) == plain, "null is the default"
    if field.default is not NO_DEFAULT:
        assert without_names(await ask(http, path, **{name: field.default})) == plain
    if field.asking is NO_DEFAULT:
        return
    asked = {name: field.asking, **({"stop": ["x"]} if name == "include_stop_str_in_output" else {})}
    answer = await ask(http, path, **asked)
    if field.reason is None:
        assert answer.status_code == 200, answer.text
    else:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (400, name, "invalid_request_error")
        assert field.reason in error["message"]
        assert "unknown" not in error["message"]


def _names(of: Any) -> set[str]:
    return {name for one in of for name in typing.get_type_hints(one)}


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/completions", [completion_create_params.CompletionCreateParamsNonStreaming]),
        ("/v1/chat/completions", [chat_create_params.CompletionCreateParamsNonStreaming]),
        ("/v1/embeddings", [embedding_create_params.EmbeddingCreateParams]),
    ],
)
async def test_no_field_of_the_openai_package_is_unknown(
    http: httpx.AsyncClient, path: str, kinds: list[Any]
) -> None:
    names = _names(kinds)
    assert len(names) >= 5
    for name in sorted(names - BODIES[path].keys() - {"model"}):
        values: list[Any] = [3, "x", True, [], {}, {"a": 1}]
        for value in values:
            answer = await ask(http, path, **{name: value})
            if answer.status_code != 200:
                error = answer.json()["error"]
                assert answer.status_code == 400, (name, value)
                assert error["message"] != f"{name}: unknown parameter"
                assert error["param"].partition(".")[0] == name


@pytest.mark.parametrize("path", [path for path in BODIES if path.startswith("/v1/")])
async def test_harmless_fields_have_no_effect(http: httpx.AsyncClient, path: str) -> None:
    harmless = {
        "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
        "safety_identifier": "me", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prediction": {"type": "content", "content": "le chat"},
    }  # fmt: skip
    assert without_names(await ask(http, path, **harmless)) == without_names(await ask(http, path))


async def test_beam_search_as_vllm_asks_for_it(http: httpx.AsyncClient, router: FakeRouter) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        for temperature in ({}, {"temperature": 0}, {"temperature": 1.0}):
            answer = await ask(http, path, use_beam_search=True, n=3, length_penalty=0.6, **temperature)
            assert len(answer.json()["choices"]) == 3
            assert router.requests[-1].decoding.beams == BeamSearch(3, 3, 0.6, early_stopping=False)
            assert router.requests[-1].decoding.greedy
        await ask(http, path, use_beam_search=True)
        assert router.requests[-1].decoding.beams is None, "one beam is no search"
        for wrong, param in (
            ({"use_beam_search": True, "n": 3, "temperature": 0.5}, "temperature"),
            ({"use_beam_search": True, "n": 33}, "n"),
            ({"use_beam_search": 3}, "use_beam_search"),
            ({"use_beam_search": True, "n": 2, "num_beams": 4}, "num_beams"),
            ({"use_beam_search": True, "num_return_sequences": 2}, "num_return_sequences"),
        ):
            answer = await ask(http, path, **wrong)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    await ask(http, "/v1/completions", length_penalty=1.0, early_stopping=False, temperature=0.7)
    assert router.requests[-1].decoding.beams is None
    assert router.requests[-1].decoding.temperature == 0.7


async def test_what_means_the_likeliest_token_or_any_seed(
    http: httpx.AsyncClient, router: FakeRouter
) -> None:
    for top_p in (0, 0.0):
        await ask(http, "/v1/completions", top_p=top_p, temperature=1)
        assert 0 < router.requests[-1].decoding.top_p < 1e-5, "no second token is as likely as this"
    await ask(http, "/v1/completions", seed=-1, temperature=1)
    one = router.requests[-1].decoding
    for wrong in ({"seed": -2}, {"seed": True}, {"top_p": -0.1}, {"top_p": False}):
        answer = await ask(http, "/v1/completions", temperature=1, **wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, *wrong)
    assert router.requests[-1].decoding is one


async def test_ids_of_prompt_and_answer(http: httpx.AsyncClient, router: FakeRouter) -> None:
    asked = {
        "return_token_ids": True,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
        "prompt": ["a", "b"],
    }
    whole = (await ask(http, "/v1/completions", **asked)).json()["choices"]
    for choice, request in zip(whole, router.requests, strict=True):
        assert choice["prompt_token_ids"] == list(request.encoder.token_ids)
        assert choice["token_ids"] == [*router.answer, 1]
        assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
        assert list(choice["logprobs"]["top_logprobs"][0]) == [f"token_id:{choice['token_ids'][0]}"]
    text = (await ask(http, "/v1/completions", **asked, stream=True)).text
    parts = [json.loads(line[6:])["choices"][0] for line in text.split("\n\n") if line.startswith("data: {")]
    for choice in whole:
        own = [part for part in parts if part["index"] == choice["index"]]
        assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert all("prompt_token_ids" not in part for part in own[1:])
        assert [i for part in own for i in part["token_ids"]] == choice["token_ids"]
        assert [i for part in own for i in part["logprobs"]["text_offset"]] == choice["logprobs"][
            "text_offset"
        ]


async def test_a_request_id_may_be_in_the_body(http: httpx.AsyncClient) -> None:
    path = "/v1/completions"
    assert (await ask(http, path, request_id="mine")).json()["id"] == "cmpl-mine"
    answer = await http.post(
        path, json={**BODIES[path], "request_id": "mine"}, headers={"x-request-id": "header"}
    )
    assert answer.json()["id"] == "cmpl-mine", "the header is Serve's own where the client sets none"
    answer = await ask(http, path, request_id="x" * 129)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "request_id")


# -- stream_options


async def stream(http: httpx.AsyncClient, path: str, **options: Any) -> list[Any]:
    answer = await ask(http, path, stream=True, stream_options=options)
    assert answer.status_code == 200, answer.text
    *lines, done = answer.text[:-2].split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_stream_options(http: httpx.AsyncClient, router: FakeRouter, path: str) -> None:
    whole = (await ask(http, path)).json()["usage"]
    *chunks, last = await stream(http, path, include_usage=True, include_obfuscation=False)
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (last["choices"], last["usage"]) == ([], whole)

    *chunks, last = await stream(http, path, include_usage=True, continuous_usage_stats=True)
    assert (last["choices"], last["usage"]) == ([], whole)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(router.answer) + 1
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {whole["prompt_tokens"]}
    assert all(
        u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in (c["usage"] for c in chunks)
    )

    for options in (
        {},
        {"include_usage": False},
        {"continuous_usage_stats": True},
        {"include_obfuscation": True},
    ):
        chunks = await stream(http, path, **options)
        assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)
    assert (await ask(http, path, stream_options={})).status_code == 200, "it asks for nothing"


# -- what clients of other projects send, as recorded

_ROOT = Path(__file__).parents[2] / "support" / "recorded_requests.json"
RECORDED: list[dict[str, Any]] = json.loads(_ROOT.read_text())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: f"{one['client']} {one['url']}")
async def test_recorded_requests(http: httpx.AsyncClient, recorded: dict[str, Any]) -> None:
    body = {name: "tiny" if name == "model" else value for name, value in recorded["body"].items()}
    answer = await http.request(recorded["method"], recorded["url"], json=body)
    assert answer.status_code == 200, answer.text
    if body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
