"""Florence-2's questions and parsed answers, held to transformers' `Florence2Processor`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from florence import BOS, EOS, PAD, POST_PROCESSOR, Reference, file, image, make_florence, prompt, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Florence2Processor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tandem.errors import InvalidRequest, ModelLoadError
from tandem.params import SamplingParams
from tandem.workers.requests.prompts.image_tasks import ImageTasks, shortened
from tandem.workers.requests.request_builder import RequestBuilder

PEER = Florence2Processor(
    CLIPImageProcessorPil(image_seq_length=64), tokenizer(), post_processor_config=POST_PROCESSOR
)
TASKS = sorted(PEER.tasks_answer_post_processing_type)
WITH_INPUT = sorted(PEER.task_prompts_with_input)
SIZE = (137, 61)  # of an image, odd


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("florence"))


@pytest.fixture(scope="module")
def builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "florence")


@pytest.fixture(scope="module")
def tasks(folder: Path, builder: RequestBuilder) -> ImageTasks:
    made = ImageTasks.read(folder, builder.info, tokenizer())
    assert made is not None
    return made


# -- questions


@pytest.mark.parametrize(
    "text",
    [
        *PEER.task_prompts_without_inputs, *(f"{task} a cat {{and}} <loc_3>" for task in WITH_INPUT),
        *WITH_INPUT, "What is it?", "a cat <REGION_TO_OCR>", "<NO_TASK>", "<od>", " ", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [7, None])
def test_the_encoder_reads_what_transformers_makes_of_a_prompt(
    builder: RequestBuilder, text: str, seed: int | None
) -> None:
    if seed is None and not text.strip():
        return
    given = builder.prepare(prompt(text, seed))
    images = None if seed is None else image(seed)
    expected = PEER(text=text, images=images, return_tensors="pt")["input_ids"][0].tolist()
    assert list(given.sequences[0].encoder.token_ids) == expected
    assert given.encoder_prompt == text


@pytest.mark.parametrize("task", PEER.task_prompts_without_inputs)
def test_the_token_of_a_task_without_input_stands_alone(builder: RequestBuilder, task: str) -> None:
    for text in (f"{task} ", f"{task} a cat", f"see {task}"):
        with pytest.raises(ValueError, match="only content"):
            PEER._construct_prompts(text)
        with pytest.raises(InvalidRequest, match=f"{task}.*only content") as refused:
            builder.prepare(prompt(text, 7))
        assert refused.value.field == "prompt"
        explicit: Any = {"encoder_prompt": prompt(text, 7), "decoder_prompt": None}
        with pytest.raises(InvalidRequest) as refused:
            builder.prepare(explicit)
        assert refused.value.field == "encoder_prompt"


def test_a_question_is_cut_and_keeps_its_ends(builder: RequestBuilder) -> None:
    whole = builder.prepare(prompt("What is it?", 7)).sequences[0].encoder.token_ids
    cut = builder.prepare(prompt("What is it?", 7), truncate_prompt_tokens=6).sequences[0].encoder.token_ids
    assert cut == (*whole[: 64 + 5], EOS)
    with pytest.raises(InvalidRequest, match="1 to 136"):  # of 200 positions 64 are the image's
        builder.prepare(prompt("What is it?", 7), truncate_prompt_tokens=137)


def test_text_and_image_together_are_limited(builder: RequestBuilder) -> None:
    assert len(builder.prepare(prompt("a" * 134, 7)).sequences[0].encoder.token_ids) == 200
    with pytest.raises(InvalidRequest, match=r"137 tokens, the limit is 136 next to 64") as refused:
        builder.prepare(prompt("a" * 135, 7))
    assert refused.value.field == "prompt"
    assert len(builder.prepare("a" * 200).sequences[0].encoder.token_ids) == 200


@pytest.mark.parametrize("text", ["<image>", "what <image> is"])
def test_an_images_token_in_a_prompt_is_refused(builder: RequestBuilder, text: str) -> None:
    ids = tokenizer()(text).input_ids
    refused: list[tuple[Any, str]] = [
        (prompt(text, 7), "prompt"),
        (text, "prompt"),
        ({"prompt_token_ids": ids}, "prompt.prompt_token_ids"),
    ]
    for one, _ in refused:
        with pytest.raises(InvalidRequest, match=r"multi_modal_data\.image") as error:
            builder.prepare(one)
        assert "prompt" in str(error.value.field)


def test_ids_are_taken_as_they_are(builder: RequestBuilder) -> None:
    ids = [BOS, 9, 8, EOS]
    data: Any = {"image": file(7)}
    given = builder.prepare({"prompt_token_ids": ids, "prompt": "<OD>", "multi_modal_data": data})
    assert list(given.sequences[0].encoder.token_ids[64:]) == ids
    assert given.parse is None


# -- answers


_PLACES = st.integers(0, 999).map("<loc_{}>".format)
_TEXTS = st.one_of(
    st.text("ab \n.<>é", max_size=5),
    st.lists(_PLACES, min_size=1, max_size=10).map("".join),
    st.sampled_from(["the image", "it", "<poly>", "</poly>", "<sep>", "<s>", "</s>", "<pad>", "<od>"]),
    st.sampled_from(["<loc_", "<", ">", "<loc_7>" * 8]),
    st.sampled_from(["cat" + "<loc_1>" * 4, "a\n" + "<loc_12>" * 9, "x<poly>" + "<loc_5>" * 6 + "</poly>"]),
)


@given(st.lists(_TEXTS, max_size=12).map("".join), st.sampled_from(TASKS))
def test_nothing_is_lost_of_a_shortened_answer(text: str, task: str) -> None:
    kind = PEER.tasks_answer_post_processing_type[task]
    expected = PEER.post_process_generation(text, task=task, image_size=SIZE)
    short = shortened(text, kind)
    assert PEER.post_process_generation(short, task=task, image_size=SIZE) == expected
    assert len(short) <= len(text)


@pytest.mark.parametrize("task", TASKS)
def test_a_long_answer_without_places_takes_no_time(task: str) -> None:
    """Unshortened each of these takes transformers' patterns a minute or more."""
    kind = PEER.tasks_answer_post_processing_type[task]
    for text in ("a" * 50_000, " " * 50_000 + "\nb" + "<loc_1>" * 8, "<poly>" + "b " * 25_000):
        PEER.post_process_generation(shortened(text, kind), task=task, image_size=SIZE)


