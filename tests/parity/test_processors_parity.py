"""Greedy decoding with every processor, against transformers' `generate`, through the whole engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, PAD, VARIANTS, decoding, load_reference
from parity import CLEAR, ranks_in_threads, serve

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import EncoderInput, EngineRequest

MAX_TOKENS = 16


@dataclass(frozen=True)
class Asked:
    """The same wish in both languages."""

    ours: dict[str, Any]
    theirs: dict[str, Any]


ASKED = [
    Asked({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
    Asked({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    Asked({"encoder_no_repeat_ngram_size": 1}, {"encoder_no_repeat_ngram_size": 1}),
    Asked({"bad_words": ((5,), (40,), (9, 11))}, {"bad_words_ids": [[5], [40], [9, 11]]}),
    Asked({"logit_bias": ((17, 4.0), (30, -9.0))}, {"sequence_bias": {(17,): 4.0, (30,): -9.0}}),
    Asked({"min_tokens": 9}, {"min_new_tokens": 9}),
    Asked({"forced_bos_id": 33, "forced_eos_ids": (EOS,)},
          {"forced_bos_token_id": 33, "forced_eos_token_id": EOS}),
    Asked({"suppress_ids": (7, 8, 60), "begin_suppress_ids": tuple(range(20, 70))},
          {"suppress_tokens": [7, 8, 60], "begin_suppress_tokens": list(range(20, 70))}),
    Asked(
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words": ((PAD,),), "min_tokens": 5,
         "forced_bos_id": 3, "forced_eos_ids": (EOS,), "begin_suppress_ids": (4, 44)},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "bad_words_ids": [[PAD]], "min_new_tokens": 5,
         "forced_bos_token_id": 3, "forced_eos_token_id": EOS, "begin_suppress_tokens": [4, 44]},
    ),
]  # fmt: skip
PREFIXES = [(PAD,), (PAD, 12, 9, 12)]


@dataclass(frozen=True)
class Case:
    request: EngineRequest
    answer: list[int]


def cases(folder: Path, family: str) -> list[Case]:
    """Several for each of ASKED, those that transformers decides by a hair left out."""
    model, rng = load_reference(folder), random.Random(8)
    # transformers 5.23 takes every UMT5 for tied and scales its logits; the published ones are not tied.
    model.config.tie_word_embeddings = VARIANTS[family].tied
    found = []
    for number, asked in enumerate(ASKED):
        kept = 0
        while kept < 4:
            prompt = (*(rng.randrange(2, 100) for _ in range(rng.choice([3, 8, 30]))), EOS)
            prefix = PREFIXES[kept % 2]
            out = model.generate(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([prefix]),
                max_new_tokens=MAX_TOKENS,
                do_sample=False,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
                **asked.theirs,
            )
            scores = torch.cat(out.scores)
            if float(-scores.topk(2).values.diff().max()) < CLEAR * 10:
                continue
            how = decoding(max_tokens=MAX_TOKENS, **asked.ours)
            request = EngineRequest(
                f"{number} {kept}", EncoderInput(str((number, prompt)), prompt), prefix, how
            )
            found.append(Case(request, out.sequences[0, len(prefix) :].tolist()))
            kept += 1
    return found


@pytest.fixture(scope="module", params=["t5", "umt5"])
def model(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> tuple[Path, list[Case]]:
    folder = checkpoint(request.param)
    return folder, cases(folder, request.param)


def config(folder: Path, **options: Any) -> EngineConfig:
    sizes = {"max_num_seqs": 8, "page_size": 4, "max_encoder_length": 40, "max_decoder_length": 24}
    return EngineConfig(
        str(folder), dtype="float32", device="cpu", check_invariants=True, **{**sizes, **options}
    )


@pytest.mark.parametrize("how", [
    {},
    {"max_num_seqs": 1},
    {"overlap": True, "num_pages": 40, "max_batched_tokens": 9},
], ids=["together", "alone", "preempted"])  # fmt: skip
def test_processors_are_transformers(model: tuple[Path, list[Case]], how: dict[str, Any]) -> None:
    folder, known = model
    engine = Engine(config(folder, **how))
    assert serve(engine, [case.request for case in known]) == [case.answer for case in known]
    assert (engine.stats().preemptions > 0) == ("num_pages" in how)


def test_processors_with_two_ranks(model: tuple[Path, list[Case]]) -> None:
    folder, known = model
    with ranks_in_threads(config(folder, tensor_parallel_size=2)) as (engine, _):
        assert serve(engine, [case.request for case in known]) == [case.answer for case in known]
