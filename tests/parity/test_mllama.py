"""Llama 3.2 Vision, held to `MllamaForConditionalGeneration.generate` at batch 1, token for token.

transformers in a batch is no reference: a text's answer differs there, because it attends to the padding that
stands for its images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_cases import Case, Tiny, generate
from mllama import BOS_TEXT, IMAGE, IMAGE_TEXT, TEXT, Reference, case, fill, image, make_mllama, text
from mllama import tokenizer as make_tokenizer
from transformers import MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from tandem import LLM, BeamSearchParams, InvalidRequest, SamplingParams

TOKENS = 8
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)
LONGEST = 64  # encoder positions: three images


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny[Reference]:
    folder = make_mllama(tmp_path_factory.mktemp("mllama"))
    asked = [case(seed, images) for seed in range(4) for images in (2, 0, 1, 3)]
    return Tiny(folder, Reference(folder), asked, GREEDY, LONGEST)


def test_texts_and_images_in_one_batch_each_as_alone(tiny: Tiny[Reference]) -> None:
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST, max_num_seqs=24) as llm:
        cases = [one for one, _ in tiny.found]
        assert generate(llm, cases, GREEDY) == tiny.expected
        assert [generate(llm, [one], GREEDY)[0] for one in cases[:4]] == tiny.expected[:4]
        stats = llm.stats()
        assert (stats.running, stats.free_pages) == (0, stats.total_pages)


def test_each_of_two_images_is_read(tiny: Tiny[Reference]) -> None:
    """Another image in either place is another answer, and so is the other order."""
    prompt = f"{text(1)} {IMAGE_TEXT} {text(2)} {IMAGE_TEXT} {text(3)}"
    cases = [Case(prompt, [image(a), image(b, 40, 9)]) for a, b in ((1, 2), (1, 3), (3, 2), (2, 1))]
    cases.append(Case(prompt.replace(IMAGE_TEXT, ""), []))
    expected = [tiny.reference.generate(one, max_new_tokens=TOKENS)[0] for one in cases]
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST) as llm:
        assert generate(llm, cases, GREEDY) == expected
    assert len({tuple(ids) for ids in expected}) == len(cases)


def test_twenty_questions_on_one_image_encode_it_once(tiny: Tiny[Reference]) -> None:
    picture = image(5, 33, 20)
    cases = [Case(f"{text(seed, 2)} {IMAGE_TEXT} {text(seed)}", [picture]) for seed in range(20)]
    found = tiny.reference.clear(cases[:6], max_new_tokens=TOKENS)
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST, max_num_seqs=20) as llm:
        answers = dict(zip((one.prompt for one in cases), generate(llm, cases, GREEDY), strict=True))
        stats = llm.stats()
        assert (stats.encoded_tokens, stats.media_encoded) == (20, 1)  # an image has as many positions
        assert generate(llm, cases[:1], GREEDY) == [answers[cases[0].prompt]]
        assert (llm.stats().encoded_tokens, llm.stats().media_encoded) == (40, 1)  # its pages were given back
    assert found
    assert [answers[one.prompt] for one, _ in found] == [ids for _, ids in found]


@pytest.mark.parametrize("options", [{}, {"async_encode": True}], ids=["", "overlapped"])
def test_preempted_and_in_chunks(tiny: Tiny[Reference], options: dict[str, Any]) -> None:
    """Few pages, and prefixes that are computed a few tokens at a time: within spans and across them."""
    answers, stats = tiny.answers(
        page_size=1, num_pages=100, max_num_seqs=7, max_batched_tokens=7, max_encoder_tokens=70, **options
    )
    assert answers == tiny.expected
    assert stats.preemptions > 0
    assert stats.free_pages == stats.total_pages


def test_tensor_parallel(tiny: Tiny[Reference]) -> None:
    assert tiny.answers(tensor_parallel_size=2)[0] == tiny.expected


def test_beams(tiny: Tiny[Reference]) -> None:
    cases = [one for one, _ in tiny.found[:8]]
    expected = [
        tiny.reference.generate(one, max_new_tokens=TOKENS, num_beams=3, length_penalty=1.2)[0]
        for one in cases
    ]
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST) as llm:
        params = BeamSearchParams(num_beams=3, length_penalty=1.2, max_tokens=TOKENS)
        assert generate(llm, cases, params) == expected


def test_scores(tiny: Tiny[Reference]) -> None:
    """Targets go on from the prompt, and read what its end reads."""
    one, target = case(2, 2), [5, 6, 2]
    inputs = tiny.reference.inputs(one)
    ids = inputs["input_ids"][0].tolist()
    mask = inputs["cross_attention_mask"]
    inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(target), -1, -1)], dim=1)
    inputs["input_ids"] = torch.tensor([ids + target])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logprobs = tiny.reference.model(**inputs).logits[0, len(ids) - 1 :].log_softmax(-1)
    with LLM(str(tiny.folder), dtype="float32") as llm:
        found = llm.score(one.asked, [{"prompt_token_ids": target}])[0].scores[0]
        text_ids = llm.score(one.asked, [text(5, 3)])[0].scores[0].token_ids
    assert found.logprobs == pytest.approx([float(logprobs[at, i]) for at, i in enumerate(target)], abs=1e-4)
    assert text_ids == make_tokenizer()(text(5, 3), add_special_tokens=False)["input_ids"]


def test_penalties_read_a_prompt_with_an_image(tiny: Tiny[Reference]) -> None:
    """Its token cannot be generated, so it counts for nothing; transformers fails there."""
    cases = [Case(text(7), []), Case(f"{IMAGE_TEXT} {text(8)}", [image(1)])]
    params = SamplingParams(
        temperature=0,
        max_tokens=TOKENS,
        repetition_penalty=1.3,
        no_repeat_ngram_size=2,
        frequency_penalty=0.1,
    )
    expected, _ = tiny.reference.generate(
        cases[0], max_new_tokens=TOKENS, repetition_penalty=1.3, no_repeat_ngram_size=2
    )
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST) as llm:
        assert generate(llm, cases[:1], params.model_copy(update={"frequency_penalty": 0.0})) == [expected]
        (ids,) = generate(llm, cases[1:], params)
        assert len(ids) == TOKENS
        assert len(set(ids)) > TOKENS // 2


def test_the_ways_to_give_a_prompt(tiny: Tiny[Reference]) -> None:
    """As in vLLM: implicit, explicit, and as ids."""
    one = Case(f"{IMAGE_TEXT}{BOS_TEXT}{text(3)}", [image(4)])
    expected, _ = tiny.reference.generate(one, max_new_tokens=TOKENS)
    media = {"multi_modal_data": {"image": one.images[0]}}
    ids = tiny.reference.inputs(one)["input_ids"][0].tolist()
    prompts: list[Any] = [
        one.asked,
        {"encoder_prompt": {"prompt": IMAGE_TEXT, **media}, "decoder_prompt": one.prompt},
        {"encoder_prompt": {"prompt": "", **media}, "decoder_prompt": {"prompt_token_ids": ids}},
        {"prompt_token_ids": ids, **media},
    ]
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST) as llm:
        outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [expected] * len(prompts)
    assert {tuple(output.prompt_token_ids) for output in outputs} == {tuple(ids)}
    assert outputs[0].prompt == one.prompt


@pytest.mark.parametrize(
    ("prompt", "field", "words"),
    [
        (f"{IMAGE_TEXT} ba", "prompt", "1 times"),
        ({"prompt": "ba", "multi_modal_data": {"image": image(1)}}, "prompt", "0 times"),
        ({"prompt": IMAGE_TEXT * 2, "multi_modal_data": {"image": image(1)}}, "prompt", "2 times"),
        ({"prompt": "", "multi_modal_data": {"image": image(1)}}, "prompt", "empty"),
        ({"prompt_token_ids": [1, IMAGE + 9]}, "prompt_token_ids", "vocabulary"),
        (
            {
                "encoder_prompt": {"prompt": "ba", "multi_modal_data": {"image": image(1)}},
                "decoder_prompt": "ba",
            },
            "encoder_prompt",
            "reads no text",
        ),
        (
            {"prompt": IMAGE_TEXT * 4, "multi_modal_data": {"image": [image(n) for n in range(4)]}},
            "multi_modal_data.image",
            "80 encoder positions, the limit is 64",
        ),
        ({"prompt": "ba", "multi_modal_data": {"audio": b"x"}}, "multi_modal_data.audio", "image"),
        ({"prompt": IMAGE_TEXT, "multi_modal_data": {"image": b"x"}}, "multi_modal_data.image", "image"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused_by_name(refusing: LLM, prompt: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        refusing.generate(prompt, GREEDY)
    assert refused.value.field == field


@pytest.fixture(scope="module")
def refusing(tiny: Tiny[Reference]) -> Any:
    with LLM(str(tiny.folder), dtype="float32", max_encoder_length=LONGEST) as llm:
        yield llm


def test_image_tokens_have_no_probability(refusing: LLM) -> None:
    with pytest.raises(InvalidRequest) as refused:
        refusing.generate(
            Case(f"{IMAGE_TEXT} ba", [image(1)]).asked, SamplingParams(max_tokens=1, prompt_logprobs=0)
        )
    assert refused.value.field == "prompt_logprobs"


def test_the_text_model_alone(tmp_path: Path) -> None:
    """A checkpoint without the vision model, whose cross-attention layers are left out."""
    model = MllamaForCausalLM(MllamaTextConfig(**TEXT)).eval()
    fill(model, 1)
    model.save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    prompts = [tokenizer(text(seed))["input_ids"] for seed in range(6)]
    expected = []
    with torch.no_grad():
        for ids in prompts:
            out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS)
            expected.append(out[0, len(ids) :].tolist())
    with LLM(str(tmp_path), dtype="float32") as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