CRAFTED = {
    "<CAPTION>": "A cat, on a mat.",
    "<OD>": "cat<loc_1><loc_2><loc_30><loc_40>dog.<loc_5><loc_6><loc_7><loc_8><loc_9><loc_9><loc_9><loc_9>",
    "<REGION_PROPOSAL>": "<loc_1><loc_2><loc_30><loc_40><loc_5><loc_6><loc_7><loc_8>",
    "<OCR_WITH_REGION>": "Stop<loc_1><loc_2><loc_9><loc_3><loc_9><loc_8><loc_1><loc_7>",
    "<CAPTION_TO_PHRASE_GROUNDING>": "the image<loc_0><loc_0><loc_9><loc_9>a cat<loc_1><loc_2><loc_3><loc_4>",
    "<REFERRING_EXPRESSION_SEGMENTATION>": "<poly><loc_1><loc_2><loc_3><loc_4><sep><loc_5><loc_6></poly>",
    "<OPEN_VOCABULARY_DETECTION>": "cat<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6></poly>",
    "<REGION_TO_SEGMENTATION>": "<loc_1><loc_2><loc_3><loc_4><loc_5>",
}


@pytest.mark.parametrize(("task", "text"), CRAFTED.items(), ids=CRAFTED)
def test_answers_are_parsed_as_transformers_does(tasks: ImageTasks, task: str, text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    found = tasks.parsed(task, SIZE, [EOS, BOS, *ids, EOS, PAD])
    (whole,) = PEER.batch_decode([[EOS, BOS, *ids, EOS, PAD]], skip_special_tokens=False)
    assert found == PEER.post_process_generation(whole, task=task, image_size=SIZE)
    assert found is not None
    assert json.loads(json.dumps(found)) == found  # plain values
    assert any(found[task].values() if isinstance(found[task], dict) else found[task])


@given(st.lists(st.integers(0, len(tokenizer()) + 6), max_size=40), st.sampled_from(TASKS))
def test_any_ids_are_parsed_as_transformers_does(ids: list[int], task: str) -> None:
    tasks = _tasks()
    (whole,) = PEER.batch_decode([ids], skip_special_tokens=False)
    assert tasks.parsed(task, SIZE, ids) == PEER.post_process_generation(whole, task=task, image_size=SIZE)


def test_what_transformers_does_not_parse_is_none(
    tasks: ImageTasks, caplog: pytest.LogCaptureFixture
) -> None:
    spelled = "a<loc_99999999999999999999>" + "<loc_1>" * 3
    with pytest.raises((RuntimeError, ValueError)):
        PEER.post_process_generation(spelled, task="<OD>", image_size=SIZE)

    class Spelling:
        def decode(self, _: list[int], **__: Any) -> str:
            return spelled

    other = ImageTasks.__new__(ImageTasks)
    other.__dict__.update(tasks.__dict__, _tokenizer=Spelling())
    assert other.parsed("<OD>", SIZE, []) is None
    assert "not parsed" in caplog.text


def test_special_tokens_are_parsed_whether_or_not_the_client_sees_them(builder: RequestBuilder) -> None:
    from tandem.workers.request import Delta

    ids = tokenizer()(CRAFTED["<OD>"], add_special_tokens=False).input_ids
    expected = PEER.post_process_generation(CRAFTED["<OD>"], task="<OD>", image_size=image(7).size)
    for skip in (True, False):
        params = SamplingParams(num_beams=1, skip_special_tokens=skip)
        prepared = builder.prepare(prompt("<OD>", 7), params)
        answer = builder.output_processor(prepared)
        name = prepared.sequences[0].request_id
        first = answer.push(Delta(name, [BOS, *ids[:9]]))
        assert first[0].parsed is None
        (last,) = answer.push(Delta(name, [*ids[9:], EOS], finish_reason="stop"))
        (output,) = answer.output().outputs
        assert output.parsed == last.parsed == expected
        assert ("<loc_1>" in output.text) is not skip


@pytest.mark.parametrize("turned", [False, True])
def test_places_are_those_of_the_upright_image(builder: RequestBuilder, turned: bool, tmp_path: Path) -> None:
    exif = Image.Exif()
    if turned:
        exif[274] = 6
    image(9).save(path := tmp_path / "picture.jpg", exif=exif)
    data: Any = {"image": path}
    parse = builder.prepare({"prompt": "<OD>", "multi_modal_data": data}).parse
    assert parse is not None
    ids = tokenizer()(CRAFTED["<OD>"], add_special_tokens=False).input_ids
    size = image(9).size[::-1] if turned else image(9).size
    assert parse([EOS, *ids]) == PEER.post_process_generation(CRAFTED["<OD>"], task="<OD>", image_size=size)


def _tasks() -> ImageTasks:
    made = ImageTasks.__new__(ImageTasks)
    made.__dict__.update(_processor=PEER, _tokenizer=PEER.tokenizer)
    return made


# -- what is in a folder


def _edited(folder: Path, to: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    values = json.loads((to / name).read_text())
    edit(values)
    (to / name).write_text(json.dumps(values))
    return to


def test_a_model_that_does_not_say_how_answers_are_parsed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _edited(folder, tmp_path, "processor_config.json", lambda values: values.pop("post_processor_config"))
    builder = RequestBuilder.load(tmp_path, "florence")
    assert "post_processor_config" in caplog.text
    parse = builder.prepare(prompt("<CAPTION_TO_PHRASE_GROUNDING> a cat", 7)).parse
    assert parse is not None
    text = CRAFTED["<CAPTION_TO_PHRASE_GROUNDING>"]
    found = parse(tokenizer()(text, add_special_tokens=False).input_ids)
    assert isinstance(found, dict)
    assert found["<CAPTION_TO_PHRASE_GROUNDING>"]["labels"] == ["the image", "a cat"]


def test_confused_ids_are_warned_of_and_healed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"bos_token_id": EOS, "eos_token_id": PAD, "pad_token_id": BOS}
    with caplog.at_level(logging.WARNING):
        assert RequestBuilder.load(folder, "florence").info.eos_ids == {EOS}
    assert "EOS" not in caplog.text
    _edited(folder, tmp_path, "generation_config.json", lambda values: values.update(wrong))
    info = RequestBuilder.load(tmp_path, "florence").info
    assert (info.eos_ids, info.pad_id, info.decoder_start_id) == ({EOS}, PAD, EOS)
    assert re.search(r"eos_token_id \[1\].*EOS, 2, is taken", caplog.text)


def test_another_models_tokenizer(folder: Path, builder: RequestBuilder) -> None:
    """As the seeds' example has it, BART's."""
    backend = tokenizer().backend_tokenizer
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert not hasattr(made, "image_token")
    tasks = ImageTasks.read(folder, builder.info, made)
    assert tasks is not None
    assert tasks.question("<OD>", "prompt") == PEER.task_prompts_without_inputs["<OD>"]
    assert tasks.around == ((BOS,), (EOS,))
    with pytest.raises(ModelLoadError, match="no BOS"):
        ImageTasks.read(folder, builder.info, PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_model_of_text_has_no_tasks(builder: RequestBuilder, folder: Path) -> None:
    assert ImageTasks.read(folder, replace(builder.info, family="bart"), tokenizer()) is None


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        (
            "processor_config.json",
            {"image_processor": {"crop_size": {"height": 999, "width": 9}}},
            "rows and columns",
        ),
        ("processor_config.json", {"image_processor": {"crop_size": 7}}, "a height and a width"),
        (
            "processor_config.json",
            {
                "image_processor": {
                    "size": {"height": 72, "width": 56}, "do_center_crop": False, "image_seq_length": 577
                }
            },
            "577 is not what",
        ),
        ("config.json", {"image_token_id": 9999}, "not in the vocabulary"),
        ("config.json", {"text_config": {"model_type": "florence2_language"}}, "convert"),
    ],
)  # fmt: skip
def test_what_cannot_be_served(
    folder: Path, tmp_path: Path, name: str, edit: dict[str, Any], why: str
) -> None:
    _edited(folder, tmp_path, name, lambda values: values.update(edit))
    with pytest.raises(ModelLoadError, match=why):
        RequestBuilder.load(tmp_path, "florence")


def test_pixel_values_are_the_processors(folder: Path, builder: RequestBuilder) -> None:
    assert builder.processor is not None
    media = builder.prepare(prompt("<OD>", 8)).sequences[0].encoder.media
    made = builder.processor.features(media[0])
    assert made.equal(Reference(folder).inputs("<OD>", 8)["pixel_values"][0])
