"""Florence-2, held to `Florence2ForConditionalGeneration.generate` at batch 1, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from florence import (
    BOS,
    CLEAR,
    EOS,
    GREEDY,
    PAD,
    PLAIN,
    QUESTIONS,
    Reference,
    file,
    image,
    make_florence,
    prompt,
)

from tandem import LLM, BeamSearchParams, InvalidRequest, SamplingParams
from tandem.inputs import Media
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import Encoder
from tandem.workers.requests.media.image import ImageProcessor
from tandem.workers.requests.request_builder import RequestBuilder

ASKED: list[tuple[str, int | None]] = [
    ("<OD>", 1), ("<OCR_WITH_REGION>", 2), ("What is it?", None), ("<CAPTION>", 1), ("", 3),
    ("<REFERRING_EXPRESSION_SEGMENTATION> a cat", 4), ("<REGION_PROPOSAL>", 5), ("a cat", None),
    ("<CAPTION_TO_PHRASE_GROUNDING> <loc_3> cat", 6), ("<OPEN_VOCABULARY_DETECTION>dog", 7),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("florence"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def greedy(reference: Reference) -> list[tuple[str, int | None, list[int]]]:
    """Prompts whose answers are clear, and transformers' answers."""
    found = [(*one, reference.generate(*one, **PLAIN)) for one in ASKED]
    clear = [one for one in found if reference.lead(*one) > CLEAR]
    assert len(clear) >= 7
    assert len({seed for _, seed, _ in clear}) > 3
    assert len({tuple(ids) for *_, ids in clear}) == len(clear)  # answers follow image and question
    return clear


@pytest.fixture(scope="module")
def beams(reference: Reference) -> list[tuple[str, int | None, list[int]]]:
    """The same prompts, and transformers' answers in the model's own way: three beams."""
    return [(*one, reference.generate(*one)) for one in ASKED]


def test_images_and_texts_in_one_batch(
    folder: Path, greedy: list[Any], beams: list[Any], reference: Reference
) -> None:
    prompts = [prompt(text, seed) for text, seed, _ in greedy + beams]
    params = [GREEDY] * len(greedy) + [None] * len(beams)
    with LLM(str(folder), dtype="float32", max_num_seqs=24, check_invariants=True) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        # Alone, as in the batch.
        alone = llm.generate(prompts[0], params[0])[0].outputs[0]
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    assert [output.outputs[0].token_ids for output in outputs] == [ids for *_, ids in greedy + beams]
    assert alone == outputs[0].outputs[0]
    for output, (text, seed, ids) in zip(outputs, greedy + beams, strict=True):
        tasks = [one for one in reference.processor.tasks_answer_post_processing_type if one in text]
        answer = output.outputs[0]
        assert answer.parsed == (reference.parsed(tasks[0], seed, ids) if tasks else None)
        (shown,) = reference.processor.batch_decode([ids], skip_special_tokens=True)
        assert answer.text == shown
    assert any(str(output.outputs[0].parsed).count("], [") for output in outputs)  # some are not empty


def test_several_beams_have_each_its_places(folder: Path, reference: Reference) -> None:
    text, seed = "<REGION_PROPOSAL>", 5
    out = reference.model.generate(**reference.inputs(text, seed), num_return_sequences=3)
    expected = [ids[1 : ids.index(EOS, 1) + 1] for ids in out.tolist()]
    with LLM(str(folder), dtype="float32") as llm:
        (answer,) = llm.generate(prompt(text, seed), BeamSearchParams(num_return_sequences=3))
    assert [output.token_ids for output in answer.outputs] == expected
    assert [output.parsed for output in answer.outputs] == [
        reference.parsed(text, seed, ids) for ids in expected
    ]


def test_tensor_parallel(folder: Path, greedy: list[Any], beams: list[Any]) -> None:
    """Images that one rank has seen, all have: asked again, in another order, nothing is computed."""
    asked = greedy[:4] + beams[:3]
    params = [GREEDY] * 4 + [None] * 3
    with LLM(str(folder), dtype="float32", tensor_parallel_size=2) as llm:
        outputs = llm.generate([prompt(text, seed) for text, seed, _ in asked], params, use_tqdm=False)
        images = llm.stats().media_encoded
        assert images == len({seed for _, seed, _ in asked if seed is not None})
        again = llm.generate(
            [prompt(text, seed) for text, seed, _ in asked[::-1]], params[::-1], use_tqdm=False
        )
        assert llm.stats().media_encoded == images
    assert [output.outputs[0].token_ids for output in outputs] == [ids for *_, ids in asked]
    assert [output.outputs[0].token_ids for output in again] == [ids for *_, ids in asked[::-1]]


def test_twenty_questions_on_one_image_are_one_pass_of_the_vision_model(
    folder: Path, reference: Reference
) -> None:
    """One after another, and all together."""
    assert len(QUESTIONS) == 20
    expected = [reference.generate(text, 1, **PLAIN) for text in QUESTIONS]
    prompts = [prompt(text, 1) for text in QUESTIONS]
    with LLM(str(folder), dtype="float32", max_num_seqs=24) as llm:
        outputs = [llm.generate(one, GREEDY)[0] for one in prompts]
        stats = llm.stats()
        assert (stats.media_encoded, stats.media_reused) == (1, 19)
        assert stats.media_cache_bytes == 64 * 32 * 4  # positions of an image, the encoder's width, float32
        outputs += llm.generate(prompts, GREEDY, use_tqdm=False)
        assert llm.stats().media_encoded == 1
    assert [output.outputs[0].token_ids for output in outputs] == expected * 2


