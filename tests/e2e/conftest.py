"""One cluster with the bundled model for all of tests/e2e."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from serving import make_config

from tandem import LLM, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints
from tandem.v1 import inference_pb2_grpc as pb_grpc


@dataclass(frozen=True)
class Server:
    config: ServeConfig
    endpoints: Endpoints
    stub: pb_grpc.InferenceServiceStub

    @property
    def grpc(self) -> str:
        return self.endpoints.grpc[0]

    @property
    def http(self) -> str:
        return f"http://{self.endpoints.http[0]}"


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    config = make_config(max_num_seqs=32)
    with launch.serve(config) as cluster:
        endpoints = cluster.endpoints()
        with grpc.insecure_channel(endpoints.grpc[0]) as channel:
            yield Server(config, endpoints, pb_grpc.InferenceServiceStub(channel))


SENTENCES = [
    f"I have {n} {noun}." for noun in ("dogs", "books", "friends", "keys", "cars") for n in range(2, 22)
]
PROMPTS = [f"translate English to {language}: {s}" for s in SENTENCES for language in ("French", "German")]


@pytest.fixture(scope="package")
def expected() -> dict[str, str]:
    """The engine's own greedy answers to PROMPTS."""
    with LLM(dtype="float32") as llm:
        outputs = llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    return {prompt: o.outputs[0].text for prompt, o in zip(PROMPTS, outputs, strict=True)}
