"""The bundled reader: as transformers has it, and as good as its card says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from tandem import LLM, SamplingParams
from tandem.inputs import Prompt
from tandem.quickstart_ocr import LINE, PATH

TEXT = "Invoice 4434: $182.50, due on 3 May."
SIZE_LIMIT = 12 * 2**20
GREEDY = SamplingParams(temperature=0, max_tokens=65)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("quickstart-ocr", dtype="float32") as made:
        yield made


def prompt(image: Image.Image | Path) -> Prompt:
    return {"prompt": "", "multi_modal_data": {"image": image}}


def pictures() -> list[Image.Image]:
    """The line as it is, small, dim, upside down, grainy, on more paper, and no line at all."""
    line = Image.open(LINE).convert("RGB")
    width, height = line.size
    grain = np.random.default_rng(0).integers(-40, 40, (height, width, 1))
    wide = Image.new("RGB", (2 * width, 2 * height), "white")
    wide.paste(line, (40, 20))
    return [
        line, line.resize((width // 3, height // 3)), line.point(lambda value: value // 4 + 90),
        line.rotate(180), Image.fromarray((np.asarray(line) + grain).clip(0, 255).astype(np.uint8)), wide,
        Image.new("RGB", (64, 64), "gray"),
    ]  # fmt: skip


def test_its_files_are_as_small_as_its_card_says() -> None:
    assert sum(path.stat().st_size for path in PATH.iterdir() if path.is_file()) <= SIZE_LIMIT
    assert LINE.stat().st_size <= 50_000


def test_it_reads_the_line(llm: LLM) -> None:
    [output] = llm.generate(prompt(LINE))
    assert output.outputs[0].text == TEXT
    assert output.outputs[0].finish_reason == "stop"


def test_tokens_are_transformers(llm: LLM) -> None:
    model = VisionEncoderDecoderModel.from_pretrained(PATH, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(PATH, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(PATH)
    outputs = llm.generate([prompt(image) for image in pictures()], GREEDY)
    for image, output in zip(pictures(), outputs, strict=True):
        pixels = processor(image, return_tensors="pt").pixel_values
        [ids] = model.generate(pixels, do_sample=False, num_beams=1)
        assert output.outputs[0].text == tokenizer.decode(ids, skip_special_tokens=True)


def test_int8_reads_the_line_too() -> None:
    with LLM("quickstart-ocr", quantization="int8") as llm:
        [output] = llm.generate(prompt(LINE), GREEDY)
    assert output.outputs[0].text == TEXT
