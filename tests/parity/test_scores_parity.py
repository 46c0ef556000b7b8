"""Scores against transformers' loss, in float32, whatever happens to a request."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, decoding, load_reference
from parity import Kept, ranks_in_threads, sampled, serve

from tandem.errors import HiddenStatesLost
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import EncoderInput, EngineRequest
from tandem.workers.requests.parameters.decoding import scoring_of

VARIANTS = ["t5", "bart", "mbart", "bert2bert", "gpt2", "phi"]
Losses = dict[str, float]


class Case:
    """Requests to score, and transformers' losses."""

    def __init__(self, folder: Path, prompts: int = 6, targets: int = 3) -> None:
        model = load_reference(folder)
        rng = random.Random(23)
        size = model.get_input_embeddings().num_embeddings
        self.folder = folder
        self.requests: list[EngineRequest] = []
        self.losses: Losses = {}
        self.prompts = [_ids(rng, size, rng.choice([1, 4, 30, 70])) for _ in range(prompts)]
        for prompt in self.prompts:
            for _ in range(targets):
                target = _ids(rng, size, rng.choice([0, 1, 6, 40, 65]))
                request, loss = _loss(model, prompt, target)
                request = replace(request, request_id=str(len(self.requests)))
                self.requests.append(request)
                self.losses[request.request_id] = loss

    def config(self, **options: Any) -> EngineConfig:
        sizes = {"max_num_seqs": 32, "page_size": 8, "max_encoder_length": 160, "max_decoder_length": 160}
        return EngineConfig(
            str(self.folder), dtype="float32", device="cpu", check_invariants=True, **(sizes | options)
        )


def _ids(rng: random.Random, size: int, count: int) -> tuple[int, ...]:
    return (*(rng.randrange(2, size) for _ in range(count)), EOS)


@torch.no_grad()
def _loss(model: Any, prompt: tuple[int, ...], target: tuple[int, ...]) -> tuple[EngineRequest, float]:
    how = scoring_of(len(target))
    if not model.config.is_encoder_decoder:
        whole = torch.tensor([[*prompt, *target]])
        labels = torch.tensor([[*[-100] * len(prompt), *target]])
        request = EngineRequest("", EncoderInput("", ()), prompt, how, target_ids=target)
        return request, float(model(input_ids=whole, labels=labels).loss)
    start = model.prepare_decoder_input_ids_from_labels(torch.tensor([target]))[0, 0].item()
    loss = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([target])).loss
    encoder = EncoderInput(str(prompt), prompt)
    return EngineRequest("", encoder, (start,), how, target_ids=target), float(loss)


def score(engine: Engine, requests: list[EngineRequest]) -> Losses:
    """Runs the requests all at once: each gets one delta with everything."""
    for request in requests:
        engine.submit(request)
    wanted = {request.request_id: request for request in requests}
    losses: Losses = {}
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            if delta.request_id not in wanted:
                continue  # it generates
            assert (delta.last, delta.token_ids) == (True, [])
            assert delta.logprobs is not None
            assert tuple(t.token_id for t in delta.logprobs) == wanted[delta.request_id].target_ids
            assert delta.request_id not in losses
            losses[delta.request_id] = -sum(t.logprob for t in delta.logprobs) / len(delta.logprobs)
    stats = engine.stats()
    assert (stats.running, stats.free_pages) == (0, stats.total_pages)
    return losses


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Case:
    return Case(checkpoint(request.param))


def test_targets_share_one_encoder_pass(case: Case) -> None:
    engine = Engine(case.config())
    assert score(engine, case.requests) == pytest.approx(case.losses, abs=1e-4)
    stats = engine.stats()
    encoded = sum(map(len, case.prompts)) if case.requests[0].encoder.token_ids else 0
    assert stats.encoded_tokens == encoded
    assert (stats.generated_tokens, stats.preemptions) == (0, 0)


