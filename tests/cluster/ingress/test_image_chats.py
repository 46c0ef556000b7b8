"""/v1/chat/completions with images: answers are transformers', what is at fault is named."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pix2struct
import pytest
import torch
import vision
from fake_service import LIMITS, connected, make_service
from florence import Reference as Florence
from florence import image as florence_image
from florence import make_florence
from image_chats import TEMPLATE, image_part, text_part, uri
from local_router import LocalRouter
from mllama import CLEAR, IMAGE_TEXT, Reference, image, make_mllama, text
from PIL import Image

from tandem import LLM, InvalidRequest
from tandem.limits import Limits
from tandem.workers.requests.media.data_uri import _SLICE, bytes_besides, file_of
from tandem.workers.requests.prompts import chat as chat_reading
from tandem.workers.requests.request_builder import RequestBuilder

TOKENS = 8
ROOMY: Limits = replace(LIMITS, media_bytes=10**5, encoder_tokens=160, decoder_tokens=200, media_items=3)
Client = httpx.AsyncClient


@pytest.fixture(scope="module")
def mllama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_mllama(tmp_path_factory.mktemp("mllama"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def reference(mllama: Path) -> Reference:
    found = Reference(mllama)
    found.processor.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def builder(mllama: Path) -> RequestBuilder:
    return RequestBuilder.load(mllama, "tiny", ROOMY)


@pytest.fixture(scope="module")
def llm(mllama: Path) -> Iterator[LLM]:
    with LLM(str(mllama), dtype="float32", max_encoder_length=160) as llm:
        yield llm


@pytest.fixture
def router(llm: LLM) -> LocalRouter:
    return LocalRouter(llm._engine)


@pytest.fixture
async def http(mllama: Path, builder: RequestBuilder, router: LocalRouter) -> AsyncIterator[Client]:
    async with connected(make_service(mllama, builder, router, ROOMY)) as client:
        yield client


async def chat(http: Client, messages: Any, **body: Any) -> httpx.Response:
    body = {"model": "tiny", "temperature": 0, "max_tokens": TOKENS, "messages": messages, **body}
    return await http.post("/v1/chat/completions", json=body)


async def fault(http: Client, messages: Any, **body: Any) -> tuple[int, str, str]:
    response = await chat(http, messages, **body)
    error = response.json()["error"]
    return response.status_code, error["param"], error["message"]


CONVERSATIONS: list[tuple[list[Any], list[Image.Image]]] = [
    ([{"role": "user", "content": [0, text(seed)]}], [image(seed, *size)])
    for seed, size in enumerate([(20, 13), (50, 11), (9, 40)])
] + [
    ([{"role": "user", "content": [text(5), 0, text(6), 1]}], [image(1), image(2, 33, 20)]),
    (
        [
            {"role": "system", "content": text(7, 2)},
            {"role": "user", "content": [0, text(8)]},
            {"role": "assistant", "content": text(9)},
            {"role": "user", "content": [text(1), 1, text(2)]},
        ],
        [image(3), image(4, 11, 50)],
    ),
    ([{"role": "user", "content": text(3)}], []),
]  # fmt: skip


def filled(messages: list[Any], images: list[Any]) -> list[Any]:
    """The messages with each number of an image replaced by the part, and texts in lists by parts."""

    def part(one: Any) -> Any:
        return text_part(one) if isinstance(one, str) else images[one]

    return [
        {**one, "content": list(map(part, one["content"]))} if isinstance(one["content"], list) else one
        for one in messages
    ]


@torch.no_grad()
def answer(
    reference: Reference, messages: list[Any], images: list[Image.Image]
) -> tuple[list[int], list[int], str]:
    """transformers' prompt ids, and its answer as ids and text."""
    parts = [{"type": "image", "image": one} for one in images]
    inputs: Any = reference.processor.apply_chat_template(
        filled(messages, parts), add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = inputs["input_ids"][0].tolist()
    out = reference.model.generate(
        **inputs, do_sample=False, max_new_tokens=TOKENS, output_logits=True, return_dict_in_generate=True
    )
    assert min(float(-logits[0].topk(2).values.diff()) for logits in out.logits) > CLEAR
    new = out.sequences[0, len(ids) :].tolist()
    return ids, new, reference.processor.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize(("messages", "images"), CONVERSATIONS)
async def test_openais_client_has_transformers_answers(
    http: Client, reference: Reference, messages: list[Any], images: list[Image.Image]
) -> None:
    ids, answered, expected = answer(reference, messages, images)
    client = openai.AsyncOpenAI(base_url="http://tandem/v1", api_key="-", http_client=cast(Any, http))
    asked: Any = {
        "model": "tiny", "messages": filled(messages, [image_part(one, detail="high") for one in images]),
        "temperature": 0, "max_tokens": TOKENS, "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    whole = await client.chat.completions.create(**asked)
    (choice,) = whole.choices
    assert choice.message.content is not None
    assert (choice.model_extra or {})["token_ids"] == answered
    assert choice.message.content.strip() == expected  # the first word's space is the prompt's end
    assert (whole.model_extra or {})["prompt_token_ids"] == ids
    assert whole.usage is not None
    # The vision model's positions of each image, and the prompt's tokens.
    assert whole.usage.prompt_tokens == len(ids) + 20 * len(images)
    grown, usage = "", None
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await client.chat.completions.create(**asked):
        grown += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert (grown, usage) == (choice.message.content, whole.usage)


async def test_ways_to_write_a_part(
    http: Client, router: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are the same request, and so the same encoder input. The event loop decodes none."""

    def decoded(*asked: Any) -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        return file_of(*asked)

    monkeypatch.setattr(chat_reading, "file_of", decoded)
    picture = image(1)
    wrapped = base64.encodebytes(vision.png(picture)).decode()
    for part in (
        image_part(picture),
        image_part(picture, detail=None),
        {"type": "image_url", "image_url": uri(picture)},
        {"type": "input_image", "image_url": uri(picture), "detail": "low"},  # the Responses API's
        {"type": "image_url", "image_url": {"url": uri(picture, "application/octet-stream")}},
        {"type": "image_url", "image_url": {"url": uri(picture).replace("data:", "DATA:", 1)}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{wrapped}"}},
    ):
        response = await chat(http, [{"role": "user", "content": [part, text_part("ba")]}])
        assert response.status_code == 200, response.text
    assert len({request.encoder.key for request in router.requests}) == 1
    assert len({request.prefix_ids for request in router.requests}) == 1


URL = "messages[0].content[1].image_url.url"
NO_IMAGE, PICTURE = b"no image", vision.png(image(1))


@pytest.mark.parametrize(
    ("part", "param", "words"),
    [
        ({"image_url": {"url": "https://example.com/a.png"}}, URL, "fetches none: send the image itself"),
        ({"image_url": {"url": "HTTP://example.com/a.png"}}, URL, "data:image/png;base64"),
        ({"image_url": {"url": "file:///etc/passwd"}}, URL, "must be an image's file in base64"),
        ({"image_url": {"url": "a.png"}}, URL, "must be an image's file in base64"),
        ({"image_url": {"url": "data:image/png,%89PNG"}}, URL, "in base64"),
        ({"image_url": {"url": "data:image/png;base64,a"}}, URL, "no base64"),
        ({"image_url": {"url": "data:image/png;base64,ÄÄÄÄ"}}, URL, "no base64"),
        ({"image_url": {"url": "data:image/png;base64,"}}, URL, "has no bytes"),
        ({"image_url": {"url": uri(NO_IMAGE)}}, URL, "is no image of a format"),
        ({"image_url": {"url": uri(PICTURE[:60])}}, URL, "cannot be decoded"),  # a worker says so
        ({"image_url": {"url": 3}}, URL, "must be a string"),
        ({"image_url": {}}, URL, "must be a string"),
        ({"image_url": None}, URL, "must be a string"),
        ({"type": "input_image", "image_url": {}}, URL.removesuffix(".url"), "must be a string"),
        ({"type": "input_image", "file_id": "a"}, "messages[0].content[1].file_id", "is not supported"),
        ({"image_url": {"url": "x", "detail": "most"}}, "messages[0].content[1].image_url.detail", "auto"),
        ({"image_url": {"url": "x", "wild": 1}}, "messages[0].content[1].image_url.wild", "not supported"),
        ({"type": "input_audio", "input_audio": {}}, "messages[0].content[1].type", "image_url"),
        ({"type": "video_url", "video_url": {}}, "messages[0].content[1].type", "image_url"),
        ({"type": "image"}, "messages[0].content[1].type", "image_url"),
        ({"type": ["image_url"]}, "messages[0].content[1].type", "image_url"),
    ],
)  # fmt: skip
async def test_a_bad_part_is_refused_by_name(
    http: Client, part: dict[str, Any], param: str, words: str
) -> None:
    content = [text_part("ba"), {"type": "image_url", **part}]
    for stream in (False, True):
        status, field, said = await fault(http, [{"role": "user", "content": content}], stream=stream)
        assert (status, field) == (400, param), said
        assert words in said
    good = image_part(image(1))
    # As the third of three it is still the one that is named.
    three = [{"role": "user", "content": [good, text_part("ba"), good, *content[1:]]}]
    assert await fault(http, three) == (400, param.replace("[1]", "[3]"), said.replace("[1]", "[3]"))


async def test_bounds(http: Client, router: LocalRouter) -> None:
    good = image_part(image(1))
    user: dict[str, Any] = {"role": "user"}
    asked = [{**user, "content": [good] * 4}]
    assert (await fault(http, asked))[:2] == (400, "messages")
    large = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(large, "PNG")  # bytes that do not compress
    assert len(large.getvalue()) > ROOMY.media_bytes
    assert (await chat(http, [{**user, "content": [image_part(large.getvalue())]}])).status_code == 413
    slightly = large.getvalue()[: ROOMY.media_bytes + 9_000]  # the body may have them
    status, param, said = await fault(http, [{**user, "content": [good, image_part(slightly)]}])
    assert (status, param) == (413, URL), said
    half = image_part(large.getvalue()[: ROOMY.media_bytes // 2 + 5_000])
    assert (await fault(http, [{**user, "content": [half, half]}]))[:2] == (413, "messages")
    bomb = io.BytesIO()
    Image.new("1", (7_000, 7_000)).save(bomb, "PNG")
    status, param, said = await fault(http, [{**user, "content": [good, image_part(bomb.getvalue())]}])
    assert (status, param) == (400, URL)
    assert "49000000 pixels" in said
    # What is no image counts as before.
    long = [{**user, "content": [good, text_part("ba " * ROOMY.message_bytes)]}]
    assert (await chat(http, long)).status_code == 413
    hidden = [{**user, "content": [{"type": "text", "text": '"data:'}, good]}] * 400
    assert (await chat(http, hidden)).status_code == 413
    assert not router.requests


async def test_a_text_may_not_have_an_images_token(http: Client) -> None:
    content = [text_part(f"ba {IMAGE_TEXT}"), image_part(image(1))]
    status, param, said = await fault(http, [{"role": "user", "content": content}])
    assert (status, param) == (400, "messages")
    assert "2 times, for 1 media items" in said


async def test_the_templates_refusal(http: Client) -> None:
    asked = [{"role": "system", "content": [image_part(image(1))]}, {"role": "user", "content": "ba"}]
    status, param, said = await fault(http, asked)
    assert (status, param) == (400, "messages")
    assert "incompatible with system messages" in said


def test_the_processors_template_of_older_repositories(mllama: Path, tmp_path: Path) -> None:
    for path in mllama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    assert not RequestBuilder.load(tmp_path, "tiny").chat_template.exists
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    assert RequestBuilder.load(tmp_path, "tiny").chat_template.exists


# -- models without a template


async def test_images_stand_where_their_parts_do(
    http: Client, builder: RequestBuilder, router: LocalRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder.chat_template, "exists", False)
    one, two = image_part(image(1)), image_part(image(2))
    for content, right in (
        ([one, text_part("bi"), text_part("bo"), two], f"{IMAGE_TEXT}bi\nbo{IMAGE_TEXT}"),
        ([one, two, text_part(f"bi {IMAGE_TEXT} bo{IMAGE_TEXT}")], f"bi {IMAGE_TEXT} bo{IMAGE_TEXT}"),
        ("bi bo", "bi bo"),
    ):
        assert (await chat(http, [{"role": "user", "content": content}])).status_code == 200
        images = [vision.png(image(1)), vision.png(image(2))] if isinstance(content, list) else []
        prompt: Any = {"prompt": right, "multi_modal_data": {"image": images}}
        expected = builder.prepare(prompt).sequences[0]
        asked = router.requests[-1]
        assert (asked.prefix_ids, asked.encoder.key) == (expected.prefix_ids, expected.encoder.key)


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_florence(tmp_path_factory.mktemp("florence"))


async def test_florences_answers(florence: Path) -> None:
    """A message is an image and a question, as everywhere; the answer comes parsed."""
    reference = Florence(florence)
    builder = RequestBuilder.load(florence, "tiny", ROOMY)
    ids = reference.generate("<OD>", 1)
    with LLM(str(florence), dtype="float32") as llm:
        service = make_service(florence, builder, LocalRouter(llm._engine), ROOMY)
        async with connected(service) as http:
            content = [image_part(florence_image(1)), text_part("<OD>")]
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
            response = await http.post("/v1/chat/completions", json=body)
            said = response.json()
            (choice,) = said["choices"]
            (shown,) = reference.processor.batch_decode([ids], skip_special_tokens=True)
            assert choice["message"]["content"] == shown
            assert choice["parsed"] == reference.parsed("<OD>", 1, ids)
            positions = reference.inputs("<OD>", 1)["input_ids"].shape[1]
            assert said["usage"]["prompt_tokens"] == positions
            # A question of text alone, too.
            plain = await chat(http, [{"role": "user", "content": "What is it?"}], num_beams=1)
            assert plain.status_code == 200
            two = [{"role": "user", "content": [image_part(florence_image(1))] * 2}]
            assert (await fault(http, two))[:2] == (400, "messages")


async def test_captioners_answers(tmp_path: Path) -> None:
    """The text of a message is the decoder's prompt; without an image there is nothing to read."""
    folder = vision.make_vision(tmp_path, "vit-gpt2")
    reference = vision.Reference(folder, vision.PAIRS["vit-gpt2"].processor)
    builder = RequestBuilder.load(folder, "tiny", ROOMY)
    words = "bi bo"
    prefix = [vision.START, *builder.decoder_ids(words, "text", 9)]
    pictures = itertools.islice(vision.pictures(), 20)
    picture, ids = next(
        (one, ids)
        for one in pictures
        if (ids := reference.generate(one, prefix, max_new_tokens=TOKENS))
        and reference.lead(one, ids, prefix) > CLEAR
    )
    with LLM(str(folder), dtype="float32") as llm:
        service = make_service(folder, builder, LocalRouter(llm._engine), ROOMY)
        async with connected(service) as http:
            asked = [{"role": "user", "content": [text_part(words), image_part(picture)]}]
            said = (await chat(http, asked, return_token_ids=True)).json()
            assert said["prompt_token_ids"] == prefix
            assert said["choices"][0]["token_ids"] == ids
            assert said["usage"]["prompt_tokens"] == len(prefix) - 1 + reference.positions
            for messages, param, why in (
                ([{"role": "user", "content": "ba"}], "messages", "is needed"),
                ([{"role": "system", "content": "ba"}, *asked], "messages", "chat template"),
                ([{"role": "assistant", "content": "ba"}], "messages[0].role", "chat template"),
            ):
                status, field, words = await fault(http, messages)
                assert (status, field) == (400, param)
                assert why in words
            for name, value in (
                ("continue_final_message", True),
                ("add_generation_prompt", False),
                ("documents", [{"text": "a"}]),
                ("chat_template_kwargs", {"a": 1}),
            ):
                assert (await fault(http, asked, **{name: value}))[:2] == (400, name)


async def test_pix2structs_answers(tmp_path: Path) -> None:
    """The text of a message is the question, which the encoder reads above the image."""
    folder = pix2struct.make_pix2struct(tmp_path, is_vqa=True)
    reference = pix2struct.Reference(folder)
    picture, words = vision.picture(4, (90, 31)), "What is it?"
    ids = reference.generate(picture, words, max_new_tokens=TOKENS)
    assert reference.lead(picture, words, ids) > CLEAR
    with LLM(str(folder), dtype="float32") as llm:
        service = make_service(
            folder, RequestBuilder.load(folder, "tiny", ROOMY), LocalRouter(llm._engine), ROOMY
        )
        async with connected(service) as http:
            asked = [{"role": "user", "content": [text_part(words), image_part(picture)]}]
            said = (await chat(http, asked, return_token_ids=True)).json()
            assert said["choices"][0]["token_ids"] == ids
            assert said["usage"]["prompt_tokens"] == len(reference.states(picture, words))
            for content, param, why in (
                (words, "messages", "is needed"),
                ([image_part(picture)], "messages", "a question"),
                ([*asked[0]["content"], image_part(picture)], "messages", "one image, got 2"),
                ([text_part(words), image_part(NO_IMAGE)], URL, "no image of a format"),
                (
                    [text_part(words), image_part(vision.picture(0, (1, 20_000)))],
                    URL,
                    "too long for its width",
                ),
            ):
                status, field, message = await fault(http, [{"role": "user", "content": content}])
                assert (status, field) == (400, param)
                assert why in message


# -- base64 in JSON


def test_a_large_file_is_read_in_slices() -> None:
    for size in (1, 2, 3, _SLICE // 4 * 3 - 1, _SLICE // 4 * 3, _SLICE // 4 * 3 + 1, _SLICE * 2 + 5):
        data = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert file_of(uri(data), "url", size) == data
    for misplaced in ("AA==" * (_SLICE // 4 + 1), "A" * (_SLICE - 4) + "AA==" + "AAAA"):
        with pytest.raises(InvalidRequest, match="no base64"):
            file_of(f"data:;base64,{misplaced}", "url", 2**22)


@pytest.mark.parametrize(
    ("body", "besides"),
    [
        (b'{"a": "data:xyz"}', len('{"a": "}')),
        (b'["data:x", "b", "data:y"]', len('[", "b", "]')),
        (b'{"a": "say \\"data:x\\", 1"}', len('{"a": "say \\"", 1"}') - 1),
        (b'{"a": "data:xyz', 15),
        (b'{"data": 1}', 11),
    ],
)
def test_bytes_besides_files(body: bytes, besides: int) -> None:
    assert bytes_besides(body) == besides
