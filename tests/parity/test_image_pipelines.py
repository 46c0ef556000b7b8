"""`pipeline("image-text-to-text")`: transformers' own, called the same, has the same results.
`pipeline("image-to-text")`: transformers 4's calls and results, the tokens of transformers' `generate`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import t5gemma2
import transformers
import vision
from florence import EOS, make_florence
from florence import Reference as Florence
from florence import image as florence_image
from image_chats import TEMPLATE, text_part, uri
from mllama import IMAGE_TEXT, Reference, image, make_mllama, text
from transformers import Florence2Processor

from tandem import LLM, ImageTextToTextPipeline, ImageToTextPipeline, InvalidRequest, pipeline

TASK: Any = "image-text-to-text"
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTextToTextPipeline, Any]:
    """Ours and transformers'."""
    folder = make_mllama(tmp_path_factory.mktemp("mllama"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    reference = Reference(folder)
    reference.processor.chat_template = TEMPLATE
    theirs = transformers.pipeline(TASK, model=reference.model, processor=reference.processor)
    return pipeline("image-text-to-text", str(folder), dtype="float32", max_encoder_length=64), theirs


@pytest.fixture(scope="module")
def ours(mllama: Any) -> Iterator[ImageTextToTextPipeline]:
    with mllama[0] as one:
        yield one


def user(*content: Any) -> dict[str, Any]:
    parts = [text_part(one) if isinstance(one, str) else {"type": "image", "image": one} for one in content]
    return {"role": "user", "content": parts}


ONE, TWO = f"{IMAGE_TEXT} {text(1)}", f"{text(2)} {IMAGE_TEXT} {text(3)} {IMAGE_TEXT}"
CHAT = [user(image(1), text(4))]
LONG = [user(image(2), text(5)), {"role": "assistant", "content": text(6)}, user(text(7), image(3, 40, 9))]
PREFILLED = [user(image(4), text(8)), {"role": "assistant", "content": [text_part(text(9, 2))]}]
PREFILLED_TEXT = [user(image(4), text(8)), {"role": "assistant", "content": text(9, 2)}]

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((image(1),), {"text": ONE}),
    ((), {"images": image(1), "text": ONE, "return_full_text": False}),
    ((), {"images": [image(1), image(2, 33, 20)], "text": TWO}),
    ((), {"images": [[image(1)], [image(5, 9, 30)]], "text": [ONE, ONE], "return_full_text": False}),
    (({"images": image(1), "text": ONE},), {}),
    ((), {"text": CHAT}),
    ((CHAT,), {"return_full_text": False}),
    ((), {"text": LONG}),
    ((), {"text": [CHAT, LONG]}),
    ((), {"text": PREFILLED}),
    ((), {"text": PREFILLED, "return_full_text": False}),
    ((), {"text": PREFILLED_TEXT}),
    ((), {"text": PREFILLED, "continue_final_message": False}),
    ((), {"text": CHAT, "skip_special_tokens": False}),
    ((), {"text": CHAT, "generate_kwargs": {"num_beams": 3, "num_return_sequences": 2}}),
    ((), {"text": text(3)}),
    ((), {"text": [text(3), text(5)]}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "arguments"), CALLS, ids=range(len(CALLS)))
def test_mllamas_results(
    mllama: Any, ours: ImageTextToTextPipeline, given: tuple[Any, ...], arguments: dict[str, Any]
) -> None:
    expected = mllama[1](*given, **arguments, **SHORT)
    assert ours(*given, **arguments, **SHORT) == expected


def test_token_ids(mllama: Any, ours: ImageTextToTextPipeline) -> None:
    (found,), (expected,) = (one(text=CHAT, return_tensors=True, **SHORT) for one in (ours, mllama[1]))
    assert found["generated_token_ids"].tolist() == expected["generated_token_ids"].tolist()
    assert found["input_text"] == expected["input_text"]


def test_ways_to_give_an_image(ours: ImageTextToTextPipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image(1).save(path)
    expected = ours(image(1), text=ONE, **SHORT)
    for one in (str(path), path, path.read_bytes(), uri(image(1)), np.asarray(image(1))):
        assert ours(one, text=ONE, **SHORT) == expected
    (answer,) = ours(text=CHAT, return_full_text=False, **SHORT)
    for part in (
        {"type": "image", "url": uri(image(1))},
        {"type": "image", "path": str(path)},
        {"type": "image_url", "image_url": {"url": uri(image(1))}},
    ):
        (found,) = ours([{**CHAT[0], "content": [part, text_part(text(4))]}], return_full_text=False, **SHORT)
        assert found["generated_text"] == answer["generated_text"]


def test_arguments_of_the_pipeline_and_lengths(mllama: Any, ours: ImageTextToTextPipeline) -> None:
    folder = ours.llm
    short = pipeline("image-text-to-text", folder, max_new_tokens=3, return_full_text=False)
    assert short(image(1), text=ONE) == mllama[1](
        image(1), text=ONE, max_new_tokens=3, return_full_text=False
    )
    tokens = len(mllama[1].processor.tokenizer(f"<|begin_of_text|>{ONE}")["input_ids"])
    (counted,) = short(image(1), text=ONE, max_length=tokens + 5, return_tensors=True)
    assert len(counted["generated_token_ids"]) == tokens + 5


BAD: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((), {}, "text"),
    ((image(1),), {}, "text"),
    ((image(1),), {"text": [ONE, ONE]}, "images"),
    ((image(1),), {"text": text(1)}, "text"),
    ((image(1),), {"text": CHAT}, "images"),
    (("http://example.com/a.png",), {"text": ONE}, "images"),
    ((b"no image",), {"text": ONE}, "images"),
    ((3,), {"text": ONE}, "images"),
    ((), {"text": [{"role": "user"}]}, "text.0"),
    ((), {"text": [{"role": "user", "content": ["a"]}]}, "text.0.content.0"),
    ((), {"text": [{"role": "user", "content": [{"type": "image"}]}]}, "text.0.content.0"),
    (([user("https://a"), user({"no": 1})],), {}, "images.1.content.0"),
    ((), {"text": [{"role": "system", "content": user(image(1))["content"]}]}, "text"),
    ((image(1),), {"text": ONE, "wild": 1}, "wild"),
    ((image(1),), {"text": ONE, "prompt": "a"}, "prompt"),
    ((image(1),), {"text": ONE, "max_new_tokens": 0}, "max_new_tokens"),
    ((image(1),), {"text": ONE, "max_new_tokens": 3, "generate_kwargs": {"max_new_tokens": 3}},
     "max_new_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "arguments", "field"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named(
    ours: ImageTextToTextPipeline, given: tuple[Any, ...], arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ours(*given, **arguments)
    assert refused.value.field == field


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ImageTextToTextPipeline, Any]]:
    """Ours and transformers', of T5Gemma 2."""
    folder = t5gemma2.make_t5gemma2(tmp_path_factory.mktemp("t5gemma2"))
    template = TEMPLATE.replace(IMAGE_TEXT, t5gemma2.IMAGE_TEXT)
    (folder / "chat_template.jinja").write_text(template)
    reference = t5gemma2.Reference(folder)
    reference.processor.chat_template = template
    theirs = transformers.pipeline(TASK, model=reference.model, processor=reference.processor)
    # transformers sizes the cache by the encoder, see `models.reference_greedy`.
    theirs.model.generation_config.use_cache = False
    with pipeline("image-text-to-text", str(folder), dtype="float32") as ours:
        yield ours, theirs


WITHIN = f"{t5gemma2.text(1)}{t5gemma2.IMAGE_TEXT}{t5gemma2.text(2)}"
GEMMAS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((image(1),), {"text": WITHIN}),
    ((), {"images": [image(1), image(2)], "text": WITHIN + t5gemma2.IMAGE_TEXT}),
    ((), {"images": [[image(1)], [image(5, 9, 30)]], "text": [WITHIN, WITHIN], "return_full_text": False}),
    ((), {"text": CHAT}),
    ((CHAT,), {"return_full_text": False}),
    ((), {"text": LONG}),
    ((), {"text": [CHAT, LONG]}),
    ((), {"text": CHAT, "skip_special_tokens": False}),
    ((), {"text": CHAT, "generate_kwargs": {"num_beams": 3, "num_return_sequences": 2}}),
    ((), {"text": CHAT, "return_tensors": True}),
    ((), {"text": PREFILLED}),
    ((), {"text": PREFILLED_TEXT, "return_full_text": False}),
    ((), {"text": PREFILLED, "continue_final_message": False}),
    ((), {"text": [{"role": "user", "content": text(3)}]}),
    ((), {"text": t5gemma2.text(3)}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "arguments"), GEMMAS, ids=range(len(GEMMAS)))
