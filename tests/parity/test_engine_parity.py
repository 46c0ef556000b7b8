"""A request's tokens are the same whatever happens to it, and transformers' if it is greedy. The models are
T5s; test_matrix.py covers what tells the other families apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from models import T5_VARIANTS, decoding
from parity import (
    Answers,
    Kept,
    Reference,
    greedy,
    ranks_in_threads,
    sampled,
    serve,
)

from tandem.workers.device import Work
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.local_group import LocalGroup
from tandem.workers.request import Decoding, EncoderInput, EngineRequest, EngineStats


@pytest.fixture
def variant(reference: Callable[..., Reference]) -> Reference:
    return reference("umt5")


@pytest.fixture(params=T5_VARIANTS)
def t5(request: pytest.FixtureRequest, reference: Callable[..., Reference]) -> Reference:
    return reference(request.param)


def resumed(
    requests: list[EngineRequest], answers: Answers, seed: int
) -> tuple[list[EngineRequest], Answers]:
    """Requests as if moved here after some of their tokens, and the rest of their answers."""
    rng = random.Random(seed)
    splits = [rng.randint(0, len(answer)) for answer in answers]
    return (
        [
            replace(request, generated_ids=tuple(answer[:split]))
            for request, answer, split in zip(requests, answers, splits, strict=True)
        ],
        [answer[split:] for answer, split in zip(answers, splits, strict=True)],
    )


# -- greedy, against transformers


def test_continuous_batch(t5: Reference) -> None:
    """64 requests through 16 slots: they join and leave at every step."""
    engine = Engine(t5.config())
    assert serve(engine, greedy(t5.prompts)) == t5.answers
    assert engine.stats().preemptions == 0
    assert engine.stats().steps < sum(map(len, t5.answers)) / 8


def test_preempted_and_recomputed(t5: Reference) -> None:
    engine = Engine(t5.config(overlap=True, num_pages=60, page_size=4))
    assert serve(engine, greedy(t5.prompts)) == t5.answers
    assert engine.stats().preemptions > 0


def test_padded_as_graphs_are(t5: Reference) -> None:
    """Batches of every size up to 13, some of them preempted."""
    engine = Engine(t5.config(overlap=True, cuda_graphs=True, max_num_seqs=13, num_pages=60, page_size=4))
    assert serve(engine, greedy(t5.prompts)) == t5.answers
    assert engine.stats().preemptions > 0


def test_resumed_from_another_replica(t5: Reference) -> None:
    """Decoder prefixes of all lengths, prefilled in chunks next to others' decoding."""
    requests, rest = resumed(greedy(t5.prompts), t5.answers, seed=3)
    config = t5.config(overlap=True, max_batched_tokens=20)
    assert serve(Engine(config), requests) == rest


