"""The sampler: transformers' own processors are the oracle of what it draws from, and how often."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random
from typing import Any

import pytest
import torch
from models import decoding
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest
from tandem.workers.sampling.noise import gumbel, uniform
from tandem.workers.sampling.sampler import Sampler
from tandem.workers.scheduling.plan import Row, Sequence

VOCAB = 96
CPU = torch.device("cpu")
MASK = 2**64 - 1


def sequence(
    slot: int, *, prefix: tuple[int, ...] = (0,), generated: tuple[int, ...] = (), **options: Any
) -> Sequence:
    request = EngineRequest(str(slot), EncoderInput("key", (1,)), prefix, decoding(**options), generated)
    return Sequence(
        request, arrived=0.0, order=(0.0, slot), deadline=None, tokens=[*prefix, *generated], slots=[slot]
    )


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """One step of a sampler that just got them. logits [rows, VOCAB]."""
    sampler = Sampler(max(s.slots[0] for s in sequences) + 1, VOCAB, CPU)
    sampler.start(sequences)
    return sampler.sample(logits.clone(), rows(sequences)).wait()[0]


def rows(sequences: list[Sequence]) -> list[Row]:
    return [Row(s, len(s.tokens) - 1, 1, [], samples=1) for s in sequences]


def random_logits(rows: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def processors(prefix: int, options: dict[str, Any]) -> list[LogitsProcessor]:
    """What transformers' `generate` would apply, in its order."""
    chain: list[LogitsProcessor] = []
    if "repetition_penalty" in options:
        chain.append(RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "min_tokens" in options:
        stops = sorted(options.get("stop_ids", {1}))
        chain.append(MinNewTokensLengthLogitsProcessor(prefix, options["min_tokens"], stops))
    if "temperature" in options:
        chain.append(TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        chain.append(TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        chain.append(TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        chain.append(MinPLogitsWarper(options["min_p"]))
    if "typical_p" in options:
        chain.append(TypicalLogitsWarper(options["typical_p"]))
    return chain


def probabilities(
    logits: torch.Tensor, tokens: list[int], prefix: int, options: dict[str, Any]
) -> torch.Tensor:
    """float64 [VOCAB], by transformers. logits [VOCAB]."""
    scores = logits[None].clone()
    for processor in processors(prefix, options):
        scores = processor(torch.tensor([tokens]), scores)
    return scores[0].double().softmax(-1)


# -- noise


def splitmix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def noise(seed: int, step: int) -> float:
    """`uniform` in Python's own integers."""
    return (splitmix(splitmix(seed) + (step + 1) * 0x9E3779B97F4A7C15 & MASK) >> 11) * 2.0**-53


def test_uniform_is_the_documented_hash() -> None:
    """Pinned: answers with a seed are to stay the same from one release to the next."""
    pairs = list(itertools.product([0, 1, 7, 2**31, 2**63 - 1], [0, 1, 2, 1000, 2**40]))
    seeds, steps = torch.tensor(pairs).T
    assert uniform(seeds, steps).tolist() == [noise(seed, step) for seed, step in pairs]


def test_gumbel_noise_draws_without_replacement() -> None:
    """Of three tokens the first and the second drawn, as often as their probabilities say."""
    probs = torch.tensor([0.6, 0.3, 0.1])
    seeds = torch.arange(20_000)
    first, second = (probs.log() + gumbel(seeds, seeds % 7, 3)).topk(2).indices.T
    for a in range(3):
        for b in range(3):
            expected = 0.0 if a == b else float(probs[a] * probs[b] / (1 - probs[a]))
            assert float(((first == a) & (second == b)).double().mean()) == pytest.approx(expected, abs=0.012)
    alone = gumbel(seeds[5:6], seeds[5:6] % 7, 9)
    assert torch.equal(alone[:, :3], gumbel(seeds, seeds % 7, 3)[5:6]), "whatever the batch"


@pytest.mark.parametrize("across", ["seeds", "steps", "both"])
def test_uniform_is_uniform_and_independent(across: str) -> None:
    count = 1 << 16
    counter = torch.arange(count)
    fixed = torch.full_like(counter, 11)
    if across == "both":  # the steps of 256 neighbouring seeds
        u = uniform(counter // 256, counter % 256)
    else:
        u = uniform(counter, fixed) if across == "seeds" else uniform(fixed, counter)
    assert u.dtype == torch.float64
    assert bool(((u >= 0) & (u < 1)).all())
    assert len(u.unique()) == count
    # Chi-square over 256 bins, and over 32 × 32 bins of neighbours: 6 standard deviations.
    bins = (u * 256).long().bincount(minlength=256)
    pairs = ((u[:-1] * 32).long() * 32 + (u[1:] * 32).long()).bincount(minlength=1024)
    for table in (bins, pairs):
        expected = table.sum() / len(table)
        chi_square = float(((table - expected) ** 2 / expected).sum())
        freedom = len(table) - 1
        assert abs(chi_square - freedom) < 6 * (2 * freedom) ** 0.5
    # Every bit below the leading ones is as often set as not.
    for bit in range(1, 30):
        share = float(((u * 2**bit).long() & 1).double().mean())
        assert abs(share - 0.5) < 6 * 0.5 / count**0.5


# -- what is drawn from

CONFIGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": VOCAB},
    {"temperature": 1.0, "top_p": 0.1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 40, "top_p": 0.95, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.3},
    {"temperature": 1.4, "typical_p": 0.95},
    {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.6},
    {"temperature": 1.0, "repetition_penalty": 1.8},
    {"temperature": 1.0, "repetition_penalty": 0.6, "top_p": 0.9},
    {"temperature": 1.0, "min_tokens": 4},
    {"temperature": 1.3, "min_tokens": 4, "stop_ids": frozenset({1, 9, 17}), "top_k": 10},
    {"temperature": 0.9, "repetition_penalty": 1.3, "min_tokens": 3, "top_k": 30, "top_p": 0.9, "min_p": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_draws_from_transformers_distribution(options: dict[str, Any]) -> None:
    """With the noise known, so is the token: the inverse of transformers' cumulative distribution."""
    rows = 300
    prefix, generated = (0, 5, 9), (17, 5)
    logits = random_logits(rows, seed=len(str(options)))
    sequences = [
        sequence(row, prefix=prefix, generated=generated, seed=1000 + row, **options) for row in range(rows)
    ]
    tokens = sample(logits, sequences)
    for row, token in enumerate(tokens):
        probs = probabilities(logits[row], [*prefix, *generated], len(prefix), options)
        assert probs[token] > 0, "a token that transformers rules out"
        cdf = probs.cumsum(-1)
        u = noise(1000 + row, len(generated))
        low = float(cdf[token - 1]) if token else 0.0
        assert low - 1e-5 <= u <= float(cdf[token]) + 1e-5


@pytest.mark.parametrize("options", [CONFIGS[0], CONFIGS[11], CONFIGS[-1]], ids=str)
def test_frequencies_follow_the_probabilities(options: dict[str, Any]) -> None:
    draws = 10_000
    logits = random_logits(1, seed=3)
    sequences = [sequence(row, prefix=(0, 4), seed=row, **options) for row in range(draws)]
    counts = Counter(sample(logits.expand(draws, -1), sequences))
    expected = (probabilities(logits[0], [0, 4], 2, options) * draws).tolist()
    assert {token for token, count in enumerate(expected) if count > 20} <= counts.keys()
    frequent = [(counts[token], count) for token, count in enumerate(expected) if count >= 5]
    chi_square = sum((got - count) ** 2 / count for got, count in frequent)
    freedom = max(1, len(frequent) - 1)
    assert chi_square < freedom + 6 * (2 * freedom) ** 0.5


def test_greedy_takes_the_likeliest_after_the_processors() -> None:
    logits = random_logits(64, seed=1)
    options: dict[str, Any] = {
        "repetition_penalty": 2.0,
        "min_tokens": 3,
        "stop_ids": frozenset(range(1, 30)),
    }
    sequences = [sequence(row, prefix=(0, row, 40), **options) for row in range(64)]
    expected = [int(probabilities(logits[row], [0, row, 40], 3, options).argmax()) for row in range(64)]
    assert sample(logits, sequences) == expected
    assert expected != logits.argmax(-1).tolist()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_extreme_noise_never_draws_what_is_ruled_out(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last tokens are ruled out; rounding must not reach them."""
    monkeypatch.setattr(
        "tandem.workers.sampling.sampler.uniform",
        lambda seed, _: torch.full(seed.shape, u, dtype=torch.float64),
    )
    edges = frozenset({0, 1, 2, VOCAB - 2, VOCAB - 1})
    logits = random_logits(50, seed=8, spread=0.01)
    logits[:, sorted(edges)] += 1
    options: dict[str, Any] = {"temperature": 1.0, "min_tokens": 9, "stop_ids": edges}
    extras: list[dict[str, Any]] = [{}, {"top_k": 40}, {"top_p": 0.7}, {"min_p": 0.5}]
    for extra in extras:
        sequences = [sequence(row, **options, **extra) for row in range(50)]
        assert not edges & set(sample(logits, sequences))


def test_a_token_of_probability_one_is_always_drawn() -> None:
    logits = torch.full((20, VOCAB), -1e4)
    logits[:, 33] = 0.0
    sequences = [sequence(row, seed=row, temperature=1.0, top_p=0.5) for row in range(20)]
    assert sample(logits, sequences) == [33] * 20


# -- the same answer, whatever the batch


def test_a_draw_depends_on_seed_and_step_only() -> None:
    """Alone, among others of all kinds, in another order, in another slot."""
    kinds: list[dict[str, Any]] = [{}, *CONFIGS]
    logits = random_logits(len(kinds), seed=5)
    alone = [
        sample(logits[row : row + 1], [sequence(0, generated=(3,) * row, seed=77 + row, **options)])[0]
        for row, options in enumerate(kinds)
    ]
    together = [
        sequence(2 * row, generated=(3,) * row, seed=77 + row, **options) for row, options in enumerate(kinds)
    ]
    assert sample(logits, together) == alone
    assert sample(logits.flip(0), together[::-1]) == alone[::-1]


def test_steps_count_on_and_a_resumed_sequence_takes_up_the_count() -> None:
    options: dict[str, Any] = {
        "temperature": 1.2,
        "top_k": 50,
        "repetition_penalty": 1.4,
        "min_tokens": 5,
        "seed": 4,
    }
    steps = random_logits(8, seed=6)
    whole = sequence(1, **options)
    sampler = Sampler(3, VOCAB, CPU)
    sampler.start([whole])
    tokens = []
    for logits in steps:
        tokens += sampler.sample(logits[None].clone(), rows([whole])).wait()[0]
        whole.tokens.append(tokens[-1])
    for split in range(1, 8):
        rest = sequence(2, generated=tuple(tokens[:split]), **options)
        sampler.start([rest])  # in the same sampler: one moved here next to the others
        resumed = []
        for logits in steps[split:]:
            resumed += sampler.sample(logits[None].clone(), rows([rest])).wait()[0]
            rest.tokens.append(resumed[-1])
        assert resumed == tokens[split:]


def test_penalties_follow_what_is_generated() -> None:
    """Step by step as in transformers, with a neighbour that wants none of it."""
    options: dict[str, Any] = {"repetition_penalty": 3.0, "min_tokens": 3, "stop_ids": frozenset({2, 3})}
    base = random_logits(2, seed=9)
    base[0, [2, 3]] += 8
    ours, neighbour = sequence(0, prefix=(0, 7), **options), sequence(1)
    sampler = Sampler(2, VOCAB, CPU)
    sampler.start([ours, neighbour])
    tokens = [0, 7]
    for _ in range(6):
        expected = int(probabilities(base[0], tokens, 2, options).argmax())
        got = sampler.sample(base.clone(), rows([ours, neighbour])).wait()[0]
        assert got == [expected, int(base[1].argmax())]
        tokens.append(got[0])
        for one, token in zip((ours, neighbour), got, strict=True):
            one.tokens.append(token)
    assert len(set(tokens)) == len(tokens)
    assert not {2, 3} & set(tokens[2:5])
    assert tokens[5] in (2, 3)


def test_a_slot_keeps_nothing_of_its_last_sequence() -> None:
    logits = random_logits(1, seed=10)
    sampler = Sampler(1, VOCAB, CPU)
    likeliest = int(logits.argmax())
    demanding = sequence(
        0, prefix=(likeliest,), repetition_penalty=50.0, min_tokens=9, stop_ids=frozenset({likeliest}),
        temperature=5.0, top_k=3, top_p=0.5, min_p=0.5, seed=3,
    )  # fmt: skip
    sampler.start([demanding])
    assert sampler.sample(logits.clone(), rows([demanding])).wait()[0] != [likeliest]
    for plain in (sequence(0), sequence(0, repetition_penalty=50.0), sequence(0, min_tokens=3)):
        sampler.start([plain])
        assert sampler.sample(logits.clone(), rows([plain])).wait()[0] == [likeliest]


# -- logprobs


def test_logprobs_are_the_models_own() -> None:
    """log_softmax of the logits as they come, whatever is done to them before sampling."""
    logits = random_logits(4, seed=12)
    sequences = [
        sequence(0, logprobs=0),
        sequence(1, logprobs=5, temperature=0.7, top_k=4, repetition_penalty=2.0, seed=9),
        sequence(2),
        sequence(3, logprobs=2, min_tokens=9, stop_ids=frozenset({int(logits[3].argmax())})),
    ]
    sampler = Sampler(4, VOCAB, CPU)
    sampler.start(sequences)
    tokens, entries, *_ = sampler.sample(logits.clone(), rows(sequences)).wait()
    assert entries is not None
    expected = logits.double().log_softmax(-1)
    assert entries[2] is None
    for row, k in ((0, 0), (1, 5), (3, 2)):
        entry = entries[row]
        assert entry is not None
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-5)
        top = expected[row].topk(k)
        assert [token for token, _ in entry.top] == top.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=1e-5)


def test_no_logprobs_unless_asked_for() -> None:
    sampler, asked = Sampler(1, VOCAB, CPU), [sequence(0)]
    sampler.start(asked)
    assert sampler.sample(random_logits(1, seed=2), rows(asked)).wait()[1] is None


KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 5, "seed": 3},
    {"temperature": 1.3, "top_p": 0.6, "seed": 4},
    {"repetition_penalty": 5.0},
    {"presence_penalty": 9.0},
    {"no_repeat_ngram_size": 2},
    {"min_tokens": 9, "stop_ids": frozenset(range(VOCAB // 2))},
    {"suppress_ids": tuple(range(0, VOCAB, 2))},
    {"temperature": 0.4, "logit_bias": ((7, 50.0),), "seed": 5},
]


def test_who_had_a_slot_before_leaves_no_trace() -> None:
    """Parameters that do nothing are not written: what is there may be another request's that do nothing."""
    random = Random(0)
    slots = 4
    used = Sampler(slots, VOCAB, CPU)
    for turn in range(60):
        several = [
            sequence(slot, prefix=(0, 5, 6), generated=(7, 5), **random.choice(KINDS))
            for slot in range(slots)
        ]
        used.start(several)
        logits = random_logits(slots, turn)
        fresh = Sampler(slots, VOCAB, CPU)
        fresh.start(several)
        expected = fresh.sample(logits.clone(), rows(several)).wait()
        assert used.sample(logits.clone(), rows(several)).wait() == expected


@torch.inference_mode()
def test_beams_know_their_prefix_whoever_had_their_slots() -> None:
    """A request that needs nothing may leave its parameters to the next such; beams read where they began."""
    sampler = Sampler(2, VOCAB, CPU)
    sampler.start([sequence(0), sequence(1)])
    how = decoding(beams=BeamSearch(2, 1, 1.0, early_stopping=False))
    request = EngineRequest("beams", EncoderInput("key", (1,)), (0, 5, 6), how)
    beams = Sequence(
        request, arrived=0.0, order=(0.0, 2), deadline=None, tokens=[0, 5, 6], width=2, slots=[0, 1]
    )
    sampler.start([beams])
    sampler._processors.append(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([8, 9]))
    assert sampler._processors.history[torch.tensor([0, 1])][:, :4].tolist() == [[0, 5, 6, 8], [0, 5, 6, 9]]
