"""Beam search against transformers' `generate`: the same answers, token for token, with the same scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, VARIANTS, decoding, load_reference
from parity import ranks_in_threads

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest, Hypothesis

MAX_TOKENS = 14
TOLERANCE = 1e-4
# Two hypotheses whose scores differ by less than rounding may come in either order, and a search may then
# take either way: such prompts are left out.
CLEAR = 1e-4

EARLY_STOPPING: list[Any] = [False, True, "never"]


@dataclass(frozen=True)
class Case:
    request: EngineRequest
    answers: list[tuple[list[int], float]]


def beams(width: int, **options: Any) -> BeamSearch:
    how = {"num_return_sequences": width, "length_penalty": 1.0, "early_stopping": False, **options}
    return BeamSearch(num_beams=width, **how)


class Oracle:
    """transformers with one checkpoint."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder, self._model, self._rng = folder, load_reference(folder), random.Random(3)
        # transformers 5.23 takes every UMT5 for tied and scales its logits; the published ones are not tied.
        if family == "umt5":
            self._model.config.tie_word_embeddings = VARIANTS[family].tied
        defaults = self._model.generation_config
        start = defaults.decoder_start_token_id
        self.start: int = defaults.bos_token_id if start is None else start
        self._count = 0

    def case(
        self, how: BeamSearch, prompt_ids: tuple[int, ...] = (), ours: dict[str, Any] | None = None,
        theirs: dict[str, Any] | None = None,
    ) -> Case:  # fmt: skip
        """One with a clear answer."""
        prefix = (self.start, *prompt_ids)
        while True:
            length = self._rng.choice([2, 5, 17, 30])
            prompt = (*(self._rng.randrange(2, 100) for _ in range(length)), EOS)
            answers, clear = self._search(prompt, prefix, how, theirs or {})
            if not clear:
                continue
            self._count += 1
            asked = decoding(**{"max_tokens": MAX_TOKENS, **(ours or {}), "beams": how})
            request = EngineRequest(str(self._count), EncoderInput(str(prompt), prompt), prefix, asked)
            return Case(request, answers)

    def _search(
        self, prompt: tuple[int, ...], prefix: tuple[int, ...], how: BeamSearch, theirs: dict[str, Any]
    ) -> tuple[list[tuple[list[int], float]], bool]:
        leads: list[float] = []

        def watch(scores: torch.Tensor, k: int, **kwargs: Any) -> Any:
            if scores.dim() == 2 and scores.shape[1] > 3 * how.num_beams:  # the candidates' choice
                best = topk(scores[scores > -1e8], k=min(k + 1, int((scores > -1e8).sum()))).values
                leads.append(float(-best.diff().max()) if len(best) > 1 else 1.0)
            return topk(scores, k=k, **kwargs)

        topk = torch.topk
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "topk", watch)
            out = self._model.generate(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([prefix]),
                num_beams=how.num_beams,
                num_return_sequences=how.num_return_sequences,
                length_penalty=how.length_penalty,
                early_stopping=how.early_stopping,
                do_sample=False,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
                **{"max_new_tokens": MAX_TOKENS, "renormalize_logits": how.renormalize, **theirs},
            )
        scores = out.sequences_scores.tolist()
        leads += [a - b for a, b in pairwise(scores)]
        stops, answers = theirs.get("eos_token_id", [EOS]), []
        for row, score in zip(out.sequences.tolist(), scores, strict=True):
            ids = row[len(prefix) :]
            end = next((at + 1 for at, token in enumerate(ids) if token in stops), len(ids))
            answers.append((ids[:end], score))
        return answers, min(leads) > CLEAR


