"""Beams in the batch: what they share, and that others are not disturbed. test_matrix.py holds their
answers to transformers'."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matrix import MODES, Asked, beams
from models import decoding
from oracle import Answer, Case, Oracle

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import EngineRequest, Hypothesis


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("t5")


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def make_engine(folder: Path, **options: Any) -> Engine:
    sizes = {"max_num_seqs": 16, "page_size": 4, "max_encoder_length": 40, "max_decoder_length": 24}
    config = EngineConfig(
        str(folder), dtype="float32", device="cpu", check_invariants=True, **{**sizes, **options}
    )
    return Engine(config)


def assert_found(found: dict[str, list[Hypothesis]], cases: list[Case]) -> None:
    for case in cases:
        ours = [Answer(h.token_ids, h.finish_reason, h.score) for h in found[case.request.request_id]]
        assert len(ours) == len(case.answers)
        assert all(map(Answer.same, ours, case.answers))


def test_beams_next_to_sequences(folder: Path, oracle: Oracle) -> None:
    """Greedy and sampled requests get the same answers with and without beams in their batch."""
    searches = [one for mode in MODES.values() for one in mode if one.beams and one.length < 40]
    cases = [oracle.case(one) for one in searches[::2]]
    prompt = cases[0].request.encoder
    others = [
        EngineRequest(f"other {n}", prompt, (oracle.start, 7, n), decoding(temperature=0.8 * (n % 2), seed=n,
                      repetition_penalty=1.3, max_tokens=14))
        for n in range(6)
    ]  # fmt: skip
    answers = []
    for requests in (others, [*others, *(case.request for case in cases)]):
        engine = make_engine(folder)
        tokens: dict[str, list[int]] = {request.request_id: [] for request in others}
        found: dict[str, list[Hypothesis]] = {}
        for request in requests:
            engine.submit(request)
        while engine.has_work:
            for delta in engine.step():
                if delta.hypotheses is None:
                    tokens[delta.request_id] += delta.token_ids
                else:
                    found[delta.request_id] = delta.hypotheses
        answers.append(tokens)
    assert answers[0] == answers[1]
    assert_found(found, cases)


def test_beams_padded_as_graphs_are(folder: Path, oracle: Oracle) -> None:
    searches = [one for mode in MODES.values() for one in mode if one.beams and one.length < 40]
    cases = [oracle.case(one) for one in searches[::2]]
    engine = make_engine(folder, overlap=True, cuda_graphs=True, max_num_seqs=13)
    for case in cases:
        engine.submit(case.request)
    found: dict[str, list[Hypothesis]] = {}
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id] = delta.hypotheses or []
    assert_found(found, cases)


def test_beams_read_one_encoder_input(folder: Path, oracle: Oracle) -> None:
    """Four beams cost one pass of the encoder and one set of cross pages."""
    case = oracle.case(Asked(17, beams=beams()))
    length = len(case.request.encoder.token_ids)
    engine = make_engine(folder)
    engine.submit(case.request)
    held, rows = set(), set()
    while engine.has_work:
        engine.step()
        held.add(engine.stats().cross_pages)
        rows.add(engine.stats().running)
    assert held == {-(-length // 4), 0}
    assert rows == {4, 0}
    assert engine.stats().encoded_tokens == length


def test_a_cancelled_search_leaves_nothing_behind(folder: Path, oracle: Oracle) -> None:
    cases = [oracle.case(Asked(17, beams=beams())) for _ in range(3)]
    engine = make_engine(folder, overlap=True)
    for case in cases:
        engine.submit(case.request)
    for _ in range(3):
        engine.step()
    engine.cancel(cases[1].request.request_id)
    found: dict[str, list[Hypothesis]] = {}
    reasons = {}
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id], reasons[delta.request_id] = delta.hypotheses or [], delta.finish_reason
    assert reasons[cases[1].request.request_id] == "cancelled"
    assert_found(found, cases[::2])
    assert engine.stats().free_pages == engine.stats().total_pages