def test_without_a_cache_every_question_is_a_pass(folder: Path) -> None:
    """Those that are encoded together have one."""
    with LLM(str(folder), dtype="float32", encoder_cache_bytes=0) as llm:
        for text in QUESTIONS[:3]:
            llm.generate(prompt(text, 1), GREEDY)
        assert (llm.stats().media_encoded, llm.stats().media_cache_bytes) == (3, 0)
        llm.generate([prompt(text, 1) for text in QUESTIONS[:4]], GREEDY, use_tqdm=False)
        assert llm.stats().media_encoded + llm.stats().media_reused == 7


@pytest.mark.parametrize("async_encode", [False, True])
def test_preempted_and_overlapped(folder: Path, greedy: list[Any], async_encode: bool) -> None:
    """Too few pages for all: images are encoded again, from the pixels that are kept."""
    with LLM(
        str(folder), dtype="float32", page_size=4, num_pages=110, max_num_seqs=8, async_encode=async_encode,
        check_invariants=True,
    ) as llm:  # fmt: skip
        outputs = llm.generate([prompt(text, seed) for text, seed, _ in greedy], GREEDY, use_tqdm=False)
        assert llm.stats().preemptions > 0
    assert [output.outputs[0].token_ids for output in outputs] == [ids for *_, ids in greedy]


def test_samples_of_one_question_decode_its_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    features = ImageProcessor.features

    def counted(processor: ImageProcessor, media: Media) -> Any:
        decoded.append(len(media.data))
        return features(processor, media)

    monkeypatch.setattr(ImageProcessor, "features", counted)
    with LLM(str(folder), dtype="float32") as llm:
        (several,) = llm.generate(
            prompt("<OD>", 1), SamplingParams(n=6, temperature=1.0, max_tokens=4, seed=1)
        )
        assert len(several.outputs) == 6
        assert len(decoded) == 1


def test_confused_ids_answer_as_if_they_were_right(folder: Path, tmp_path: Path, beams: list[Any]) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("generation_config.json", "config.json"):
        values = json.loads((tmp_path / name).read_text())
        values |= {"bos_token_id": EOS, "eos_token_id": PAD, "pad_token_id": BOS}
        (tmp_path / name).write_text(json.dumps(values))
    with LLM(str(tmp_path), dtype="float32") as llm:
        outputs = llm.generate([prompt(text, seed) for text, seed, _ in beams], use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [ids for *_, ids in beams]


def test_a_damaged_image_ends_its_call_and_not_the_llm(folder: Path) -> None:
    broken = file(1)[:-40]
    with LLM(str(folder), dtype="float32") as llm:
        with pytest.raises(InvalidRequest, match=r"multi_modal_data\.image"):
            llm.generate({"prompt": "<OD>", "multi_modal_data": {"image": broken}})
        with pytest.raises(InvalidRequest, match="one image, got 2"):
            llm.generate({"prompt": "<OD>", "multi_modal_data": {"image": [image(1), image(2)]}})
        assert llm.generate(prompt("<OD>", 1))[0].outputs[0].token_ids
        stats = llm.stats()
        assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)


@torch.no_grad()
def test_a_worker_that_only_encodes(folder: Path, reference: Reference) -> None:
    """Images and texts in one packed batch, each its own hidden states."""
    builder = RequestBuilder.load(folder, "florence")
    encoder = Encoder(EngineConfig(str(folder), dtype="float32", device="cpu"))
    inputs = [encoder.prepare(builder.prepare(prompt(*one)).sequences[0].encoder) for one in ASKED]
    states = encoder.encode(inputs).split([len(one.token_ids) for one in inputs])
    for asked, found in zip(ASKED, states, strict=True):
        given = reference.inputs(*asked)
        start = torch.tensor([[EOS]])
        expected = reference.model(**given, decoder_input_ids=start).encoder_last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    images = {seed for _, seed in ASKED if seed is not None}
    asked_again = sum(seed is not None for _, seed in ASKED) - len(images)
    assert encoder.media == (len(images), asked_again, len(images) * 64 * 32 * 4)
    torch.testing.assert_close(encoder.encode(inputs[::-1]), torch.cat(states[::-1]))
    assert encoder.media.encoded == len(images)


def test_int8(folder: Path) -> None:
    """An encoder whose projections, DaViT's too, are int8 says nearly the same."""
    builder = RequestBuilder.load(folder, "florence")
    inputs = builder.prepare(prompt("<OD>", 1)).sequences[0].encoder
    exact, rounded = (
        Encoder(EngineConfig(str(folder), dtype="float32", device="cpu", quantization=how))
        for how in (None, "int8")
    )
    expected = exact.encode([exact.prepare(inputs)])
    error = rounded.encode([rounded.prepare(inputs)]) - expected
    assert 0 < error.norm() < 0.2 * expected.norm()