# -- overlapped encoding


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `Work.done` said: encoder inputs take two more steps, every fourth batch far too many."""
    said: list[bool] = []
    times = itertools.cycle([*[False, False, True] * 3, *[False] * 40])

    def done(_: Work) -> bool:
        said.append(next(times))
        return said[-1]

    monkeypatch.setattr(Work, "done", property(done))
    return said


WAYS: list[dict[str, Any]] = [
    {},
    {"overlap": True, "cuda_graphs": True, "max_num_seqs": 13},
    {"overlap": True, "num_pages": 60, "page_size": 4},
    {"max_encoder_tokens": 20, "max_batched_tokens": 20},
]


@pytest.mark.parametrize("way", WAYS)
def test_encoded_beside_the_steps(way: dict[str, Any], t5: Reference, slow: list[bool]) -> None:
    engine = Engine(t5.config(async_encode=True, **way))
    assert serve(engine, greedy(t5.prompts)) == t5.answers
    assert slow.count(True) > 3
    assert slow.count(False) > 3
    assert (engine.stats().preemptions > 0) == ("num_pages" in way)


def test_ranks_encode_beside_the_steps(variant: Reference, slow: list[bool]) -> None:
    """Rank 0 says when all read what each has encoded."""
    config = variant.config(tensor_parallel_size=2, overlap=True, num_pages=60, page_size=4)
    with ranks_in_threads(replace(config, async_encode=True)) as (engine, _):
        assert serve(engine, greedy(variant.prompts[:24])) == variant.answers[:24]
        assert engine.stats().preemptions > 0
    assert slow.count(True) > 1


def test_packed_is_as_alone(variant: Reference) -> None:
    engine = Engine(variant.config(max_num_seqs=1))
    some = greedy(variant.prompts)[::6]
    assert serve(engine, some) == variant.answers[::6]


# -- sampling: the same answer, whatever happens


def test_seeded_samples(variant: Reference) -> None:
    """Alone, in any batch, preempted, resumed: the same."""
    prompts = variant.prompts[:24]
    requests = sampled(prompts)
    answers = serve(Engine(variant.config()), requests)
    assert [
        a for a, r in zip(answers, requests, strict=True) if r.decoding.temperature == 0
    ] == variant.answers[3:24:6]
    assert sum(a != b for a, b in zip(answers, variant.answers, strict=False)) > 15

    alone = Engine(variant.config(max_num_seqs=1))
    assert serve(alone, requests[::3]) == answers[::3]
    shuffled = random.Random(1).sample(range(24), 24)
    others = Engine(variant.config(overlap=True, cuda_graphs=True, max_num_seqs=5, max_batched_tokens=7))
    assert serve(others, [requests[n] for n in shuffled]) == [answers[n] for n in shuffled]
    tight = Engine(variant.config(num_pages=60, page_size=4))
    assert serve(tight, requests) == answers
    assert tight.stats().preemptions > 0
    moved, rest = resumed(requests, answers, seed=4)
    assert serve(Engine(variant.config(overlap=True)), moved) == rest


def test_samples_of_one_prompt_share_its_encoder_input(variant: Reference) -> None:
    prompt = max(variant.prompts, key=len)
    cross_pages = -(-len(prompt) // 8)

    def samples(engine: Engine) -> tuple[Answers, set[int], EngineStats]:
        (request,) = greedy([prompt])
        for number in range(8):
            how: Decoding = decoding(temperature=1.5, seed=number, stop_ids=frozenset())
            engine.submit(replace(request, request_id=str(number), decoding=how))
        answers: Answers = [[] for _ in range(8)]
        held = set()
        while engine.has_work:
            for delta in engine.step():
                answers[int(delta.request_id)] += delta.token_ids
            held.add(engine.stats().cross_pages)
        return answers, held, engine.stats()

    together, held, stats = samples(Engine(variant.config()))
    assert held == {cross_pages, 0}
    assert stats.encoded_tokens == len(prompt)
    assert len({tuple(answer) for answer in together}) == 8
    alone, held, stats = samples(Engine(variant.config(max_num_seqs=1)))
    assert alone == together
    assert stats.encoded_tokens == 8 * len(prompt)


# -- tensor parallel


def test_tensor_parallel(variant: Reference) -> None:
    """Two ranks; every other encoder input is encoded elsewhere, and both ranks read it."""
    prompts, answers = variant.prompts[:24], variant.answers[:24]
    inputs = [EncoderInput("", tuple(ids)) for ids in prompts]
    states = Encoder(variant.config()).encode(inputs).split([len(ids) for ids in prompts])
    requests = greedy(prompts)
    config = variant.config(tensor_parallel_size=2, overlap=True, num_pages=60, page_size=4)
    with ranks_in_threads(config) as (engine, followers):
        for number in range(0, 24, 2):
            hidden = Kept(1000 + number, states[number])
            followers[0].register(hidden)
            requests[number] = replace(
                requests[number], encoder=replace(requests[number].encoder, hidden=hidden)
            )
        assert serve(engine, requests) == answers
        assert engine.stats().preemptions > 0
        chosen = sampled(prompts[:12])
        assert serve(engine, chosen) == serve(Engine(variant.config()), chosen)
    assert 0 < followers[0].steps <= engine.stats().steps


def test_four_ranks_share_an_odd_vocabulary(reference: Callable[..., Reference]) -> None:
    """131 = 3 × 33 + 32 tokens; one head each."""
    variant = reference("t5", 16, vocab_size=131)
    with ranks_in_threads(variant.config(tensor_parallel_size=4)) as (engine, _):
        assert serve(engine, greedy(variant.prompts)) == variant.answers


def test_tensor_parallel_processes(variant: Reference) -> None:
    """The same over gloo, between processes."""
    config = variant.config(tensor_parallel_size=2, overlap=True)
    group = LocalGroup(config)
    try:
        engine = Engine(config, group.group)
        assert serve(engine, greedy(variant.prompts[:12])) == variant.answers[:12]
        engine.close()
    finally:
        group.close()
