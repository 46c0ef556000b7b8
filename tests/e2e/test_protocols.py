"""What clients of every kind get from a running cluster."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from libretranslatepy import LibreTranslateAPI
from openai import OpenAI
from serving import text_request, text_stream
from typer.testing import CliRunner

from tandem import AsyncClient, BeamSearchParams, Client, SamplingParams
from tandem.cli import app
from tandem.v1 import inference_pb2 as pb

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
PROMPT = PROMPTS[0]


def test_grpc_unary_with_plain_stubs(server: Server, expected: dict[str, str]) -> None:
    answer = server.stub.Generate(text_request(PROMPT, max_tokens=32), timeout=60)
    (output,) = answer.outputs
    assert output.text == expected[PROMPT]
    assert output.finish.reason == pb.FINISH_REASON_STOP
    assert answer.usage.generated_tokens == len(output.token_ids)
    assert answer.usage.encoder_tokens == answer.prompt.encoder_tokens > 0


def test_grpc_stream_with_plain_stubs(server: Server, expected: dict[str, str]) -> None:
    messages = list(server.stub.GenerateStream(text_stream(PROMPT, max_tokens=32), timeout=60))
    count = len(messages)
    assert [message.HasField("started") for message in messages] == [True] + [False] * (count - 1)
    assert [message.HasField("usage") for message in messages] == [False] * (count - 1) + [True]
    assert "".join(message.delta.text for message in messages) == expected[PROMPT]
    assert messages[-1].delta.finish.reason == pb.FINISH_REASON_STOP
    generated = sum(len(message.delta.token_ids) for message in messages)
    assert messages[-1].usage.generated_tokens == generated > 1


def test_twenty_questions_of_one_document_cost_one_pass_of_the_encoder(server: Server) -> None:
    def encoded() -> dict[str, float]:
        text = httpx.get(f"{server.http}/metrics").text
        found = re.findall(r"^tandem_encoder_(\w+)_total{.*} (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def ask(client: Client, number: int) -> int:
        params = SamplingParams(max_tokens=8)
        return len(client.generate("A document of its own.", params, decoder_prompt=f"{number}").outputs)

    before = encoded()
    with Client(server.grpc) as client, ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(lambda number: ask(client, number), range(20))) == 20
    grown = {name: value - before[name] for name, value in encoded().items()}
    assert (grown["batches"], grown["cache_misses"], grown["cache_hits"]) == (1, 1, 19)


def test_engines_send_messages_by_the_step_not_by_the_token(server: Server) -> None:
    def counted() -> dict[str, float]:
        text = httpx.get(f"{server.http}/metrics").text
        names = "engine_steps|engine_messages|generation_tokens"
        found = re.findall(rf"^tandem_({names})_total{{.*}} (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def stream(prompt: str) -> int:
        request = text_stream(prompt, max_tokens=100, ignore_eos=True)
        return sum(len(e.delta.token_ids) for e in server.stub.GenerateStream(request, timeout=120))

    before = counted()
    with ThreadPoolExecutor(24) as threads:
        assert sum(threads.map(stream, PROMPTS[:24])) == 24 * 100
    grown = {name: value - before[name] for name, value in counted().items()}
    assert grown["generation_tokens"] == 24 * 100
    assert 0 < grown["engine_messages"] <= grown["engine_steps"]
    assert grown["generation_tokens"] > 4 * grown["engine_messages"]


def test_grpc_health_models_and_tokenize(server: Server) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
    (model,) = server.stub.ListModels(pb.ListModelsRequest(), timeout=60).models
    assert (model.id, model.family) == ("quickstart", "t5")
    ids = server.stub.Tokenize(pb.TokenizeRequest(text="I am tired."), timeout=60).token_ids
    assert ids[-1] == 1
    assert len(ids) > 2


def test_openai_completions(server: Server, expected: dict[str, str]) -> None:
    client = OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["quickstart"]
    answer = client.completions.create(model="quickstart", prompt=PROMPTS[:2], max_tokens=32)
    assert [choice.text for choice in answer.choices] == [expected[prompt] for prompt in PROMPTS[:2]]
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    chunks = list(client.completions.create(model="quickstart", prompt=PROMPT, max_tokens=32, stream=True))
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected[PROMPT]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_decoder_prompt_continues_over_http(server: Server) -> None:
    body = {"prompt": "translate English to French: I am tired.", "decoder_prompt": "Je", "max_tokens": 32}
    answer = httpx.post(f"{server.http}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].startswith(" suis")


def test_libretranslate(server: Server, expected: dict[str, str]) -> None:
    client = LibreTranslateAPI(server.http + "/")
    assert {language["code"] for language in client.languages()} >= {"en", "fr", "de"}
    sentence = PROMPT.removeprefix("translate English to French: ")
    assert client.translate(sentence, "en", "fr") == expected[PROMPT]
    assert client.translate(sentence, "auto", "French") == expected[PROMPT]
    assert client.detect("This is a sentence in English.")[0]["language"] == "en"


def test_libretranslates_page(server: Server, expected: dict[str, str]) -> None:
    """The requests of its page, which sends FormData, from another origin."""
    origin = {"origin": "https://example.com"}
    sentence = PROMPT.removeprefix("translate English to French: ")
    fields = {
        "q": f"<p>{sentence}</p>",
        "source": "auto",
        "target": "fr",
        "format": "html",
        "alternatives": "3",
    }
    form = {name: (None, value) for name, value in {**fields, "api_key": ""}.items()}
    answer = httpx.post(f"{server.http}/translate", files=form, headers=origin, timeout=60)
    assert answer.json()["translatedText"] == f"<p>{expected[PROMPT]}</p>"
    assert answer.json()["detectedLanguage"]["language"] == "en"
    assert answer.headers["access-control-allow-origin"] == "*"
    form |= {"q": (None, sentence), "format": (None, "text")}
    answer = httpx.post(f"{server.http}/translate", files=form, timeout=60)
    texts = [answer.json()["translatedText"], *answer.json()["alternatives"]]
    assert texts[0] == expected[PROMPT]
    assert len(texts) == len(set(texts)) == 4
    settings = httpx.get(f"{server.http}/frontend/settings", timeout=60).json()
    assert settings["language"]["target"] in [
        {"code": "fr", "name": "French"},
        {"code": "de", "name": "German"},
    ]


def test_a_translated_file_is_fetched(server: Server, expected: dict[str, str]) -> None:
    """From the actor that keeps files for all replicas."""
    sentence = PROMPT.removeprefix("translate English to French: ")
    file = ("page.html", f"<h1>{sentence}</h1>".encode())
    data = {"source": "en", "target": "fr"}
    sent = httpx.post(f"{server.http}/translate_file", files={"file": file}, data=data, timeout=60)
    url = sent.json()["translatedFileUrl"]
    assert url.startswith(f"{server.http}/download_file/")
    assert httpx.get(url, timeout=60).text == f"<h1>{expected[PROMPT]}</h1>"


def test_http_tokenize_health_and_metrics(server: Server) -> None:
    assert httpx.get(f"{server.http}/health", timeout=60).status_code == 200
    body = json.dumps({"prompt": "I am tired."}).encode()
    request = urllib.request.Request(
        f"{server.http}/tokenize", body, headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    metrics = httpx.get(f"{server.http}/metrics", timeout=60).text
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "kv_cache_usage"):
        assert f"tandem_{name}" in metrics
    assert re.search(r"tandem_request_queue_time_seconds_count{[^}]*} [1-9]", metrics)
    assert re.search(r"tandem_handoff_bytes_total{[^}]*} [1-9]", metrics)


def test_the_page_and_top(server: Server) -> None:
    """Through Serve's own HTTP server, and of real engines."""
    page = httpx.get(f"{server.http}/", timeout=60)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="(ui/[^"]+)"', page.text):
        assert httpx.get(f"{server.http}/{name}", timeout=60).status_code == 200
    told = {"q": "I am tired.", "source": "en", "target": "fr", "stream": True}
    with httpx.stream("POST", f"{server.http}/translate", json=told, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert json.loads(lines[-2].removeprefix("data: "))["translatedText"]
    shown = CliRunner().invoke(app, ["top", server.http, "--once"])
    assert shown.exit_code == 0, shown.output
    (engine,) = (line.split() for line in shown.output.splitlines() if re.match(r"\w+ +\d+ +32 ", line))
    assert int(engine[5].replace(",", "")) > 10  # pages


def test_200_concurrent_mixed_requests_are_all_right(server: Server, expected: dict[str, str]) -> None:
    openai = OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0)

    def unary(prompt: str) -> str:
        return server.stub.Generate(text_request(prompt, max_tokens=32), timeout=120).outputs[0].text

    def stream(prompt: str) -> str:
        events = server.stub.GenerateStream(text_stream(prompt, max_tokens=32), timeout=120)
        return "".join(event.delta.text for event in events)

    def completion(prompt: str) -> str:
        answer = openai.completions.create(model="quickstart", prompt=prompt, max_tokens=32)
        return answer.choices[0].text

    def sse(prompt: str) -> str:
        chunks = openai.completions.create(model="quickstart", prompt=prompt, max_tokens=32, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    ways = (unary, stream, completion, sse)
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda item: ways[item[0] % 4](item[1]), enumerate(PROMPTS)))
    assert len(answers) == 200
    assert answers == [expected[prompt] for prompt in PROMPTS]


