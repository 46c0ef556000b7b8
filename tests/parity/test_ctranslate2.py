"""Tandem and CTranslate2 answer alike, greedily and with beams, in float32.

CTranslate2 assumes more than the checkpoints of models.py guarantee, so some are made to fit: as many heads
in the decoder as in the encoder, and Pegasus starting from padding. Left out are

- untied T5, mT5, UMT5 with beams: transformers 5 calls every T5 tied, whereupon the converter scales their
  logits; the likeliest token stays the same, sums of log-probabilities do not;
- Marian: the converter takes the last id for padding and drops its row;
- M2M100, NLLB: it takes 1 for padding, which positions are counted from;
- Phi: it reads the config that Phi had before it was part of transformers;
- everything else: it knows no such model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from matrix import Asked, beams
from models import EOS, PAD, make_checkpoint
from oracle import Case, Oracle, answered
from transformers import AutoTokenizer

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine

ctranslate2 = pytest.importorskip("ctranslate2")
LENGTHS, MAX_TOKENS = (2, 5, 17, 30), 14


@dataclass(frozen=True)
class Peer:
    config: dict[str, Any] = field(default_factory=dict)
    beams: bool = True
    prefixed: bool = False  # what the decoder starts from is part of the request
    alone: bool = False  # decoder-only


# In config.json as published; transformers does not write it.
_POST = {"normalize_before": False, "normalize_embedding": True}
_PRE = {"normalize_before": True}
_PEGASUS = {**_PRE, "normalize_embedding": False, "decoder_start_token_id": PAD}
PEERS = {
    "t5": Peer(),
    "flan": Peer(beams=False),
    "mt5": Peer(beams=False),
    "umt5": Peer(beams=False),
    "byt5": Peer(beams=False),
    "bart": Peer({"decoder_attention_heads": 2, **_POST}),
    "bart-untied": Peer({"decoder_attention_heads": 4, **_POST}),
    "mbart": Peer({"decoder_attention_heads": 2, **_PRE}, prefixed=True),
    "pegasus": Peer({"decoder_attention_heads": 4, **_PEGASUS}),
    "pegasus-untied": Peer({"decoder_attention_heads": 2, **_PEGASUS}),
    "gpt2": Peer(alone=True),
    "gpt2-untied": Peer(alone=True),
}


def theirs(folder: Path, peer: Peer, cases: list[Case], num_beams: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    how: dict[str, Any] = {
        "beam_size": num_beams, "length_penalty": 1.0, "return_end_token": True, "max_batch_size": 1,
    }  # fmt: skip

    def tokens(ids: tuple[int, ...]) -> list[str]:
        return tokenizer.convert_ids_to_tokens(list(ids))

    converted = str(folder / "ctranslate2")
    prefixes = [tokens(case.request.prefix_ids) for case in cases]
    if peer.alone:
        model = ctranslate2.Generator(converted, device="cpu", intra_threads=1)
        results = model.generate_batch(
            prefixes, max_length=MAX_TOKENS, min_length=0, include_prompt_in_result=False,
            end_token=tokenizer.eos_token, **how,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in results]
    model = ctranslate2.Translator(converted, device="cpu", intra_threads=1)
    results = model.translate_batch(
        [tokens(case.request.encoder.token_ids) for case in cases],
        target_prefix=prefixes if peer.prefixed else None,
        max_decoding_length=MAX_TOKENS, min_decoding_length=0, **how,
    )  # fmt: skip
    return [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]


@pytest.mark.parametrize("family", PEERS)
def test_the_same_answers(family: str, tmp_path: Path) -> None:
    peer = PEERS[family]
    folder = make_checkpoint(tmp_path, family, **peer.config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.bos_token is None:  # the converter asks for it, and nothing uses it
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(EOS)
        tokenizer.save_pretrained(folder)
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(folder / "ctranslate2"))
    oracle = Oracle(folder)  # for prompts whose answers are clear
    engine = Engine(EngineConfig(str(folder), dtype="float32", device="cpu", max_num_seqs=16))
    # Its search ends as transformers' does with early_stopping.
    for search in (None, beams(early_stopping=True)) if peer.beams else (None,):
        cases = [oracle.case(Asked(length, MAX_TOKENS, beams=search)) for length in LENGTHS]
        found = answered(engine, [case.request for case in cases])
        ours = [found[case.request.request_id][0].token_ids for case in cases]
        assert ours == theirs(folder, peer, cases, search.num_beams if search else 1)
