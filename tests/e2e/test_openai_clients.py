"""Other projects' clients of OpenAI's API, unmodified, against a running cluster. Those that are not
installed are skipped; the requests that they send are tried here and in test_openai_fields.py as well."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from models import load_reference
from openai import BadRequestError, OpenAI

from tandem import LLM, Client

from .conftest import PROMPTS, Server

pytestmark = pytest.mark.ray
RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "support" / "recorded_requests.json").read_text()
)


def needs(*modules: str) -> Any:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


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
    found = ([e.embedding for e in answer.data], [e.embedding for e in floats.data], pooled, alone)
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


def run(*command: str, timeout_s: float = 120) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
