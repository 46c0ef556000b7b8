"""Pix2Struct, held to `Pix2StructForConditionalGeneration.generate` at batch 1, token for token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models import VOCAB, word_tokenizer
from parity import ranks_in_threads, serve
from PIL.Image import Image
from pix2struct import (
    CLEAR,
    PATCHES,
    SIZES,
    START,
    TOKENS,
    Reference,
    make_pix2struct,
    processor,
)
from vision import picture, png, prompt

from tandem import LLM, BeamSearchParams, InvalidRequest, SamplingParams, pipeline
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import EngineRequest
from tandem.workers.requests.request_builder import RequestBuilder

GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)
QUESTIONS = ("What is it?", "How many are there, and where do they stand?", "ÄÖ 漢字 " * 30, "?")


@dataclass
class Made:
    """A checkpoint, the reference for it, and pictures and questions with transformers' answers."""

    folder: Path
    reference: Reference
    asked: list[tuple[Image, str | None]]
    expected: list[list[int]]

    @property
    def prompts(self) -> list[Any]:
        return [prompt(image, text or "") for image, text in self.asked]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Made]:
    @cache
    def make(is_vqa: bool) -> Made:
        folder = make_pix2struct(tmp_path_factory.mktemp("pix2struct"), is_vqa=is_vqa)
        reference = Reference(folder)
        asked, expected = [], []
        for seed in range(2 * len(SIZES)):
            image = picture(seed, SIZES[seed % len(SIZES)])
            text = QUESTIONS[seed % len(QUESTIONS)] if is_vqa else None
            ids = reference.generate(image, text, max_new_tokens=TOKENS, do_sample=False)
            if reference.lead(image, text, ids) > CLEAR:
                asked.append((image, text))
                expected.append(ids)
        assert len({tuple(ids) for ids in expected}) >= 10
        assert len({len(reference.states(*one)) for one in asked}) >= (3 if is_vqa else 4)
        return Made(folder, reference, asked, expected)

    return make


