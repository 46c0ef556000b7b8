"""bfloat16 is as good here as in transformers: the log-probabilities of given tokens are as near to
transformers' float32 ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from models import VARIANTS, load_reference

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import read_json
from tandem.workers.request import EncoderInput, EngineRequest
from tandem.workers.requests.parameters.decoding import scoring_of

LENGTHS = (3, 15, 40)  # of prompts
EACH = 32  # prompts of each length
TARGET = 24  # tokens to score after each
MARGIN = 1.1  # both means are of a finite number of roundings


@dataclass(frozen=True)
class Batch:
    """Prompts of one length, and the targets to score after them: int64 [prompts, tokens]."""

    prompts: torch.Tensor
    targets: torch.Tensor


def batches() -> list[Batch]:
    rng = random.Random(11)

    def ids(length: int) -> torch.Tensor:
        return torch.tensor([[rng.randrange(3, 100) for _ in range(length)] for _ in range(EACH)])

    return [Batch(ids(length), ids(TARGET)) for length in LENGTHS]


@torch.no_grad()
def theirs(model: Any, batch: Batch, start: int | None) -> torch.Tensor:
    """The targets' log-probabilities, float32 [prompts, TARGET]."""
    given = batch.targets[:, :-1]
    if start is None:
        logits = model(input_ids=torch.cat([batch.prompts, given], dim=1)).logits[:, -TARGET:]
    else:
        behind = torch.cat([torch.full((EACH, 1), start), given], dim=1)
        logits = model(input_ids=batch.prompts, decoder_input_ids=behind).logits
    return logits.float().log_softmax(-1).gather(2, batch.targets[:, :, None]).squeeze(2)


def ours(engine: Engine, batch: Batch, start: int | None) -> torch.Tensor:
    for number, (prompt, target) in enumerate(zip(batch.prompts, batch.targets, strict=True)):
        ids = tuple(prompt.tolist())
        encoder = EncoderInput(str(ids), ids) if start is not None else EncoderInput("", ())
        prefix = ids if start is None else (start,)
        engine.submit(
            EngineRequest(str(number), encoder, prefix, scoring_of(TARGET), target_ids=tuple(target.tolist()))
        )
    found = torch.empty(EACH, TARGET)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            found[int(delta.request_id)] = torch.tensor([token.logprob for token in delta.logprobs or ()])
    return found


@pytest.mark.parametrize("family", VARIANTS)
def test_as_near_to_float32(family: str, checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(family)
    start = spec_of(read_json(folder, "config.json")).decoder_start_id
    exact, rounded = load_reference(folder), load_reference(folder, torch.bfloat16)
    engine = Engine(EngineConfig(str(folder), dtype="bfloat16", device="cpu", max_num_seqs=EACH))
    errors = torch.zeros(2)
    for batch in batches():
        wanted = theirs(exact, batch, start)
        for which, found in enumerate((ours(engine, batch, start), theirs(rounded, batch, start))):
            errors[which] += (found - wanted).abs().mean() / len(LENGTHS)
    mine, peer = errors.tolist()
    assert 0 < mine <= MARGIN * peer, f"{mine:.5f}, transformers' {peer:.5f}"
