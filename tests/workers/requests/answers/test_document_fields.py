"""Donut's fields, held to transformers' processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models import word_tokenizer
from transformers import DonutProcessor, PreTrainedTokenizerFast
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil

from tandem.workers.requests.answers.document_fields import DocumentFields

TAGS = ["<s_cord-v2>", "<sep/>", "<yes/>", "<no/>"] + [
    tag
    for name in ("menu", "nm", "price", "total", "question", "answer")
    for tag in (f"<s_{name}>", f"</s_{name}>")
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = word_tokenizer(60)
    made.add_special_tokens({"additional_special_tokens": TAGS})
    return made


ANSWERS: list[tuple[str, Any]] = [
    (
        "<s_cord-v2> <s_menu> <s_nm> ba be </s_nm> <s_price> bi </s_price> <sep/> <s_nm> bo </s_nm> "
        "</s_menu> <s_total> bu </s_total> </s>",
        {"menu": [{"nm": "ba be", "price": "bi"}, {"nm": "bo"}], "total": "bu"},
    ),
    (
        "<s_cord-v2> <s_question> da de </s_question> <s_answer> <yes/> </s_answer> </s> <pad> <pad>",
        {"question": "da de", "answer": "yes"},
    ),
    ("<s_cord-v2> <s_nm> ba <sep/> be </s_nm>", {"nm": ["ba", "be"]}),
    ("<s_cord-v2> <s_menu> <s_nm> ba be", {"text_sequence": "  ba be"}),  # cut off; the spaces are its tags'
    ("<s_cord-v2> ba be </s>", {"text_sequence": "ba be"}),
    ("<s_cord-v2>", {"text_sequence": ""}),
]


@pytest.mark.parametrize(("text", "fields"), ANSWERS)
def test_fields_are_the_processors(text: str, fields: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert DocumentFields(tokenizer)(ids) == fields
    if text.startswith("<s_cord-v2> <s_"):
        # As transformers' documentation of Donut does it.
        sequence = tokenizer.decode(ids).replace("</s>", "").replace("<pad>", "")
        sequence = sequence[sequence.index(">") + 1 :].strip()
        assert DonutProcessor(DonutImageProcessorPil(), tokenizer).token2json(sequence) == fields


def test_an_answer_without_an_end_to_its_list(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<s_cord-v2> <s_menu> " + "<s_nm> ba </s_nm> <sep/> " * 1200 + "</s_menu>"
    assert DocumentFields(tokenizer)(tokenizer.encode(text, add_special_tokens=False)) is None


@pytest.mark.parametrize(
    ("name", "value", "reads"),
    [
        ("preprocessor_config.json", "DonutProcessor", True),
        ("processor_config.json", "DonutProcessor", True),
        ("tokenizer_config.json", "DonutProcessor", True),
        ("preprocessor_config.json", "NougatProcessor", False),
        ("other.json", "DonutProcessor", False),
    ],
)
def test_which_models_answers_have_fields(
    name: str, value: str, reads: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps({"processor_class": value}))
    assert (DocumentFields.read(tmp_path, tokenizer) is not None) == reads
