"""Every interface counts the same: encoder positions, and those of images among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import florence
import mllama
import pytest
import t5gemma2
import vision
import whisper
from fake_service import LIMITS, connected, make_service
from grpc_calls import Api, Context
from image_cases import Case
from image_chats import image_part, text_part
from local_router import LocalRouter

from tandem import LLM, SamplingParams
from tandem.cluster.ingress.metrics import Metrics
from tandem.outputs import RequestOutput
from tandem.protocol import wire, wire_answers
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.request_builder import RequestBuilder

ROOMY = replace(LIMITS, media_bytes=10**5, encoder_tokens=160, decoder_tokens=200)
SHORT = SamplingParams(temperature=0, max_tokens=3, num_beams=1)


@dataclass(frozen=True)
class Asked:
    """A prompt, and what it takes by transformers' processors and layers."""

    text: str
    images: list[Any]
    encoder_tokens: int
    media_tokens: int
    decoder_tokens: int


def of_mllama(folder: Path) -> Asked:
    mllama.make_mllama(folder)
    words = f"{mllama.text(1)} {mllama.IMAGE_TEXT} {mllama.text(2)} {mllama.IMAGE_TEXT}"
    case = Case(words, [mllama.image(1), mllama.image(2, 50, 9)])
    ids = mllama.Reference(folder).inputs(case)["input_ids"]
    tiles = 4 * (1 + (14 // 7) ** 2)  # of CLS and patches, those of padding, too
    return Asked(words, case.images, 2 * tiles, 2 * tiles, ids.shape[1])


def of_t5gemma2(folder: Path) -> Asked:
    t5gemma2.make_t5gemma2(folder)
    words = f"{t5gemma2.text(1)}{t5gemma2.IMAGE_TEXT}{t5gemma2.text(2)}{t5gemma2.IMAGE_TEXT}"
    case = Case(words, [t5gemma2.image(1), t5gemma2.image(2)])
    ids = t5gemma2.Reference(folder).inputs(case)["input_ids"][0]
    image_id = t5gemma2.tokenizer().convert_tokens_to_ids("<image_soft_token>")
    return Asked(words, case.images, len(ids), int((ids == image_id).sum()), 1)


def of_florence(folder: Path) -> Asked:
    florence.make_florence(folder)
    reference = florence.Reference(folder)
    ids = reference.inputs("<OD>", 1)["input_ids"][0]
    own = int((ids == reference.processor.image_token_id).sum())
    return Asked("<OD>", [florence.image(1)], len(ids), own, 1)


def of_a_captioner(folder: Path) -> Asked:
    vision.make_vision(folder, "vit-gpt2")
    positions = vision.Reference(folder, vision.PAIRS["vit-gpt2"].processor).positions
    return Asked("bi bo", [vision.picture(1)], positions, positions, 3)


def metric(metrics: Metrics, name: str) -> float:
    labels = {"model": "tiny", "replica": "replica-1", "tenant": ""}
    return metrics.registry.get_sample_value(f"tandem_{name}_total", labels) or 0.0


@pytest.mark.parametrize("make", [of_mllama, of_t5gemma2, of_florence, of_a_captioner])
async def test_every_interface_counts_the_same(make: Callable[[Path], Asked], tmp_path: Path) -> None:
    asked = make(tmp_path)
    prompt: Any = {"prompt": asked.text, "multi_modal_data": {"image": asked.images}}
    counted = {"encoder_tokens": asked.encoder_tokens, "media_tokens": asked.media_tokens}
    with LLM(str(tmp_path), dtype="float32", max_encoder_length=160) as llm:
        (output,) = llm.generate(prompt, SHORT)
        assert (output.encoder_tokens, output.media_tokens) == (asked.encoder_tokens, asked.media_tokens)
        assert len(output.prompt_token_ids) == asked.decoder_tokens
        generated = len(output.outputs[0].token_ids)
        # -- gRPC
        router = LocalRouter(llm._engine)
        service = make_service(tmp_path, RequestBuilder.load(tmp_path, "tiny", ROOMY), router, ROOMY)
        api, usages = Api(service), []
        request = wire.generate_request(pb.GenerateRequest, prompt, SHORT)
        response = await api.Generate(request.SerializeToString(), Context())
        usages.append((response.prompt, response.usage))
        client: RequestOutput = wire_answers.output_of(request, response)
        assert (client.encoder_tokens, client.media_tokens) == (output.encoder_tokens, output.media_tokens)
        streamed = wire.generate_request(pb.GenerateStreamRequest, prompt, SHORT)
        pieces = [one async for one in api.GenerateStream(streamed.SerializeToString(), Context())]
        usages.append((pieces[0].started.prompt, pieces[-1].usage))
        for told, usage in usages:
            assert usage == pb.Usage(
                **counted, decoder_prompt_tokens=asked.decoder_tokens, generated_tokens=generated
            )
            info: dict[str, Any] = {**counted, "decoder_token_ids": output.prompt_token_ids}
            assert told == pb.PromptInfo(**info)
        # -- HTTP
        parts = [image_part(one) for one in asked.images] + [text_part(asked.text)]
        body: dict[str, Any] = {
            "model": "tiny", "messages": [{"role": "user", "content": parts}], "temperature": 0,
            "max_tokens": 3, "num_beams": 1,
        }  # fmt: skip
        start = 0 if asked.decoder_tokens > 3 else 1  # which no client has given, but for mllama's
        tokens = asked.encoder_tokens + asked.decoder_tokens - start
        right = {
            "prompt_tokens": tokens, "completion_tokens": generated, "total_tokens": tokens + generated,
            "prompt_tokens_details": {
                "image_tokens": asked.media_tokens, "text_tokens": tokens - asked.media_tokens,
            },
        }  # fmt: skip
        async with connected(service) as http:
            whole = await http.post("/v1/chat/completions", json=body)
            assert whole.json()["usage"] == right
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            chunks = (await http.post("/v1/chat/completions", json=body)).text.split("\n\n")
            assert json.loads(chunks[-3].removeprefix("data: "))["usage"] == right
        # -- metrics and logs
        assert metric(service.metrics, "prompt_tokens") == 4 * asked.encoder_tokens
        assert metric(service.metrics, "prompt_media_tokens") == 4 * asked.media_tokens
        if llm.info.decoder_start_id is not None:
            (score,) = llm.score(prompt, "bi")
            scored = wire.score_request(prompt, "bi")
            answer = await api.Score(scored.SerializeToString(), Context())
            assert (answer.prompt.encoder_tokens, answer.prompt.media_tokens) == tuple(counted.values())
            found = wire_answers.scores_of(scored, answer)
            for one in (score, found):
                assert (one.encoder_tokens, one.media_tokens) == tuple(counted.values())
            assert metric(service.metrics, "prompt_media_tokens") == 5 * asked.media_tokens


async def test_recordings_are_counted_too(tmp_path: Path) -> None:
    folder = whisper.make_whisper(tmp_path, "base")
    positions = 50
    prompt = whisper.audio(whisper.sound(1))
    with LLM(str(folder), dtype="float32") as llm:
        (output,) = llm.generate(prompt, SHORT, source_language="fr")
        assert (output.encoder_tokens, output.media_tokens) == (positions, positions)
        service = make_service(
            folder, RequestBuilder.load(folder, "tiny", ROOMY), LocalRouter(llm._engine), ROOMY
        )
        embedded = wire.embed_request([prompt, prompt])
        answer = await Api(service).Embed(embedded.SerializeToString(), Context())
        assert [one.encoder_tokens for one in answer.embeddings] == [positions] * 2
        assert metric(service.metrics, "prompt_media_tokens") == 2 * positions


async def test_texts_have_no_media() -> None:
    """Their usage says nothing of images."""
    with LLM() as llm:
        (output,) = llm.generate("a b", SHORT)
        assert output.encoder_tokens == len(output.encoder_prompt_token_ids)
        assert output.media_tokens == 0
        folder = llm.folder
        service = make_service(
            folder, RequestBuilder.load(folder, "tiny", ROOMY), LocalRouter(llm._engine), ROOMY
        )
        async with connected(service) as http:
            answer = await http.post("/v1/completions", json={"prompt": "a b", "max_tokens": 2})
        assert set(answer.json()["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