def test_t5gemmas_results(gemma: Any, given: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    found, right = (one(*given, **arguments, **SHORT) for one in gemma)
    if "return_tensors" in arguments:
        for records in (found, right):
            records[0]["generated_token_ids"] = records[0]["generated_token_ids"].tolist()
    assert found == right


def test_what_is_wrong_in_a_chat_of_t5gemmas_is_named(gemma: Any) -> None:
    bad, cut = ({"type": "image", "image": data} for data in (b"no image", vision.png(image(1))[:200]))
    for content, field, words in (
        ([text_part(f"ba{t5gemma2.IMAGE_TEXT}"), *CHAT[0]["content"]], "text", "2 times, for 1 media items"),
        ([text_part("<image_soft_token>"), *CHAT[0]["content"]], "text", f"write {t5gemma2.IMAGE_TEXT}"),
        ([bad], "text.0.content.0", "is no image"),
        ([text_part("ba"), *CHAT[0]["content"], bad], "text.0.content.3", "is no image"),
        ([text_part("ba"), *CHAT[0]["content"], cut], "text.0.content.3", "cannot be decoded"),
    ):
        chat = [{"role": "user", "content": content}]
        with pytest.raises(InvalidRequest, match=words) as refused:
            gemma[0](text=chat)
        assert refused.value.field == field
        if field != "text":
            with pytest.raises(InvalidRequest, match=f"{words}.*in prompt 2 of 2") as refused:
                gemma[0](text=[CHAT, chat])
            assert refused.value.field == "text"


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("florence"))


