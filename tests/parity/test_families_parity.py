"""Every family's forward against transformers, token for token, in float32, in batches that change at
every step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from models import EOS, T5_VARIANTS, VARIANTS
from parity import MAX_TOKENS, Reference, greedy, ranks_in_threads, serve

from tandem.workers.engine import Engine


@pytest.fixture(params=sorted(VARIANTS.keys() - T5_VARIANTS.keys()))
def variant(request: pytest.FixtureRequest, reference: Callable[..., Reference]) -> Reference:
    return reference(request.param, 32)


def test_outputs_are_worth_comparing(variant: Reference) -> None:
    """They differ from prompt to prompt and from token to token, some end early and others run on."""
    answers = variant.answers
    assert sum(answer[-1] == EOS and len(answer) < MAX_TOKENS for answer in answers) >= 4
    assert sum(len(answer) == MAX_TOKENS for answer in answers) >= 4
    assert len({tuple(answer) for answer in answers}) >= 0.75 * len(answers)
    assert sum(len(set(answer)) for answer in answers) >= 0.2 * sum(map(len, answers))


def test_continuous_batch(variant: Reference) -> None:
    """Requests join and leave at every step, in pieces, are preempted and recomputed."""
    engine = Engine(
        variant.config(overlap=True, num_pages=56, page_size=4, max_batched_tokens=20, max_encoder_tokens=60)
    )
    assert serve(engine, greedy(variant.prompts, variant.start)) == variant.answers
    assert engine.stats().preemptions > 0


def test_tensor_parallel(variant: Reference) -> None:
    with ranks_in_threads(variant.config(tensor_parallel_size=2)) as (engine, _):
        assert serve(engine, greedy(variant.prompts, variant.start)) == variant.answers