def answers(outputs: list[Any]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("is_vqa", [False, True], ids=["", "questions"])
def test_one_batch_each_as_alone(is_vqa: bool, made: Callable[[bool], Made]) -> None:
    """Pictures of as many numbers of patches, greedily and with beams at once."""
    one = made(is_vqa)
    options: dict[str, Any] = {"num_beams": 3, "length_penalty": 1.3, "num_return_sequences": 1}
    searched = [
        one.reference.generate(*each, **options, max_new_tokens=6, do_sample=False) for each in one.asked[:4]
    ]
    beams = BeamSearchParams(**options, max_tokens=6)
    params = [GREEDY] * len(one.asked) + [beams] * 4
    with LLM(str(one.folder), dtype="float32", max_num_seqs=24, check_invariants=True) as llm:
        outputs = llm.generate(one.prompts + one.prompts[:4], params, use_tqdm=False)
        assert answers(outputs) == one.expected + searched
        alone = [llm.generate(each, GREEDY)[0].outputs[0].token_ids for each in one.prompts[:5]]
        assert alone == one.expected[:5]
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    assert outputs[0].prompt_token_ids == [START]
    assert not outputs[0].encoder_prompt_token_ids
    assert outputs[0].encoder_prompt == one.asked[0][1]


def requests(one: Made, engine: Engine) -> list[EngineRequest]:
    builder = RequestBuilder.load(one.folder, "model")
    prepared = [builder.prepare(each, GREEDY).sequences[0] for each in one.prompts]
    return [
        replace(request, request_id=str(number), encoder=engine.prepare(request.encoder))
        for number, request in enumerate(prepared)
    ]


TIGHT: dict[str, Any] = {
    "dtype": "float32", "device": "cpu", "page_size": 4, "num_pages": 30, "max_num_seqs": 6,
    "max_encoder_tokens": 60, "check_invariants": True,
}  # fmt: skip


@pytest.mark.parametrize("async_encode", [False, True])
def test_preempted(async_encode: bool, made: Callable[[bool], Made]) -> None:
    """Too few pages for all: images are encoded again, from the patches that are kept."""
    one = made(False)
    engine = Engine(EngineConfig(str(one.folder), async_encode=async_encode, **TIGHT))
    assert serve(engine, requests(one, engine)) == one.expected
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("is_vqa", [False, True])
def test_tensor_parallel(is_vqa: bool, made: Callable[[bool], Made]) -> None:
    """Two ranks, some requests preempted: patches go to the other rank, which knows how many there are."""
    one = made(is_vqa)
    config = EngineConfig(str(one.folder), tensor_parallel_size=2, **TIGHT)
    with ranks_in_threads(config) as (engine, _):
        assert serve(engine, requests(one, engine)) == one.expected
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("is_vqa", [False, True])
@torch.no_grad()
def test_a_worker_that_only_encodes(is_vqa: bool, made: Callable[[bool], Made]) -> None:
    """One packed batch, each input its own hidden states; equal images are computed once."""
    one = made(is_vqa)
    builder = RequestBuilder.load(one.folder, "model")
    encoder = Encoder(EngineConfig(str(one.folder), dtype="float32", device="cpu"))
    prompts = [*one.prompts, *one.prompts[:2]]
    inputs = [encoder.prepare(builder.prepare(each).sequences[0].encoder) for each in prompts]
    found = encoder.encode(inputs).split([len(each.token_ids) for each in inputs])
    for (image, text), each, states in zip([*one.asked, *one.asked[:2]], inputs, found, strict=True):
        given = one.reference.inputs(image, text)
        assert each.features is not None
        assert torch.equal(each.features, given["flattened_patches"])
        torch.testing.assert_close(states, one.reference.states(image, text), rtol=1e-4, atol=1e-4)
    assert (encoder.media.encoded, encoder.media.reused) == (len(one.asked), 2)


def test_int8(made: Callable[[bool], Made]) -> None:
    """An encoder whose projections, that of patches too, are int8 says nearly the same."""
    one = made(False)
    inputs = RequestBuilder.load(one.folder, "model").prepare(one.prompts[0]).sequences[0].encoder
    exact, rounded = (
        Encoder(EngineConfig(str(one.folder), dtype="float32", device="cpu", quantization=how))
        for how in (None, "int8")
    )
    expected = exact.encode([exact.prepare(inputs)])
    error = rounded.encode([rounded.prepare(inputs)]) - expected
    assert 0 < error.norm() < 0.2 * expected.norm()


def test_without_questions_the_prompt_is_the_decoders(made: Callable[[bool], Made]) -> None:
    """As transformers' processor has it: text without special tokens, after the start token."""
    one = made(False)
    image, text = picture(1), "bi bo bu"
    both = transformers.Pix2StructProcessor(processor(), word_tokenizer(VOCAB))
    given = both(images=image, text=text, max_patches=PATCHES, add_special_tokens=False, return_tensors="pt")
    ids = given["decoder_input_ids"][0].tolist()
    expected = one.reference.generate(image, prefix=[START, *ids], max_new_tokens=6, do_sample=False)
    media = {"multi_modal_data": {"image": image}}
    ways: list[Any] = [
        prompt(image, text),
        {"prompt_token_ids": ids, **media},
        {"prompt_token_ids": [START, *ids], **media},
        {"encoder_prompt": prompt(image), "decoder_prompt": text},
    ]
    with LLM(str(one.folder), dtype="float32") as llm:
        outputs = llm.generate(ways, SamplingParams(temperature=0, max_tokens=6), use_tqdm=False)
    assert answers(outputs) == [expected] * len(ways)
    assert [output.prompt_token_ids for output in outputs] == [[START, *ids]] * len(ways)


def test_a_question_is_read_by_the_encoder(made: Callable[[bool], Made]) -> None:
    """It may have a decoder prompt besides, and goes with scores, samples and embeddings."""
    one = made(True)
    (image, text), ids = one.asked[0], [9, 30]
    expected = one.reference.generate(image, text, [START, *ids], max_new_tokens=6, do_sample=False)
    explicit: Any = {"encoder_prompt": one.prompts[0], "decoder_prompt": {"prompt_token_ids": ids}}
    with LLM(str(one.folder), dtype="float32") as llm:
        (output,) = llm.generate(explicit, SamplingParams(temperature=0, max_tokens=6))
        assert output.outputs[0].token_ids == expected
        assert (output.encoder_prompt, output.prompt_token_ids) == (text, [START, *ids])
        (embedded,) = llm.embed(one.prompts[0])
        states = one.reference.states(image, text)
        assert embedded.encoder_tokens == len(states)
        torch.testing.assert_close(
            torch.tensor(embedded.embedding), states.mean(0), rtol=1e-4, atol=1e-4, check_dtype=False
        )
        # Twenty questions about an image are twenty inputs, the same question again is one.
        before = llm.stats().encoded_tokens
        several = llm.generate([one.prompts[0]] * 3, GREEDY, use_tqdm=False)
        assert answers(several) == [one.expected[0]] * 3
        assert llm.stats().encoded_tokens == before + len(states)


def test_pipelines(made: Callable[[bool], Made]) -> None:
    one, asked = made(False), made(True)
    length: dict[str, Any] = {"max_new_tokens": TOKENS}
    tokenizer: Any = word_tokenizer(VOCAB)

    def texts(ids: list[list[int]], start: list[int]) -> list[Any]:
        return [
            [{"generated_text": tokenizer.decode([*start, *each], skip_special_tokens=True)}] for each in ids
        ]

    with pipeline("image-to-text", str(one.folder), dtype="float32") as pipe:
        images = [image for image, _ in one.asked]
        assert pipe(images, **length) == texts(one.expected, [START])
        start = [START, *tokenizer("bi bo", add_special_tokens=False)["input_ids"]]
        ids = one.reference.generate(images[0], prefix=start, **length)
        assert [pipe(images[0], prompt="bi bo", **length)] == texts([ids], start)
        both = transformers.Pix2StructProcessor(processor(), tokenizer)
        theirs = transformers.pipeline("image-text-to-text", model=one.reference.model, processor=both)
        ours = pipeline("image-text-to-text", pipe.llm)
        for image in images[:3]:
            given: dict[str, Any] = {"images": image, "text": "bi bo", **length}
            # As transformers' documents have it; its processor's own defaults are 2048 patches and EOS.
            how: dict[str, Any] = {"images_kwargs": {"max_patches": PATCHES}}
            how["text_kwargs"] = {"add_special_tokens": False}
            assert ours(**given) == theirs(**given, **how)
    # transformers' own raises KeyError for a model that reads questions.
    with pipeline("image-text-to-text", str(asked.folder), dtype="float32") as ours:
        old = pipeline("image-to-text", ours.llm)
        for (image, text), ids in list(zip(asked.asked, asked.expected, strict=True))[:4]:
            [[record]] = texts([ids], [START])
            assert old(image, prompt=text, **length) == [record]
            generated = f"{text}{record['generated_text']}"
            assert ours(image, text, **length) == [{"input_text": text, "generated_text": generated}]
        with pytest.raises(InvalidRequest, match="a question") as refused:
            old(picture(1))
        assert refused.value.field == "prompt"


BOTH = [picture(0), picture(1)]
REFUSED: list[tuple[bool, Any, str, str]] = [
    (False, "hello", "multi_modal_data.image", "reads image"),
    (False, prompt(b"GIF"), "multi_modal_data.image", "no image of a format"),
    (False, prompt(BOTH), "multi_modal_data.image", "one image, got 2"),
    (False, {"encoder_prompt": prompt(BOTH[0], "ba"), "decoder_prompt": None}, "encoder_prompt", "no text"),
    (False, prompt(png(picture(0, (200, 200)))[:-300]), "multi_modal_data.image", "cannot be decoded"),
    (True, "What is it?", "multi_modal_data.image", "reads image"),
    (True, prompt(BOTH, "What is it?"), "multi_modal_data.image", "one image, got 2"),
    (True, prompt(BOTH[0]), "prompt", "a question"),
    (True, prompt(BOTH[0], " \n"), "prompt", "a question"),
    (True, prompt(BOTH[0], "a" * 4097), "prompt", "4097 characters, the limit is 4096"),
    (True, prompt(BOTH[0], "\ud800?"), "prompt", "surrogate"),
    (True, {"prompt_token_ids": [5], "multi_modal_data": {"image": BOTH[0]}}, "prompt_token_ids", "text"),
    (
        True,
        {"encoder_prompt": prompt(BOTH[0]), "decoder_prompt": "What?"},
        "encoder_prompt",
        "a question",
    ),
    (True, prompt(png(picture(0, (1, 100_000))), "What is it?"), "multi_modal_data.image", "too long"),
]  # fmt: skip


@pytest.mark.parametrize("is_vqa", [False, True])
def test_what_cannot_be_is_refused_by_name(is_vqa: bool, made: Callable[[bool], Made]) -> None:
    one = made(is_vqa)
    with LLM(str(one.folder), dtype="float32") as llm:
        for _, asked, field, why in (each for each in REFUSED if each[0] == is_vqa):
            with pytest.raises(InvalidRequest, match=why) as refused:
                llm.generate([one.prompts[0], asked], GREEDY, use_tqdm=False)
            assert refused.value.field == field
        assert answers(llm.generate(one.prompts[:1], GREEDY)) == one.expected[:1]  # it goes on
        stats = llm.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
