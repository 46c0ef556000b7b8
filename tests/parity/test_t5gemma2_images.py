"""T5Gemma 2 with images, held to `T5Gemma2ForConditionalGeneration.generate` at batch 1, token for token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_cases import Case, Tiny, generate
from image_chats import TEMPLATE, image_part, text_part
from t5gemma2 import (
    BOS,
    IMAGE_TEXT,
    POSITIONS,
    TOKENS,
    Reference,
    cases,
    image,
    make_t5gemma2,
    text,
)
from transformers import Gemma3Processor

from tandem import LLM, BeamSearchParams, InvalidRequest, ModelLoadError, SamplingParams
from tandem.limits import DEFAULT_LIMITS
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import Encoder
from tandem.workers.requests.prompts.chat import Conversation
from tandem.workers.requests.request_builder import RequestBuilder

GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)
LONGEST = 71  # encoder positions


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny[Reference]:
    folder = make_t5gemma2(tmp_path_factory.mktemp("t5gemma2"))
    return Tiny(folder, Reference(folder), cases(), GREEDY, LONGEST)


@pytest.fixture(scope="module")
def llm(tiny: Tiny[Reference]) -> Any:
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST, max_num_seqs=24) as llm:
        yield llm


def test_texts_and_images_in_one_batch_each_as_alone(tiny: Tiny[Reference], llm: LLM) -> None:
    assert generate(llm, [one for one, _ in tiny.found], GREEDY) == tiny.expected
    assert [generate(llm, [one], GREEDY)[0] for one, _ in tiny.found[:4]] == tiny.expected[:4]


def test_each_image_is_read_where_it_stands(tiny: Tiny[Reference], llm: LLM) -> None:
    """Another image in either place is another answer, and so are another order and another place."""
    prompt = f"{text(1)}{IMAGE_TEXT}{text(2)}{IMAGE_TEXT}{text(3)}"
    asked = [Case(prompt, [image(a), image(b, 40, 90)]) for a, b in ((1, 2), (1, 3), (3, 2), (2, 1))]
    asked.append(Case(prompt.replace(IMAGE_TEXT, ""), []))
    asked.append(Case(f"{IMAGE_TEXT * 2}{text(1)}{text(2)}{text(3)}", asked[0].images))
    states = []
    for one in asked:
        found = llm.embed(one.asked)[0].embedding
        with torch.no_grad():
            inputs = tiny.reference.inputs(one)
            expected = tiny.reference.model.get_encoder()(**inputs).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)
        states.append(np.asarray(found))
    assert all(
        np.abs(one - other).max() > 1e-2 for at, one in enumerate(states) for other in states[at + 1 :]
    )


def test_beams(tiny: Tiny[Reference], llm: LLM) -> None:
    asked = [one for one, _ in tiny.found[:8]]
    expected = [tiny.reference.generate(one, num_beams=3, length_penalty=1.2)[0] for one in asked]
    assert (
        generate(llm, asked, BeamSearchParams(num_beams=3, length_penalty=1.2, max_tokens=TOKENS)) == expected
    )


def test_ngrams_of_the_source_run_across_its_images(tiny: Tiny[Reference], llm: LLM) -> None:
    """An image's positions are tokens of the source, as in transformers."""
    options = {"encoder_no_repeat_ngram_size": 1, "repetition_penalty": 1.2}
    found = tiny.reference.clear([one for one, _ in tiny.found[:8]], **options)
    params = GREEDY.model_copy(update=options)
    assert generate(llm, [one for one, _ in found], params) == [ids for _, ids in found]
    plain = {one.prompt: ids for one, ids in tiny.found}
    assert any(plain[one.prompt] != ids for one, ids in found)


@pytest.mark.parametrize("options", [{}, {"async_encode": True}], ids=["", "overlapped"])
def test_preempted_and_in_chunks(tiny: Tiny[Reference], options: dict[str, Any]) -> None:
    answers, stats = tiny.answers(
        page_size=1, num_pages=110, max_num_seqs=7, max_batched_tokens=7, max_encoder_tokens=70, **options
    )
    assert answers == tiny.expected
    assert stats.preemptions > 0


def test_tensor_parallel(tiny: Tiny[Reference]) -> None:
    assert tiny.answers(tensor_parallel_size=2)[0] == tiny.expected


