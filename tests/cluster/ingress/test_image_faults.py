"""Which image of which prompt is at fault, and why, is said over gRPC and HTTP alike."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fake_service import LIMITS, connected, make_service
from grpc_calls import Api, Context, refused
from image_chats import image_part, text_part
from local_router import LocalRouter
from PIL import Image
from t5gemma2 import IMAGE_TEXT, image, make_t5gemma2
from vision import png

from tandem import LLM, RequestOutput, SamplingParams
from tandem.cluster.ingress.service import Service
from tandem.errors import BAD_PROMPT
from tandem.limits import DEFAULT_LIMITS
from tandem.v1 import inference_pb2 as pb
from tandem.workers.requests.request_builder import RequestBuilder

SHORT = SamplingParams(temperature=0, max_tokens=2)
ROOMY = replace(LIMITS, media_bytes=20_000, encoder_tokens=160, decoder_tokens=200, media_items=4)
GOOD = png(image(1))


def file(kind: str, made: Image.Image | None = None, **options: Any) -> bytes:
    written = io.BytesIO()
    (image(2) if made is None else made).save(written, kind, **options)
    return written.getvalue()


def of_webp(width: int, height: int) -> bytes:
    """The header of a large picture."""
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + sizes


# What is wrong with a file: the file, and what is said of it.
FAULTS: dict[str, tuple[bytes, str]] = {
    "no image": (b"no image", "is no image of a format that is read: PNG, JPEG, WEBP, GIF, BMP, TIFF"),
    "a refused format": (file("PPM"), "is no image of a format that is read"),
    "PostScript": (file("EPS"), "is no image of a format that is read"),
    "an icon": (file("ICO"), "is no image of a format that is read"),
    "no bytes": (b"", "has no bytes"),
    "too many bytes": (bytes(ROOMY.media_bytes + 1), f"{ROOMY.media_bytes}"),
    "too many pixels": (file("PNG", Image.new("1", (7_000, 7_000))), "49000000 pixels"),
    "a bomb of WebP": (of_webp(16_000, 16_000), "256000000 pixels"),
    "a cut header": (GOOD[:20], "image"),
    "cut pixels": (GOOD[: len(GOOD) // 2], "cannot be decoded as an image"),
    "a cut JPEG": (file("JPEG", image(1, 90, 90))[:-300], "cannot be decoded as an image"),
    "a cut TIFF": (file("TIFF", image(1, 60, 60))[:-3000], "cannot be decoded as an image"),
}  # fmt: skip
# What no header shows. For several prompts the router says which one it is, see test_hidden_states.py.
WHERE_DECODED = {"cut pixels", "a cut JPEG", "a cut TIFF"}
EACH_FAULT = pytest.mark.parametrize("fault", FAULTS)
# Other images before and after it.
AROUND = pytest.mark.parametrize("around", [(0, 0), (1, 1), (2, 0)], ids=["alone", "of three", "the last"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_t5gemma2(tmp_path_factory.mktemp("t5gemma2"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(str(folder), dtype="float32", max_encoder_length=160) as llm:
        yield llm


@pytest.fixture(scope="module")
def request_builder(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "tiny", ROOMY)


@pytest.fixture
def service(folder: Path, request_builder: RequestBuilder, llm: LLM) -> Service:
    return make_service(folder, request_builder, LocalRouter(llm._engine), ROOMY)


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with connected(service) as client:
        yield client


def prompt(files: list[bytes]) -> Any:
    return {"prompt": f"ba{IMAGE_TEXT * len(files)}", "multi_modal_data": {"image": files}}


def files_with(fault: str, around: tuple[int, int]) -> list[bytes]:
    before, after = around
    return [*[GOOD] * before, FAULTS[fault][0], *[GOOD] * after]


def status_of(fault: str) -> tuple[grpc.StatusCode, int]:
    if fault == "too many bytes":
        return grpc.StatusCode.RESOURCE_EXHAUSTED, 413
    return grpc.StatusCode.INVALID_ARGUMENT, 400


def encoder_prompt(files: list[bytes]) -> pb.EncoderPrompt:
    media = [pb.Media(modality=pb.Media.MODALITY_IMAGE, data=one) for one in files]
    return pb.EncoderPrompt(text=prompt(files)["prompt"], media=media)


GRPC: dict[str, Callable[[pb.EncoderPrompt], Any]] = {
    "Generate": lambda asked: pb.GenerateRequest(encoder_prompt=asked),
    "GenerateStream": lambda asked: pb.GenerateStreamRequest(encoder_prompt=asked),
    "Score": lambda asked: pb.ScoreRequest(encoder_prompt=asked, targets=[pb.Prompt(text="ba")]),
}


@AROUND
@EACH_FAULT
async def test_over_grpc(service: Service, fault: str, around: tuple[int, int]) -> None:
    files = files_with(fault, around)
    field = f"encoder_prompt.media.{around[0]}" if len(files) > 1 else "encoder_prompt.media"
    for method, request in GRPC.items():
        context = Context()
        message = request(encoder_prompt(files)).SerializeToString()
        code, details = await refused(getattr(Api(service), method)(message, context), context)
        assert code is status_of(fault)[0], (method, details)
        assert details.startswith(f"{field}: "), (method, details)
        assert FAULTS[fault][1] in details


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - WHERE_DECODED))
async def test_which_of_several_prompts(service: Service, fault: str) -> None:
    asked = [encoder_prompt([GOOD]), encoder_prompt(files_with(fault, (1, 0)))]
    context = Context()
    request = pb.EmbedRequest(encoder_prompts=asked).SerializeToString()
    code, details = await refused(Api(service).Embed(request, context), context)
    assert code is status_of(fault)[0]
    assert details.startswith("encoder_prompts.media.1: "), details
    assert details.endswith("(in prompt 2 of 2)")


@AROUND
@EACH_FAULT
async def test_over_http(http: httpx.AsyncClient, fault: str, around: tuple[int, int]) -> None:
    parts = [text_part("ba"), *map(image_part, files_with(fault, around))]
    for stream in (False, True):
        body = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "stream": stream}
        response = await http.post("/v1/chat/completions", json=body)
        error = response.json()["error"]
        assert response.status_code == status_of(fault)[1], error
        assert error["param"] == f"messages[0].content[{around[0] + 1}].image_url.url"
        assert FAULTS[fault][1] in error["message"]


@EACH_FAULT
def test_in_this_process(llm: LLM, fault: str) -> None:
    """The others of a list are answered where each has an answer of its own."""
    files = files_with(fault, (1, 0))
    if fault == "too many bytes":
        files[1] = bytes(DEFAULT_LIMITS.media_bytes + 1)
    asked = [prompt([GOOD]), prompt(files), "ba be"]
    for refuses in (
        lambda: llm.generate(asked, SHORT, use_tqdm=False),
        lambda: llm.score(asked, ["ba"] * 3),
        lambda: llm.embed(asked),
    ):
        with pytest.raises(BAD_PROMPT, match=r"image.*\(in prompt 2 of 3\)") as caught:
            refuses()
        assert caught.value.field == "multi_modal_data.image.1"
    first, second, third = llm.generate_each(asked, SHORT, use_tqdm=False)
    assert isinstance(first, RequestOutput)
    assert isinstance(second, BAD_PROMPT)
    assert isinstance(third, RequestOutput)
    assert second.field == "multi_modal_data.image.1"
    assert first.outputs == llm.generate(asked[0], SHORT)[0].outputs
    assert third.outputs == llm.generate(asked[2], SHORT)[0].outputs
    with pytest.raises(type(second)):
        list(llm.stream(asked[1], SHORT))
    assert llm.stats().running == 0
