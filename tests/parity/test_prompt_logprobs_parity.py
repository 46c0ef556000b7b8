"""The decoder prompt's log-probabilities against transformers' log-softmax, whatever happens to a request."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, decoding, load_reference
from parity import ranks_in_threads

from tandem.outputs import TokenLogprobs
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import EncoderInput, EngineRequest

VARIANTS = ["t5", "bart", "mbart", "gpt2"]
MAX_TOKENS = 30


class Case:
    """Requests with prompts of many lengths, and the whole vocabulary's log-probabilities after each of
    their tokens."""

    def __init__(self, folder: Path, count: int = 9) -> None:
        model = load_reference(folder)
        rng = random.Random(5)
        self.folder = folder
        self.requests: list[EngineRequest] = []
        self.expected: dict[str, torch.Tensor] = {}
        start = model.generation_config.decoder_start_token_id
        for number in range(count):
            source = (*(rng.randrange(2, 100) for _ in range(rng.choice([1, 8, 40]))), EOS)
            prompt = tuple(rng.randrange(2, 100) for _ in range([0, 1, 5, 23, 40][number % 5]))
            # Some ask for no log-probabilities, some for the token's own alone.
            asked = [4, 0, None, 20][number % 4]
            how = decoding(max_tokens=MAX_TOKENS, stop_ids=frozenset(), prompt_logprobs=asked)
            with torch.no_grad():
                if model.config.is_encoder_decoder:
                    encoder, prefix = EncoderInput(str(source), source), (start, *prompt)
                    logits = model(
                        input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([prefix])
                    ).logits
                else:
                    encoder, prefix = EncoderInput("", ()), (5, *prompt)
                    logits = model(input_ids=torch.tensor([prefix])).logits
            self.requests.append(EngineRequest(str(number), encoder, prefix, how))
            self.expected[str(number)] = logits[0, :-1].log_softmax(-1)

    def config(self, **options: Any) -> EngineConfig:
        sizes = {"max_num_seqs": 16, "page_size": 8, "max_encoder_length": 64, "max_decoder_length": 80}
        return EngineConfig(
            str(self.folder), dtype="float32", device="cpu", check_invariants=True, **(sizes | options)
        )

    def check(self, engine: Engine, requests: list[EngineRequest] | None = None) -> dict[str, list[int]]:
        """Runs the requests all at once; returns what they generate."""
        found: dict[str, list[TokenLogprobs]] = {}
        tokens: dict[str, list[int]] = {}
        for request in requests or self.requests:
            engine.submit(request)
        while engine.has_work:
            for delta in engine.step():
                assert delta.error is None
                own = tokens.setdefault(delta.request_id, [])
                if delta.prompt_logprobs is not None:
                    assert not own, "with the first token"
                    assert delta.request_id not in found
                    found[delta.request_id] = delta.prompt_logprobs
                own += delta.token_ids
        for request in requests or self.requests:
            asked = request.decoding.prompt_logprobs
            if asked is None or request.generated_ids:
                assert request.request_id not in found
                continue
            expected = self.expected[request.request_id]
            entries = found[request.request_id]
            assert tuple(entry.token_id for entry in entries) == request.prefix_ids[1:]
            for entry, logprobs in zip(entries, expected, strict=True):
                own = logprobs[entry.token_id]
                assert entry.logprob == pytest.approx(float(own), abs=1e-4)
                assert entry.rank is not None
                assert int((logprobs > own + 1e-4).sum()) < entry.rank <= int((logprobs > own - 1e-4).sum())
                ids = [token_id for token_id, _ in entry.top]
                values = [logprob for _, logprob in entry.top]
                assert values == pytest.approx(logprobs.topk(asked).values.tolist(), abs=1e-4)
                assert values == pytest.approx(logprobs[ids].tolist(), abs=1e-4)
                assert len(set(ids)) == asked
        return tokens


@pytest.fixture(params=VARIANTS)
def case(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Case:
    return Case(checkpoint(request.param))


def test_in_one_batch_in_small_pieces_and_preempted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = case.check(Engine(case.config()))
    silent = [replace(r, decoding=replace(r.decoding, prompt_logprobs=None)) for r in case.requests]
    assert case.check(Engine(case.config()), silent) == tokens, "asking changes no answer"
    monkeypatch.setattr("tandem.workers.models.head._SCORED_AT_ONCE", 7)
    assert case.check(Engine(case.config(overlap=True, max_num_seqs=4, max_batched_tokens=7))) == tokens
    tight = Engine(case.config(overlap=True, max_num_seqs=5, max_batched_tokens=6, page_size=4, num_pages=46))
    assert case.check(tight) == tokens
    assert tight.stats().preemptions > 0


def test_on_two_ranks_beside_targets(checkpoint: Callable[..., Path]) -> None:
    case = Case(checkpoint("t5"))
    with ranks_in_threads(case.config(tensor_parallel_size=2, overlap=True, max_batched_tokens=20)) as (
        engine,
        _,
    ):
        target = replace(case.requests[3], request_id="t", target_ids=(7, 9, 11), prefix_ids=(0, 5))
        target = replace(target, decoding=decoding(max_tokens=3, logprobs=0))
        engine.submit(target)
        case.check(engine)


def test_one_that_was_moved_has_delivered_them(checkpoint: Callable[..., Path]) -> None:
    case = Case(checkpoint("t5"))
    moved = [replace(request, generated_ids=(5, 6)) for request in case.requests]
    case.check(Engine(case.config()), moved)
