"""What an answer's text holds, over gRPC and HTTP: Florence-2's places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_router import FakeRouter
from fake_service import LIMITS, make_service
from florence import BOS, EOS, Reference, image, make_florence, prompt, tokenizer
from grpc_calls import Api, Context

from tandem.cluster.ingress.service import Service
from tandem.limits import Limits
from tandem.params import SamplingParams
from tandem.protocol import wire, wire_answers
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.request_builder import RequestBuilder

TEXT = "cat<loc_1><loc_2><loc_30><loc_40>a dog<loc_5><loc_6><loc_7><loc_8><loc_9><loc_9><loc_9><loc_9>"
IDS = [BOS, *tokenizer()(TEXT, add_special_tokens=False).input_ids, EOS]
ONE = SamplingParams(num_beams=1)
ROOMY: Limits = replace(LIMITS, media_bytes=10**6, encoder_tokens=160)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("florence"))


@pytest.fixture(scope="module")
def request_builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "tiny", ROOMY)


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter(IDS[:-1], EOS)


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, router: FakeRouter) -> Service:
    return make_service(folder, request_builder, router, ROOMY)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    found = Reference(folder).parsed("<OD>", 7, IDS)
    assert len(found["<OD>"]["bboxes"]) == 3
    return found


@pytest.mark.parametrize("skip_special_tokens", [True, False])
async def test_generate(service: Service, expected: Any, skip_special_tokens: bool) -> None:
    params = SamplingParams(num_beams=1, skip_special_tokens=skip_special_tokens)
    request = wire.generate_request(pb.GenerateRequest, prompt("<OD>", 7), params)
    answer = await Api(service).Generate(request.SerializeToString(), Context())
    (output,) = wire_answers.output_of(request, answer).outputs
    assert output.token_ids == IDS
    assert output.parsed == expected
    assert ("<loc_1>" in output.text) is not skip_special_tokens


async def test_a_stream(service: Service, expected: Any) -> None:
    request = wire.generate_request(pb.GenerateStreamRequest, prompt("<OD>", 7), ONE)
    messages = [one async for one in Api(service).GenerateStream(request.SerializeToString(), Context())]
    *others, last = (wire_answers.delta_of(message.delta) for message in messages)
    assert last.parsed == expected
    assert others
    assert all(delta.parsed is None for delta in others)


async def test_a_prompt_without_a_task(service: Service) -> None:
    request = wire.generate_request(pb.GenerateRequest, prompt("Locate the objects.", 7), ONE)
    answer = await Api(service).Generate(request.SerializeToString(), Context())
    assert not answer.outputs[0].HasField("parsed_json")


async def test_http(http: httpx.AsyncClient, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body's prompt is text: the image comes from here."""
    prepare = RequestBuilder.prepare

    def with_image(builder: RequestBuilder, text: Any, *args: Any, **options: Any) -> Any:
        return prepare(builder, {"prompt": text, "multi_modal_data": {"image": image(7)}}, *args, **options)

    monkeypatch.setattr(RequestBuilder, "prepare", with_image)
    body = {"model": "tiny", "prompt": "<OD>", "num_beams": 1}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["parsed"] == expected
    streamed = (await http.post("/v1/completions", json={**body, "stream": True})).text
    chunks = [json.loads(line[6:]) for line in streamed[:-2].split("\n\n")[:-1]]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert choices[-1]["parsed"] == expected
    assert not any("parsed" in choice for choice in choices[:-1])
    plain = await http.post("/v1/completions", json={**body, "prompt": "a cat"})
    assert "parsed" not in plain.json()["choices"][0]
