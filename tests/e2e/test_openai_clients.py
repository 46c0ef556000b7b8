"""Other projects' clients of OpenAI's API, unmodified, against a running cluster. Those that are not
installed are skipped; the requests that they send are tried here and in test_openai_fields.py as well."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from batches import in_process
from models import load_reference
from openai import BadRequestError, OpenAI

from tandem import LLM, Client
from tandem.batch import run as batch
from tandem.batch.openai_lines import HttpServer
from tandem.workers.models.model_folder import resolve

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "recorded_requests.json").read_text()
)


def need(*modules: str) -> None:
    """Skips a test where one of these is not installed."""
    for name in modules:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # a package above it
            found = False
        if not found:
            pytest.skip(f"not installed: {name}")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_embeddings_are_the_encoders(server: Server, client: OpenAI) -> None:
    """Over HTTP, gRPC and in this process, next to generations; the right ones are transformers'."""
    texts = PROMPTS[:6]
    with LLM(dtype="float32") as llm:
        model = load_reference(llm.folder)
        right = []
        for text in texts:
            states = model.get_encoder()(input_ids=_tensor(llm.tokenize(text))).last_hidden_state[0]
            right.append(states.detach().numpy())
        alone = [output.embedding for output in llm.embed(texts)]
    answer = client.embeddings.create(model="quickstart", input=texts)
    floats = client.embeddings.create(model="quickstart", input=texts, encoding_format="float")
    with Client(server.grpc) as grpc:
        pooled = [output.embedding for output in grpc.embed(texts)]
        raw = [output.embedding for output in grpc.embed(texts, "none")]
        ids = llm_ids(grpc, texts[0])
        assert grpc.detokenize(ids, skip_special_tokens=True) == texts[0]
    found: tuple[list[Any], ...] = (
        [e.embedding for e in answer.data],
        [e.embedding for e in floats.data],
        pooled,
        alone,
    )
    for one in found:
        for got, states in zip(one, right, strict=True):
            np.testing.assert_allclose(got, states.mean(0), rtol=1e-5, atol=1e-5)
    for got, states in zip(raw, right, strict=True):
        np.testing.assert_allclose(got, states, rtol=1e-5, atol=1e-5)
    assert answer.usage.prompt_tokens == sum(map(len, right))


def llm_ids(client: Client, text: str) -> list[int]:
    return client.tokenize(text)


def _tensor(ids: list[int]) -> Any:
    import torch

    return torch.tensor([ids])