def test_in_small_pieces_launched_ahead(case: Case) -> None:
    engine = Engine(case.config(overlap=True, max_num_seqs=4, max_batched_tokens=9))
    assert score(engine, case.requests) == pytest.approx(case.losses, abs=1e-4)


def test_preempted_and_computed_again(case: Case) -> None:
    """Earlier requests grow and take their pages between the pieces they are computed in."""
    how = decoding(max_tokens=70, stop_ids=frozenset())
    growing = [
        replace(request, request_id=f"g{number}", decoding=how, target_ids=())
        for number, request in enumerate(case.requests[::3][:3])
    ]
    engine = Engine(
        case.config(overlap=True, max_num_seqs=5, max_batched_tokens=6, page_size=4, num_pages=48)
    )
    for request in growing:
        engine.submit(request)
    assert score(engine, case.requests) == pytest.approx(case.losses, abs=1e-4)
    assert engine.stats().preemptions > 0


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2"])
def test_tensor_parallel(name: str, checkpoint: Callable[..., Path]) -> None:
    """Two ranks; every other encoder input is encoded elsewhere."""
    case = Case(checkpoint(name))
    requests = list(case.requests)
    config = case.config(tensor_parallel_size=2, overlap=True, max_num_seqs=8, max_batched_tokens=20)
    with ranks_in_threads(config) as (engine, followers):
        if requests[0].encoder.token_ids:
            inputs = [EncoderInput("", tuple(ids)) for ids in case.prompts]
            states = Encoder(case.config()).encode(inputs).split([len(ids) for ids in case.prompts])
            for prompt, one in list(zip(case.prompts, states, strict=True))[::2]:
                hidden = Kept(100 + case.prompts.index(prompt), one)
                followers[0].register(hidden)
                requests = [
                    replace(r, encoder=replace(r.encoder, hidden=hidden))
                    if r.encoder.token_ids == prompt
                    else r
                    for r in requests
                ]
        assert score(engine, requests) == pytest.approx(case.losses, abs=1e-4)


def test_more_positions_than_are_scored_at_once(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.workers.models.head._SCORED_AT_ONCE", 7)
    case = Case(checkpoint("t5"))
    assert score(Engine(case.config()), case.requests) == pytest.approx(case.losses, abs=1e-4)


def test_beside_others_that_generate(checkpoint: Callable[..., Path]) -> None:
    case = Case(checkpoint("t5"))
    others = [replace(r, request_id=f"g{r.request_id}") for r in sampled(case.prompts)]
    answers = serve(Engine(case.config()), others)
    engine = Engine(case.config(overlap=True, max_num_seqs=5, max_batched_tokens=11))
    found: dict[str, list[int]] = {}
    losses: Losses = {}
    for pair in zip(others, case.requests[::3], strict=True):
        for request in pair:
            engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            if delta.request_id.startswith("g"):
                found.setdefault(delta.request_id, []).extend(delta.token_ids)
            else:
                assert delta.logprobs is not None
                losses[delta.request_id] = -sum(t.logprob for t in delta.logprobs) / len(delta.logprobs)
    assert [found[r.request_id] for r in others] == answers
    assert losses == pytest.approx(
        {r.request_id: case.losses[r.request_id] for r in case.requests[::3]}, abs=1e-4
    )


def test_hidden_states_that_are_lost_fail_their_targets_only(checkpoint: Callable[..., Path]) -> None:
    case = Case(checkpoint("t5"))

    class Lost(Kept):
        def __call__(self) -> torch.Tensor:
            raise HiddenStatesLost("gone")

    lost = Lost(7, torch.empty(0))
    requests = [
        replace(r, encoder=replace(r.encoder, hidden=lost)) if n < 3 else r
        for n, r in enumerate(case.requests)
    ]
    engine = Engine(case.config())
    for request in requests:
        engine.submit(request)
    ends = {}
    while engine.has_work:
        ends |= {delta.request_id: delta for delta in engine.step()}
    assert [name for name, delta in ends.items() if delta.error is not None] == ["0", "1", "2"]
    assert len(ends) == len(requests)