@pytest.fixture(scope="module", params=["t5", "umt5", "bart", "marian-two-vocabularies", "t5gemma2"])
def oracle(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Oracle:
    return Oracle(checkpoint(request.param), request.param)


def config(oracle: Oracle, **options: Any) -> EngineConfig:
    sizes = {"max_num_seqs": 16, "page_size": 4, "max_encoder_length": 40, "max_decoder_length": 24}
    return EngineConfig(
        str(oracle.folder), dtype="float32", device="cpu", check_invariants=True, **{**sizes, **options}
    )


def search(engine: Engine, requests: Sequence[EngineRequest]) -> list[list[Hypothesis]]:
    """All at once; what they found, in their order."""
    found: dict[str, list[Hypothesis]] = {}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            assert delta.last
            assert not delta.token_ids
            assert delta.hypotheses is not None
            assert delta.request_id not in found
            found[delta.request_id] = delta.hypotheses
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    return [found[request.request_id] for request in requests]


def assert_found(found: list[list[Hypothesis]], cases: Sequence[Case]) -> None:
    for hypotheses, case in zip(found, cases, strict=True):
        assert [h.token_ids for h in hypotheses] == [ids for ids, _ in case.answers]
        scores = [score for _, score in case.answers]
        assert [h.score for h in hypotheses] == pytest.approx(scores, abs=TOLERANCE, rel=TOLERANCE / 10)
        assert [h.finish_reason for h in hypotheses] == [
            "stop" if ids[-1] in case.request.decoding.stop_ids else "length" for ids, _ in case.answers
        ]


def searches(oracle: Oracle) -> list[Case]:
    """Every length penalty with every way to stop, widths and decoder prompts mixed in."""
    cases = []
    for number, (penalty, early) in enumerate(product([0.0, 0.6, 1.0, 2.0, -0.5], EARLY_STOPPING)):
        how = beams(4, length_penalty=penalty, early_stopping=early)
        cases.append(oracle.case(how, prompt_ids=[(), (9, 30), (5, 6, 7, 8)][number % 3]))
        other = replace(how, num_beams=2 + number % 4, num_return_sequences=1 + number % 2)
        cases.append(oracle.case(other))
    return cases


def test_every_penalty_and_way_to_stop(oracle: Oracle) -> None:
    """In one batch, joining and leaving; then alone; then in steps made ahead, preempted again and again;
    then on two ranks."""
    cases = searches(oracle)
    assert len({tuple(ids) for case in cases for ids, _ in case.answers}) > 40, "outputs worth comparing"
    requests = [case.request for case in cases]
    assert_found(search(Engine(config(oracle)), requests), cases)
    assert_found(search(Engine(config(oracle, max_num_seqs=5)), requests), cases)
    tight = Engine(config(oracle, overlap=True, num_pages=44, max_batched_tokens=16))
    assert_found(search(tight, requests), cases)
    assert tight.stats().preemptions > 0
    with ranks_in_threads(config(oracle, tensor_parallel_size=2, overlap=True)) as (engine, _):
        assert_found(search(engine, requests), cases)


PROCESSORS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    ({"repetition_penalty": 1.6}, {"repetition_penalty": 1.6}),
    ({"min_tokens": 9}, {"min_new_tokens": 9}),
    ({"bad_words": ((5,), (40,), (9, 11))}, {"bad_words_ids": [[5], [40], [9, 11]]}),
    ({"forced_bos_id": 33, "forced_eos_ids": (EOS,)},
     {"forced_bos_token_id": 33, "forced_eos_token_id": EOS}),
    ({"stop_ids": frozenset({EOS, 9, 17})}, {"eos_token_id": [EOS, 9, 17]}),
    # As bart-large-cnn decodes.
    ({"forced_bos_id": 2, "forced_eos_ids": (EOS,), "min_tokens": 5, "no_repeat_ngram_size": 3},
     {"forced_bos_token_id": 2, "forced_eos_token_id": EOS, "min_new_tokens": 5, "no_repeat_ngram_size": 3}),
]  # fmt: skip


def test_processors_see_log_probabilities(oracle: Oracle) -> None:
    cases = [
        oracle.case(beams(4, early_stopping=early, renormalize=renormalize), ours=ours, theirs=theirs)
        for ours, theirs in PROCESSORS
        for early, renormalize in ((False, False), (True, True))
    ]
    requests = [case.request for case in cases]
    assert_found(search(Engine(config(oracle)), requests), cases)
    with ranks_in_threads(config(oracle, tensor_parallel_size=2)) as (engine, _):
        assert_found(search(engine, requests), cases)


def test_beams_next_to_sequences(oracle: Oracle) -> None:
    """Greedy and sampled requests get what they get without any beams in their batch."""
    cases = searches(oracle)[:10]
    prompt = cases[0].request.encoder
    others = [
        EngineRequest(f"other {n}", prompt, (oracle.start, 7, n), decoding(temperature=0.8 * (n % 2), seed=n,
                      repetition_penalty=1.3, max_tokens=MAX_TOKENS))
        for n in range(6)
    ]  # fmt: skip
    answers = []
    for requests in (others, [*others, *(case.request for case in cases)]):
        engine = Engine(config(oracle))
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
    assert_found([found[case.request.request_id] for case in cases], cases)


def test_beams_read_one_encoder_input(oracle: Oracle) -> None:
    """Four beams cost one pass of the encoder and one set of cross pages."""
    case = oracle.case(beams(4))
    length = len(case.request.encoder.token_ids)
    engine = Engine(config(oracle))
    engine.submit(case.request)
    held, rows = set(), set()
    while engine.has_work:
        engine.step()
        held.add(engine.stats().cross_pages)
        rows.add(engine.stats().running)
    assert held == {-(-length // 4), 0}
    assert rows == {4, 0}
    assert engine.stats().encoded_tokens == length


def test_a_cancelled_search_leaves_nothing_behind(oracle: Oracle) -> None:
    cases = [oracle.case(beams(4)) for _ in range(3)]
    engine = Engine(config(oracle, overlap=True))
    for case in cases:
        engine.submit(case.request)
    for _ in range(3):
        engine.step()
    engine.cancel(cases[1].request.request_id)
    found, reasons = {}, {}
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id], reasons[delta.request_id] = delta.hypotheses or [], delta.finish_reason
    assert reasons[cases[1].request.request_id] == "cancelled"
    assert_found([found[case.request.request_id] for case in cases[::2]], cases[::2])
    assert engine.stats().free_pages == engine.stats().total_pages