def test_florences_results(florence: Path) -> None:
    reference = Florence(florence)
    processor = Florence2Processor.from_pretrained(florence)
    theirs = transformers.pipeline(TASK, model=reference.model, processor=processor)
    with pipeline("image-text-to-text", str(florence), dtype="float32") as ours:
        for asked, seed in (("<OD>", 1), ("What is it?", 2), ("<CAPTION>", 3)):
            short: dict[str, Any] = {"return_full_text": False, "skip_special_tokens": False}
            for more in (dict[str, Any](), short):
                given = {"images": florence_image(seed), "text": asked, **more}
                assert ours(**given) == theirs(**given)
        with pytest.raises(InvalidRequest, match="no chat template") as refused:
            ours(text=CHAT)
        assert refused.value.field == "text"
        old = pipeline("image-to-text", ours.llm, num_beams=1, max_new_tokens=6)
        (record,) = old(florence_image(1), prompt="<OD>")
        ids = reference.generate("<OD>", 1, num_beams=1, max_new_tokens=6)
        assert record == {"generated_text": processor.decode([EOS, *ids], skip_special_tokens=True)}


def test_image_to_text(tmp_path: Path) -> None:
    folder = vision.make_vision(tmp_path, "vit-gpt2")
    reference = vision.Reference(folder, vision.PAIRS["vit-gpt2"].processor)
    pictures = [one for one, _ in vision.cases(reference, 3)]
    with pipeline("image-to-text", str(folder), dtype="float32") as pipe:
        assert isinstance(pipe, ImageToTextPipeline)
        tokenizer = pipe.tokenizer

        def expected(picture: Any, prefix: list[int] | None = None, **options: Any) -> list[Any]:
            ids = reference.generate(picture, prefix, max_new_tokens=vision.TOKENS, **options)
            whole = [*(prefix or [vision.START]), *ids]
            return [{"generated_text": tokenizer.decode(whole, skip_special_tokens=True)}]

        length = {"max_new_tokens": vision.TOKENS}
        assert pipe(pictures[0], **length) == expected(pictures[0])
        assert pipe(pictures, generate_kwargs=length) == list(map(expected, pictures))
        assert pipe(iter(pictures), batch_size=2, **length) == list(map(expected, pictures))
        prefix = [vision.START, *tokenizer("bi bo", add_special_tokens=False)["input_ids"]]
        assert pipe(pictures[0], prompt="bi bo", **length) == expected(pictures[0], prefix)
        (one, other) = pipe(pictures[0], num_beams=2, num_return_sequences=2, **length)
        assert one != other
        for given, arguments, field in (
            ("http://a", {}, "inputs"),
            ([pictures[0], 3], {}, "inputs.1"),
            (pictures[0], {"prompt": 3}, "prompt"),
            (pictures[0], {"return_full_text": True}, "return_full_text"),
            ([pictures[0], b"GIF"], {}, "inputs"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                pipe(given, **arguments)
            assert refused.value.field == field


def test_a_model_of_text_has_no_such_pipeline() -> None:
    with LLM() as llm, pytest.raises(InvalidRequest) as refused:
        pipeline("image-to-text", llm)
    assert refused.value.field == "model"


def test_the_example_of_the_documents(
    florence: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "image-text-to-text" in block)
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "dog.jpg"):
        florence_image(1).save(name)
    exec(code.replace("florence-community/Florence-2-base", str(florence)), {})
    one, several = capsys.readouterr().out.splitlines()
    assert one
    assert several.count("generated_text") == 2
