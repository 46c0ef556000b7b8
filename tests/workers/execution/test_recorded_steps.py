"""Decode steps on the CPU as one call: which models have them, and that tokens are the same op by op."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import EOS, PAD, decoding

from tandem.kernels import CPUProgram
from tandem.kernels.cpu import ops as cpu_ops
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.packet import BEAM, SINGLE, Ints
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.scheduling import drafts

pytestmark = pytest.mark.skipif(not cpu_ops.AVX512, reason="the C++ extension, or AVX-512, is not there")

Checkpoint = Callable[..., Path]


def make_engine(folder: Path, **options: object) -> Engine:
    sizes = {
        "max_num_seqs": 6, "page_size": 4, "num_pages": 80, "max_encoder_length": 40, "draft_tokens": 0,
    }  # fmt: skip
    return Engine(EngineConfig.of(model=str(folder), device="cpu", **{**sizes, **options}))


def answers(engine: Engine, beams: int) -> dict[str, list[int]]:
    """Of requests of many lengths, some of which read the same input."""
    search = BeamSearch(beams, 1, 1.0, False) if beams > 1 else None
    tokens: dict[str, list[int]] = {}
    for number in range(9):
        ids = (*range(5, 6 + 3 * (number - (number % 3 == 2)) % 31), EOS)
        how = decoding(max_tokens=4 + 5 * number % 17, beams=search)
        engine.submit(
            EngineRequest(str(number), EncoderInput(str(ids), ids), (PAD, 7)[: 1 + number % 2], how)
        )
        tokens[str(number)] = []
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.hypotheses[0].token_ids if delta.hypotheses else delta.token_ids
    return tokens


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("variant", ["t5", "flan", "bart", "marian", "m2m-100", "bert2bert"])
def test_tokens_are_those_of_op_by_op(variant: str, quantization: str | None, checkpoint: Checkpoint) -> None:
    recorded, plain = (make_engine(checkpoint(variant), quantization=quantization) for _ in range(2))
    plain.runner._make_step = lambda _: None  # type: ignore[method-assign]
    plain.runner._steps.clear()
    for beams in (1, 2):
        assert answers(recorded, beams) == answers(plain, beams)
    assert {kind: type(step) for kind, step in recorded.runner._steps.items()} == dict.fromkeys(
        (SINGLE, BEAM), CPUProgram
    )
    assert not plain.runner._steps


def test_a_model_of_other_ops_goes_op_by_op(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="tandem.workers.execution.runner"):
        engine = make_engine(checkpoint("phi"))
    assert not engine.runner._steps
    assert "op by op" in caplog.text


def test_half_precision_goes_op_by_op(checkpoint: Checkpoint) -> None:
    assert not make_engine(checkpoint("t5"), dtype="bfloat16").runner._steps


def test_drafts_are_rows_of_a_recorded_step(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "CHANCES", (0.9, 0.95, 0.99))
    recorded, plain = (make_engine(checkpoint("t5"), draft_tokens=number) for number in (7, 0))
    most, run = [], CPUProgram.__call__

    def watched(self: CPUProgram, rows: Ints) -> Any:
        most.append(rows.shape[1])
        return run(self, rows)

    monkeypatch.setattr(CPUProgram, "__call__", watched)
    assert answers(recorded, 1) == answers(plain, 1)
    assert max(most) > recorded.config.max_num_seqs
    assert recorded.stats().drafted_tokens > 0