def test_openai_streams_usage_and_refuses_chats(client: OpenAI, expected: dict[str, str]) -> None:
    chunks = list(
        client.completions.create(
            model="quickstart", prompt=PROMPTS[0], max_tokens=32, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == expected[PROMPTS[0]]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    with pytest.raises(BadRequestError, match="has no chat template; use /v1/completions"):
        client.chat.completions.create(model="quickstart", messages=[{"role": "user", "content": "Hi."}])


@pytest.mark.parametrize(
    "recorded",
    [one for one in RECORDED if "chat" not in one["url"]],
    ids=lambda one: f"{one['client']} {one['url']}",
)
def test_recorded_requests(server: Server, recorded: dict[str, Any]) -> None:
    answer = httpx.request(
        recorded["method"], server.http + recorded["url"], json=recorded["body"], timeout=60
    )
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def model(server: Server) -> str:
    """The folder of the model that is served: benchmarks count tokens by its tokenizer."""
    return str(resolve(server.config.model))


def run(folder: Path, *command: str) -> str:
    """Runs a Python module in a folder of its own; returns what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=180, env=environment,
        cwd=folder, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    return said


def test_langchain(server: Server, expected: dict[str, str]) -> None:
    need("langchain_openai")
    langchain: Any = importlib.import_module("langchain_openai")
    common: Any = {
        "base_url": f"{server.http}/v1",
        "api_key": "none",
        "model": "quickstart",
        "max_retries": 0,
    }
    llm = langchain.OpenAI(**common, max_tokens=32, temperature=0)
    assert llm.invoke(PROMPTS[0]) == expected[PROMPTS[0]]
    assert "".join(llm.stream(PROMPTS[0])) == expected[PROMPTS[0]]
    answers = llm.generate(PROMPTS[:3])
    assert [one[0].text for one in answers.generations] == [expected[prompt] for prompt in PROMPTS[:3]]
    assert answers.llm_output["token_usage"]["completion_tokens"] > 0
    # Its own tokenizer would make ids of another vocabulary.
    embeddings = langchain.OpenAIEmbeddings(**common, check_embedding_ctx_length=False)
    one, other = embeddings.embed_documents(["I am tired.", "I am happy."])
    np.testing.assert_allclose(embeddings.embed_query("I am tired."), one, rtol=1e-5, atol=1e-6)
    assert one != other


def test_llama_index(server: Server, expected: dict[str, str]) -> None:
    need(embeddings := "llama_index.embeddings.openai_like", llms := "llama_index.llms.openai_like")
    common: Any = {"api_base": f"{server.http}/v1", "api_key": "none", "max_retries": 0}
    llm = importlib.import_module(llms).OpenAILike(
        **common, model="quickstart", is_chat_model=False, max_tokens=32, temperature=0
    )
    assert llm.complete(PROMPTS[0]).text == expected[PROMPTS[0]]
    assert "".join(one.delta for one in llm.stream_complete(PROMPTS[0])) == expected[PROMPTS[0]]
    embedding = importlib.import_module(embeddings).OpenAILikeEmbedding(**common, model_name="quickstart")
    [one] = embedding.get_text_embedding_batch(["I am tired."])
    np.testing.assert_allclose(embedding.get_text_embedding("I am tired."), one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("api", ["/v1/completions", "/v1/embeddings"])
def test_guidellm(server: Server, model: str, tmp_path: Path, api: str) -> None:
    need("guidellm")
    run(
        tmp_path, "guidellm", "run", "--disable-console",
        "--backend", f"kind=openai_http,target={server.http},request_format={api}",
        "--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=6",
        "--tokenizer", f"kind=huggingface_auto,model={model}",
        "--data", "kind=synthetic_text,prompt_tokens=12,output_tokens=8",
        "--output", "kind=json,path=report.json",
    )  # fmt: skip
    [benchmark] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (6, 0)


@pytest.mark.parametrize("api", ["completions", "embeddings"])
def test_aiperf(server: Server, model: str, tmp_path: Path, api: str) -> None:
    need("aiperf")
    streams = ["--streaming", "--extra-inputs", "ignore_eos:true"] if api == "completions" else []
    said = run(
        tmp_path, "aiperf", "profile", "-m", "quickstart", "--url", server.http, "--endpoint-type", api,
        *streams, "--tokenizer", model, "--request-count", "6", "--concurrency", "2", "--ui", "none",
        "--synthetic-input-tokens-mean", "12", "--output-tokens-mean", "8",
        "--output-artifact-dir", str(tmp_path / "artifacts"),
    )  # fmt: skip
    report = json.loads((tmp_path / "artifacts" / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 6, said[-2000:]
    assert not report.get("error_summary")


LOCUSTFILE = """
from locust import HttpUser, task

class Client(HttpUser):
    @task
    def complete(self):
        body = {"model": "quickstart", "prompt": "translate English to French: I am tired.", "max_tokens": 8}
        self.client.post("/v1/completions", json=body)
        streamed = self.client.post("/v1/completions", json={**body, "stream": True}, stream=True)
        assert list(streamed.iter_lines())[-2] == b"data: [DONE]"
        self.client.post("/v1/embeddings", json={"model": "quickstart", "input": "I am tired."})
"""


def test_locust(server: Server, tmp_path: Path) -> None:
    need("locust")
    (tmp_path / "locustfile.py").write_text(LOCUSTFILE)
    run(
        tmp_path, "locust", "--headless", "-u", "2", "-r", "2", "-t", "3s", "-H", server.http, "--csv", "out",
        "--exit-code-on-error", "1",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out_stats.csv").open()))
    assert {row["Failure Count"] for row in rows} == {"0"}
    assert int(rows[-1]["Request Count"]) > 3


def test_openai_request_lines_of_a_batch(server: Server, expected: dict[str, str], tmp_path: Path) -> None:
    """The lines that OpenAI's batches have; the answers are the server's own."""
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bodies: list[tuple[str, dict[str, Any]]] = [
        *(("/v1/completions", {"model": "quickstart", "prompt": p, "max_tokens": 32}) for p in PROMPTS[:4]),
        ("/v1/embeddings", {"model": "quickstart", "input": PROMPTS[0]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi."}]}),
    ]
    source.write_text(
        "".join(
            json.dumps({"custom_id": f"r{n}", "method": "POST", "url": url, "body": body}) + "\n"
            for n, (url, body) in enumerate(bodies)
        )
    )
    done = batch.run(
        source,
        sink,
        None,
        connect_http=lambda: HttpServer([server.http]),
        use_tqdm=False,
        pipeline=in_process,
    )
    assert (done.answered, done.refused) == (5, 1)
    lines = [json.loads(line) for line in sink.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(6)]
    assert [line["response"]["status_code"] for line in lines] == [200] * 5 + [400]
    texts = [line["response"]["body"]["choices"][0]["text"] for line in lines[:4]]
    assert texts == [expected[prompt] for prompt in PROMPTS[:4]]
    assert len(lines[4]["response"]["body"]["data"][0]["embedding"]) == 256
    assert "has no chat template" in lines[5]["response"]["body"]["error"]["message"]
    assert {line["error"] for line in lines} == {None}
    assert all(line["response"]["request_id"] for line in lines)
