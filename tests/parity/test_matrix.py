"""Every family in every mode against transformers, token for token, in float32: one batch of all modes, its
requests joining and leaving; on one rank launched ahead, in small pieces, preempted again and again, and
padded to the sizes of graphs; on two ranks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from matrix import CELLS, MODES, RANKS, asked, complete, documented, table
from models import VARIANTS
from oracle import Answer, Case, Found, Oracle, answered
from parity import ranks_in_threads

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine

Cases = dict[str, list[Case]]  # by mode


@pytest.fixture(scope="session")
def cases(checkpoint: Callable[..., Path]) -> Callable[[str], Cases]:
    @cache
    def make(family: str) -> Cases:
        oracle = Oracle(checkpoint(family))
        return {mode: [oracle.case(one) for one in asked(family, mode)] for mode in MODES}

    return make


@pytest.fixture(scope="session")
def found(checkpoint: Callable[..., Path], cases: Callable[[str], Cases]) -> Callable[[str, int], Found]:
    @cache
    def make(family: str, ranks: int) -> Found:
        def config(**options: object) -> EngineConfig:
            return EngineConfig.of(
                model=str(checkpoint(family)), dtype="float32", device="cpu", check_invariants=True,
                page_size=4, max_encoder_length=160, max_decoder_length=180, tensor_parallel_size=ranks,
                **options,
            )  # fmt: skip

        mixed = [case.request for mode in cases(family).values() for case in mode]
        random.Random(5).shuffle(mixed)
        if ranks > 1:
            with ranks_in_threads(config(max_num_seqs=24)) as (engine, _):
                return answered(engine, mixed)
        tight = config(
            overlap=True, max_num_seqs=16, num_pages=56, max_batched_tokens=20, max_encoder_tokens=60,
            cuda_graphs=True,
        )  # fmt: skip
        engine = Engine(tight)
        answers = answered(engine, mixed)
        assert engine.stats().preemptions > 0
        return answers

    return make


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("family", "mode"), CELLS)
def test_exact(
    family: str,
    mode: str,
    ranks: int,
    cases: Callable[[str], Cases],
    found: Callable[[str, int], Found],
    record_property: Callable[[str, object], None],
) -> None:
    wanted = cases(family)[mode]
    answers = [found(family, ranks)[case.request.request_id] for case in wanted]
    wrong = [
        (case, ours)
        for case, ours in zip(wanted, answers, strict=True)
        if len(ours) != len(case.answers) or not all(map(Answer.same, ours, case.answers))
    ]
    record_property("parity", (family, mode, len(wanted) - len(wrong), len(wanted)))
    assert not wrong


@pytest.mark.parametrize("family", VARIANTS)
def test_outputs_are_worth_comparing(family: str, cases: Callable[[str], Cases]) -> None:
    """Answers differ from prompt to prompt and from token to token, some end early and others run on."""
    first = [case.answers[0] for mode in cases(family).values() for case in mode]
    reasons = Counter(answer.finish_reason for answer in first)
    assert min(reasons["stop"], reasons["length"]) >= 4
    assert len({tuple(answer.token_ids) for answer in first}) >= 0.75 * len(first)
    tokens = sum(len(answer.token_ids) for answer in first)
    assert sum(len(set(answer.token_ids)) for answer in first) >= 0.25 * tokens


def test_the_matrix_is_documented() -> None:
    """docs/parity.md has the matrix of a run in which all is exact; `--write-matrix` puts it there."""
    assert documented() == table(complete())
