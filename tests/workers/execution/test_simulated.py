"""A simulated step computes nothing; everything around it is real."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem import LLM, InvalidRequest, SamplingParams
from tandem.workers.config import EngineConfig
from tandem.workers.execution.encoder import Encoder
from tandem.workers.execution.simulated import make_encoder


def test_as_many_tokens_as_asked_for(checkpoint: Callable[..., Path]) -> None:
    options = {"dtype": "float32", "device": "cpu", "check_invariants": True}
    with LLM(str(checkpoint("flan")), simulated_step_ms=0.1, max_num_seqs=3, **options) as llm:
        asked = [1, 7, 3, 5, 2]
        outputs = llm.generate(
            [{"prompt_token_ids": [5, 6, 1]}] * 5,
            [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in asked],
            use_tqdm=False,
        )
    assert [len(output.outputs[0].token_ids) for output in outputs] == asked


def test_an_encoder_gives_as_many_hidden_states_as_a_real_one(checkpoint: Callable[..., Path]) -> None:
    config = EngineConfig.of(model=str(checkpoint("flan")), dtype="float32", device="cpu")
    simulated = make_encoder(dataclasses.replace(config, simulated_step_ms=0.1))
    real, inputs = make_encoder(config), [[5, 6, 1], [7, 1]]
    assert type(real) is Encoder
    assert simulated.encode(inputs).shape == real.encode(inputs).shape
    assert not simulated.encode(inputs).any()
    assert real.encode(inputs).any()


@pytest.mark.parametrize("step_ms", [0.0, -1.0])
def test_a_step_takes_some_time(step_ms: float) -> None:
    with pytest.raises(InvalidRequest, match="above 0") as caught:
        LLM(simulated_step_ms=step_ms)
    assert caught.value.field == "simulated_step_ms"