def test_the_sync_client(server: Server, expected: dict[str, str]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=32)
    with Client(server.grpc) as client:
        assert client.health()
        assert [model.id for model in client.models()] == ["quickstart"]
        outputs = client.generate_many(PROMPTS[:8], greedy)
        assert [o.outputs[0].text for o in outputs] == [expected[prompt] for prompt in PROMPTS[:8]]
        assert "".join(piece.text for piece in client.stream(PROMPT, greedy)) == expected[PROMPT]
        assert client.tokenize("Hi.")[-1] == 1


async def test_the_async_client(server: Server, expected: dict[str, str]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=32)
    async with AsyncClient(server.grpc) as client:
        assert (await client.generate(PROMPT, greedy)).outputs[0].text == expected[PROMPT]
        pieces = [piece.text async for piece in client.stream(PROMPT, greedy)]
        assert "".join(pieces) == expected[PROMPT]


def test_samples_over_grpc_equal_those_of_the_engine_alone(server: Server) -> None:
    from tandem import LLM

    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=16)
    with LLM(dtype="float32") as llm:
        (alone,) = llm.generate(PROMPT, params)
    with Client(server.grpc) as client:
        served = client.generate(PROMPT, params)
    assert [o.token_ids for o in served.outputs] == [o.token_ids for o in alone.outputs]


def test_beams_of_every_protocol_are_those_of_the_engine_alone(server: Server) -> None:
    from tandem import LLM

    params = BeamSearchParams(num_beams=4, num_return_sequences=3, length_penalty=0.6, max_tokens=24)
    with LLM(dtype="float32") as llm:
        [alone] = llm.generate(PROMPT, params)
    texts, scores = [o.text for o in alone.outputs], [o.score for o in alone.outputs]
    with Client(server.grpc) as client:
        served = client.generate(PROMPT, params)
        pieces = list(client.stream(PROMPT, params))
    body = {"model": "quickstart", "prompt": PROMPT, **params.model_dump(exclude_unset=True)}
    choices = httpx.post(f"{server.http}/v1/completions", json=body, timeout=60).json()["choices"]
    assert [o.text for o in served.outputs] == [p.text for p in pieces] == texts
    assert [choice["text"] for choice in choices] == texts
    for got in ([o.score for o in served.outputs], [c["score"] for c in choices]):
        assert got == pytest.approx(scores, abs=1e-4)
