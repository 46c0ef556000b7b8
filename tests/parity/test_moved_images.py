"""A request with images that another engine goes on with, after the tokens it has delivered: the rest is as
transformers has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import mllama
import pytest
import t5gemma2
from image_cases import OneByOne

from tandem import LLM, SamplingParams

TOKENS = 8


@pytest.mark.parametrize("family", [mllama, t5gemma2], ids=["mllama", "t5gemma2"])
def test_moved_after_any_number_of_tokens(family: ModuleType, tmp_path: Path) -> None:
    folder: Path = getattr(family, f"make_{family.__name__}")(tmp_path)
    reference: OneByOne = family.Reference(folder)
    asked = [family.case(seed, images) for seed in range(2) for images in (1, 2, 0)]
    found = reference.clear(asked, max_new_tokens=TOKENS)
    assert {len(one.images) for one, _ in found} == {0, 1, 2}
    with LLM(str(folder), dtype="float32", max_encoder_length=71, check_invariants=True) as llm:
        moved, rest = [], {}
        for case, ids in found:
            prepared = llm._request_builder.prepare(
                case.asked, SamplingParams(temperature=0, max_tokens=TOKENS)
            )
            for done in range(len(ids)):
                request = replace(
                    prepared.sequences[0],
                    request_id=f"{prepared.request_id}/{done}",
                    generated_ids=tuple(ids[:done]),
                )
                moved.append(request)
                rest[request.request_id] = ids[done:]
        answers: dict[str, list[int]] = {request.request_id: [] for request in moved}
        for delta in llm._engine.deltas(moved):
            assert delta.error is None
            answers[delta.request_id] += delta.token_ids
    assert answers == rest
