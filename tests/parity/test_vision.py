"""VisionEncoderDecoderModels, held to `VisionEncoderDecoderModel.generate` at batch 1, token for token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import VOCAB, word_tokenizer
from parity import ranks_in_threads, serve
from PIL.Image import Image
from vision import PAIRS, START, TOKENS, Reference, cases, make_vision, picture, png, prompt

from tandem import LLM, BeamSearchParams, InvalidRequest, SamplingParams
from tandem.limits import Limits
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import EngineRequest
from tandem.workers.requests.answers.document_fields import DocumentFields
from tandem.workers.requests.answers.page_text import PageText
from tandem.workers.requests.media.image import ImageProcessor
from tandem.workers.requests.request_builder import RequestBuilder

GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)


@dataclass
class Made:
    """A pair's checkpoint, the reference for it, and pictures with transformers' answers."""

    folder: Path
    reference: Reference
    images: tuple[Image, ...]
    answers: list[list[int]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @cache
    def make(pair: str) -> Made:
        folder = make_vision(tmp_path_factory.mktemp(pair), pair)
        reference = Reference(folder, PAIRS[pair].processor)
        images, expected = zip(*cases(reference, 5), strict=True)
        return Made(folder, reference, images, list(expected))

    return make


def answers(outputs: list[Any]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair(pair: str, made: Callable[[str], Made]) -> None:
    """Pictures of several sizes in one batch, greedily and with beams."""
    one = made(pair)
    assert len({tuple(ids) for ids in one.answers}) >= 4
    with LLM(str(one.folder), dtype="float32", max_num_seqs=3) as llm:
        outputs = llm.generate([prompt(image) for image in one.images], GREEDY, use_tqdm=False)
        assert answers(outputs) == one.answers
        assert outputs[0].prompt_token_ids == [START]
        assert not outputs[0].encoder_prompt_token_ids
        (searched,) = llm.generate(
            prompt(one.images[0]), BeamSearchParams(num_beams=3, length_penalty=1.3, max_tokens=6)
        )
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    assert searched.outputs[0].token_ids == one.reference.generate(
        one.images[0], num_beams=3, length_penalty=1.3, max_new_tokens=6, do_sample=False
    )


def requests(one: Made, engine: Engine) -> list[EngineRequest]:
    builder = RequestBuilder.load(one.folder, "model")
    prepared = [builder.prepare(prompt(image), GREEDY).sequences[0] for image in one.images]
    return [
        replace(request, request_id=str(number), encoder=engine.prepare(request.encoder))
        for number, request in enumerate(prepared)
    ]


TIGHT: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "page_size": 4, "num_pages": 50, "max_num_seqs": 6,
    "check_invariants": True,
}  # fmt: skip


@pytest.mark.parametrize("async_encode", [False, True])
def test_preempted(async_encode: bool, made: Callable[[str], Made]) -> None:
    """Too few pages for all: images are encoded again, from the pixel values that are kept."""
    one = made("trocr")
    engine = Engine(EngineConfig(str(one.folder), async_encode=async_encode, **TIGHT))
    assert serve(engine, requests(one, engine)) == one.answers
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("pair", ["trocr", "vit-gpt2"])
def test_tensor_parallel(pair: str, made: Callable[[str], Made]) -> None:
    """Two ranks, some requests preempted: pixel values go to the other rank."""
    one = made(pair)
    config = EngineConfig(str(one.folder), tensor_parallel_size=2, **TIGHT)
    with ranks_in_threads(config) as (engine, _):
        assert serve(engine, requests(one, engine)) == one.answers
        assert engine.stats().preemptions > 0


def test_the_prompt_is_the_decoders(made: Callable[[str], Made]) -> None:
    """Task prompts, of text or of ids, with the start token or without it."""
    one = made("trocr")
    image = picture(1)
    ids = [9, 30, 12]
    text = " ".join(one.reference.tokens(ids))
    expected = one.reference.generate(image, [START, *ids], max_new_tokens=6, do_sample=False)
    said = [
        prompt(image, text),
        {"prompt_token_ids": ids, "multi_modal_data": {"image": image}},
        {"prompt_token_ids": [START, *ids], "multi_modal_data": {"image": image}},
        {"encoder_prompt": prompt(image), "decoder_prompt": text},
    ]
    with LLM(str(one.folder), dtype="float32") as llm:
        outputs = llm.generate(said, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
    assert answers(outputs) == [expected] * 4
    assert {tuple(output.prompt_token_ids) for output in outputs} == {(START, *ids)}


def test_donuts_task_token_takes_the_place_of_the_start_token(made: Callable[[str], Made]) -> None:
    one = made("donut")
    image = picture(1)
    asked = [
        {"prompt_token_ids": ids, "multi_modal_data": {"image": image}} for ids in ([9], [9, 30], [START, 9])
    ]
    with LLM(str(one.folder), dtype="float32") as llm:
        outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
        (scored,) = llm.score(asked[1], {"prompt_token_ids": outputs[1].outputs[0].token_ids})
    fields = DocumentFields(word_tokenizer())
    for output, given in zip(outputs, asked, strict=True):
        ids = given["prompt_token_ids"]
        assert output.outputs[0].parsed == fields([*ids, *output.outputs[0].token_ids])
        assert output.prompt_token_ids == ids
        expected = one.reference.generate(image, ids, max_new_tokens=6, do_sample=False)
        assert output.outputs[0].token_ids == expected
    assert len(scored.scores[0].logprobs) == len(outputs[1].outputs[0].token_ids)


def test_nougats_answers_are_pages(made: Callable[[str], Made]) -> None:
    one = made("nougat")
    with LLM(str(one.folder), dtype="float32") as llm:
        outputs = llm.generate([prompt(image) for image in one.images], GREEDY, use_tqdm=False)
    tidy = PageText(word_tokenizer(VOCAB))
    for output in outputs:
        answer = output.outputs[0]
        assert answer.parsed
        assert answer.parsed == tidy([START, *answer.token_ids])


def test_bytes_a_path_an_array_and_an_image_are_the_same(made: Callable[[str], Made], tmp_path: Path) -> None:
    one = made("trocr")
    image = picture(2)
    path = tmp_path / "picture.png"
    path.write_bytes(png(image))
    same = [image, png(image), path, str(path), np.asarray(image), image.convert("RGBA"), [image]]
    expected = one.reference.generate(image, max_new_tokens=6, do_sample=False)
    with LLM(str(one.folder), dtype="float32") as llm:
        outputs = llm.generate(
            [prompt(value) for value in same], SamplingParams(temperature=0, max_tokens=6), use_tqdm=False
        )
    assert answers(outputs) == [expected] * len(same)


def test_twenty_questions_on_one_image_decode_it_once(
    made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    features = ImageProcessor.features

    def counted(processor: ImageProcessor, media: Any) -> Any:
        decoded.append(len(media.data))
        return features(processor, media)

    monkeypatch.setattr(ImageProcessor, "features", counted)
    one = made("trocr")
    image = picture(3)
    asked = [
        {"prompt_token_ids": [4 + number, 50], "multi_modal_data": {"image": image}} for number in range(20)
    ]
    with LLM(str(one.folder), dtype="float32", max_num_seqs=32) as llm:
        outputs = llm.generate(asked, SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
        assert llm.stats().encoded_tokens == one.reference.positions
    assert len(decoded) == 1
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) > 5


IMAGE = prompt(picture(0))
REFUSED: list[tuple[Any, dict[str, Any], str, str]] = [
    ("hello", {}, "multi_modal_data.image", "reads image"),
    (prompt(b"GIF"), {}, "multi_modal_data.image", "no image of a format"),
    (
        prompt([picture(0), picture(1)]),
        {},
        "multi_modal_data.image",
        "2 take 58 encoder positions, the limit is 29 ",
    ),
    (
        {"prompt": "", "multi_modal_data": {"audio": b"RIFF"}},
        {},
        "multi_modal_data.audio",
        "takes image only",
    ),
    (IMAGE, {"truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "encoder prompts of text"),
    (IMAGE, {"task": "transcribe"}, "task", "declares none"),
    ({"encoder_prompt": IMAGE | {"prompt": "ba"}, "decoder_prompt": None}, {}, "encoder_prompt", "no text"),
    (prompt(png(picture(0, (200, 200)))[:-300]), {}, "multi_modal_data.image", "cannot be decoded"),
]


def test_what_cannot_be_is_refused_by_name(made: Callable[[str], Made]) -> None:
    one = made("trocr")
    with LLM(str(one.folder), dtype="float32") as llm:
        for asked, options, field, why in REFUSED:
            with pytest.raises(InvalidRequest, match=why) as refused:
                llm.generate([IMAGE, asked], GREEDY, use_tqdm=False, **options)
            assert refused.value.field == field
        assert llm.generate(IMAGE, GREEDY)[0].outputs[0].token_ids  # it goes on
        stats = llm.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


def test_an_image_of_more_positions_than_are_allowed_says_what_to_raise(made: Callable[[str], Made]) -> None:
    builder = RequestBuilder.load(made("trocr").folder, "model", limits=Limits(encoder_tokens=28))
    with pytest.raises(InvalidRequest, match=r"1 take 29 .*limit is 28: raise .*length.*encoder_tokens"):
        builder.prepare(IMAGE, GREEDY)