@torch.no_grad()
def test_a_worker_that_only_encodes(tiny: Tiny[Reference]) -> None:
    """Images and texts in one packed batch, each its own hidden states, of the processor's pixel values."""
    builder = RequestBuilder.load(tiny.folder, "t5gemma2")
    encoder = Encoder(EngineConfig(str(tiny.folder), dtype="float32", device="cpu"))
    asked = [one for one, _ in tiny.found[:8]]
    inputs = [encoder.prepare(builder.prepare(one.asked).sequences[0].encoder) for one in asked]
    states = encoder.encode(inputs).split([len(one.token_ids) for one in inputs])
    for one, made, found in zip(asked, inputs, states, strict=True):
        given = tiny.reference.inputs(one)
        assert list(made.token_ids) == given["input_ids"][0].tolist()
        if one.images:
            assert made.features is not None
            assert torch.equal(made.features, given["pixel_values"])
        expected = tiny.reference.model.get_encoder()(**given).last_hidden_state[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_int8(tiny: Tiny[Reference]) -> None:
    """An encoder whose projections, SigLIP's too, are int8 says nearly the same."""
    one = next(one for one, _ in tiny.found if one.images)
    inputs = RequestBuilder.load(tiny.folder, "t5gemma2").prepare(one.asked).sequences[0].encoder
    exact, rounded = (
        Encoder(EngineConfig(str(tiny.folder), dtype="float32", device="cpu", quantization=how))
        for how in (None, "int8")
    )
    expected = exact.encode([exact.prepare(inputs)])
    error = rounded.encode([rounded.prepare(inputs)]) - expected
    assert 0 < error.norm() < 0.2 * expected.norm()


def test_the_ways_to_give_a_prompt(tiny: Tiny[Reference], llm: LLM) -> None:
    """Implicit, explicit, as the ids of transformers' processor, and images alone."""
    one, alone = Case(f"{text(3)}{IMAGE_TEXT}{text(4)}", [image(4)]), Case("", [image(5), image(6)])
    expected, (of_images, _) = tiny.reference.generate(one)[0], tiny.reference.generate(alone)
    media = {"multi_modal_data": {"image": one.images[0]}}
    ids = tiny.reference.inputs(one)["input_ids"][0].tolist()
    prompts: list[Any] = [
        one.asked,
        {"encoder_prompt": {"prompt": one.prompt, **media}, "decoder_prompt": None},
        {"encoder_prompt": one.asked, "decoder_prompt": {"prompt_token_ids": [BOS]}},
        {"prompt_token_ids": ids, **media},
        alone.asked,
    ]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [expected] * 4 + [of_images]
    assert llm.embed(one.asked)[0].encoder_tokens == len(ids)


ALONE = {"multi_modal_data": {"image": image(1)}}


@pytest.mark.parametrize(
    ("prompt", "field", "words"),
    [
        (f"{IMAGE_TEXT} ba", "prompt", "1 times, for 0 media items"),
        ({"prompt": "ba", **ALONE}, "prompt", "0 times, for 1 media items"),
        ({"prompt": IMAGE_TEXT * 2, **ALONE}, "prompt", "2 times"),
        ({"prompt": f"{IMAGE_TEXT}<image_soft_token>", **ALONE}, "prompt", f"write {IMAGE_TEXT}"),
        ("ba <image_soft_token>", "prompt", f"write {IMAGE_TEXT}"),
        ({"prompt_token_ids": [BOS, 67]}, "prompt_token_ids", "67, a position.* 1 times, for 0 media items"),
        ({"prompt_token_ids": [BOS, 5], **ALONE}, "prompt_token_ids", "0 times.* take 9 positions"),
        ({"encoder_prompt": {"prompt": "ba", **ALONE}, "decoder_prompt": None}, "encoder_prompt", "0 times"),
        (
            {"prompt": IMAGE_TEXT * 8, "multi_modal_data": {"image": [image(1)] * 8}},
            "multi_modal_data.image",
            f"8 take {8 * POSITIONS} encoder positions, the limit is {LONGEST}",
        ),
        (
            {"prompt": IMAGE_TEXT * 5 + "a" * 20, "multi_modal_data": {"image": [image(1)] * 5}},
            "prompt",
            f"tokens, the limit is {LONGEST}",
        ),
        ({"prompt": IMAGE_TEXT, "multi_modal_data": {"image": b"x"}}, "multi_modal_data.image", "image"),
        ({"prompt": "ba", "multi_modal_data": {"audio": b"x"}}, "multi_modal_data.audio", "image"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused_by_name(llm: LLM, prompt: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        llm.generate(prompt, GREEDY)
    assert refused.value.field == field


def test_images_are_not_cut_out_of_a_text(tiny: Tiny[Reference], llm: LLM) -> None:
    one = Case(f"{text(3, 30)}{IMAGE_TEXT}", [image(4)])
    with pytest.raises(InvalidRequest) as refused:
        llm.generate(one.asked, GREEDY, truncate_prompt_tokens=9)
    assert refused.value.field == "truncate_prompt_tokens"
    short = Case(text(3, 8), [])
    ids = tiny.reference.inputs(short)["input_ids"][0][:4]
    (output,) = llm.generate(short.asked, GREEDY, truncate_prompt_tokens=4)
    assert output.encoder_prompt_token_ids == ids.tolist()


def test_crops_are_made_as_by_the_processor(tiny: Tiny[Reference], tmp_path: Path) -> None:
    """`do_pan_and_scan` of a file is what transformers' processor passes over: its own value is no."""
    _copied(tiny.folder, tmp_path)
    path = tmp_path / "processor_config.json"
    values = json.loads(path.read_text())
    values["image_processor"] |= {
        "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16, "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }  # fmt: skip
    path.write_text(json.dumps(values))
    one = Case(f"{IMAGE_TEXT}{text(4)}", [image(4, 120, 40)])
    given = type(tiny.reference.processor).from_pretrained(tmp_path)(
        images=one.images, text=one.prompt, return_tensors="pt"
    )
    assert len(given["pixel_values"]) == 1
    made = RequestBuilder.load(tmp_path, "t5gemma2").prepare(one.asked).sequences[0].encoder
    assert list(made.token_ids) == given["input_ids"][0].tolist()
    encoder = Encoder(EngineConfig(str(tmp_path), dtype="float32", device="cpu"))
    features = encoder.prepare(made).features
    assert features is not None
    assert torch.equal(features, given["pixel_values"])


def test_a_folder_without_an_image_processor_is_of_a_model_of_text(
    tiny: Tiny[Reference], tmp_path: Path
) -> None:
    _copied(tiny.folder, tmp_path)
    (tmp_path / "processor_config.json").unlink()
    found = [(one, ids) for one, ids in tiny.found if not one.images]
    with LLM(str(tmp_path), dtype="float32") as llm:
        assert generate(llm, [one for one, _ in found], GREEDY) == [ids for _, ids in found]
        with pytest.raises(InvalidRequest, match="takes text only"):
            llm.generate({"prompt": IMAGE_TEXT, **ALONE}, GREEDY)


def test_a_tokenizer_that_names_no_images_is_refused(tiny: Tiny[Reference], tmp_path: Path) -> None:
    _copied(tiny.folder, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"boi_token": None}))
    with pytest.raises(ModelLoadError, match="no boi_token") as refused:
        RequestBuilder.load(tmp_path, "t5gemma2")
    assert refused.value.field == "tokenizer"
    path.write_text(json.dumps(values | {"image_token": "<unused0>"}))
    with pytest.raises(ModelLoadError, match="image_token_index"):
        RequestBuilder.load(tmp_path, "t5gemma2")


def _copied(folder: Path, to: Path) -> None:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())


@pytest.mark.parametrize("template", [True, False])
def test_a_chats_images_stand_where_their_parts_do(tmp_path: Path, template: bool) -> None:
    folder = make_t5gemma2(tmp_path)
    processor = Gemma3Processor.from_pretrained(folder, backend="pil")
    images = [image(1), image(2)]
    parts = [image_part(images[0]), text_part("and"), image_part(images[1])]
    told = f"{IMAGE_TEXT}and{IMAGE_TEXT}"
    if template:
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|image|>", IMAGE_TEXT))
        told = f"{processor.tokenizer.bos_token} ba {told} <|eot_id|> be "
    builder = RequestBuilder.load(folder, "tiny", replace(DEFAULT_LIMITS, encoder_tokens=LONGEST))
    prompt = builder.chat_prompt(Conversation([{"role": "user", "content": parts}]))
    [request] = builder.prepare(prompt, GREEDY).sequences
    expected = processor(text=told, images=images, add_special_tokens=not template)["input_ids"][0]
    assert list(request.encoder.token_ids) == expected
    assert len(request.encoder.media) == 2
