"""The processors, one by one and together, against transformers' own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import decoding
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from tandem.workers.request import EncoderInput, EngineRequest, TimestampRules
from tandem.workers.sampling.processors import Processors
from tandem.workers.scheduling.plan import Sequence
from tandem.workers.scheduling.processor_flags import ProcessorFlags

VOCAB = 24
EOS = 1
CPU = torch.device("cpu")
Tokens = tuple[int, ...]


def sequence(
    slot: int, prefix: Tokens, generated: Tokens, encoder: Tokens = (5, 1), **options: Any
) -> Sequence:
    how = decoding(stop_ids=frozenset({EOS}), **{"max_tokens": 12, **options})
    request = EngineRequest(str(slot), EncoderInput("key", encoder), prefix, how, generated)
    return Sequence(
        request, arrived=0.0, order=(0.0, slot), deadline=None, tokens=[*prefix, *generated], slots=[slot]
    )


def process(scores: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    processors = Processors(max(s.slots[0] for s in sequences) + 1, VOCAB, CPU)
    processors.start(sequences)
    slots = [s.slots[0] for s in sequences]
    return processors(scores.clone(), torch.tensor(slots), steps(sequences), processors.need_of(slots))


def steps(sequences: list[Sequence]) -> torch.Tensor:
    return torch.tensor([s.generated for s in sequences])


def expected(scores: torch.Tensor, of: Sequence) -> torch.Tensor:
    """[VOCAB], by transformers, with the penalties it lacks spelled out."""
    how, prefix = of.request.decoding, len(of.request.prefix_ids)
    ids, row = torch.tensor([of.tokens]), scores[None].clone()

    def apply(*chain: LogitsProcessor) -> None:
        nonlocal row
        for processor in chain:
            row = processor(ids, row)

    if how.logit_bias:
        apply(SequenceBiasLogitsProcessor({(i,): float(value) for i, value in how.logit_bias}))
    if how.repetition_penalty != 1:
        apply(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    for token in set(of.tokens[prefix:]):
        count = of.tokens[prefix:].count(token)
        row[0, token] -= how.frequency_penalty * count
        row[0, token] -= how.presence_penalty
    if how.no_repeat_ngram_size:
        apply(NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size))
    if how.encoder_no_repeat_ngram_size:
        encoder = torch.tensor([of.request.encoder.token_ids])
        apply(EncoderNoRepeatNGramLogitsProcessor(how.encoder_no_repeat_ngram_size, encoder))
    if how.bad_words:
        apply(NoBadWordsLogitsProcessor([list(word) for word in how.bad_words], EOS))
    if how.min_tokens:
        apply(MinNewTokensLengthLogitsProcessor(prefix, how.min_tokens, [EOS]))
    if how.forced_bos_id is not None:
        apply(ForcedBOSTokenLogitsProcessor(how.forced_bos_id))
    if how.forced_eos_ids:
        apply(ForcedEOSTokenLogitsProcessor(prefix + how.max_tokens, list(how.forced_eos_ids)))
    if how.suppress_ids:
        apply(SuppressTokensLogitsProcessor(list(how.suppress_ids)))
    if how.begin_suppress_ids:
        begin = prefix + len(how.opening_ids) + (prefix == 1 and how.forced_bos_id is not None)
        apply(SuppressTokensAtBeginLogitsProcessor(list(how.begin_suppress_ids), begin))
    if how.timestamps is not None and len(of.tokens) - prefix >= len(how.opening_ids):
        apply(_times(how.timestamps, prefix + len(how.opening_ids)))
    if (at := len(of.tokens) - prefix) < len(how.opening_ids):
        allowed = list(how.opening_ids[at])
        row = torch.full_like(row, -torch.inf)
        row[0, allowed[int(scores[allowed].argmax())]] = 0
    return row[0]


def _times(rules: TimestampRules, begin: int) -> LogitsProcessor:
    assert rules.first_id == rules.without_id + 1
    last = rules.last_initial_id
    config = GenerationConfig(
        no_timestamps_token_id=rules.without_id,
        eos_token_id=rules.text_end,
        max_initial_timestamp_index=None if last is None else last - rules.first_id,
    )
    return WhisperTimeStampLogitsProcessor(config, begin)


def assert_as_expected(sequences: list[Sequence], seed: int) -> None:
    scores = torch.randn(len(sequences), VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    got = process(scores, sequences)
    for row, of in enumerate(sequences):
        torch.testing.assert_close(got[row], expected(scores[row], of), rtol=1e-6, atol=1e-6)


tokens = st.integers(2, VOCAB - 1)
# Few different ones: n-grams repeat.
texts = st.lists(st.integers(2, 5), max_size=11).map(tuple)
options = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.3, 4.0]),
        "presence_penalty": st.sampled_from([-1.0, 0.5, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.25]),
        "no_repeat_ngram_size": st.integers(1, 4),
        "encoder_no_repeat_ngram_size": st.integers(1, 4),
        "bad_words": st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=4).map(tuple), max_size=5)
        .map(lambda words: tuple(dict.fromkeys(words))),
        "logit_bias": st.dictionaries(tokens, st.sampled_from([-100.0, -1.0, 2.5]), max_size=4)
        .map(lambda bias: tuple(bias.items())),
        "min_tokens": st.integers(1, 12),
        "forced_bos_id": tokens,
        "forced_eos_ids": st.just((EOS,)) | st.just((EOS, 7)),
        "suppress_ids": st.lists(tokens, min_size=1, max_size=3, unique=True).map(tuple),
        "opening_ids": st.lists(st.lists(tokens, min_size=1, max_size=4, unique=True).map(tuple), max_size=4)
        .map(tuple),
        "begin_suppress_ids": st.lists(tokens, min_size=1, max_size=3, unique=True).map(tuple),
        # Among the few tokens that the texts have.
        "timestamps": st.builds(
            lambda first, text, last: TimestampRules(first, first - text, first - 1, last and first + last),
            st.integers(4, 14), st.integers(1, 3), st.none() | st.integers(0, 5),
        ),
    },
)  # fmt: skip
rows = st.tuples(st.lists(st.integers(2, 5), max_size=3), texts, texts.filter(bool), options)


@settings(max_examples=300)
@given(st.lists(rows, min_size=1, max_size=5), st.integers(0, 100))
def test_any_mix_is_what_transformers_makes_of_it(mix: list[Any], seed: int) -> None:
    """Every row with parameters of its own, next to others."""
    sequences = [
        sequence(2 * slot, (0, *prefix), generated, encoder, **asked)
        for slot, (prefix, generated, encoder, asked) in enumerate(mix)
    ]
    assert_as_expected(sequences, seed)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12])
def test_ngrams_of_every_size_at_every_length(size: int) -> None:
    rng = random.Random(size)
    text = tuple(rng.choice([2, 3]) for _ in range(12))
    for asked in ({"no_repeat_ngram_size": size}, {"encoder_no_repeat_ngram_size": size}):
        assert_as_expected([sequence(n, (0,), text[:n], text[3:9], **asked) for n in range(12)], size)


def test_nobody_pays_for_what_nobody_asked_for() -> None:
    """The very tensor comes back, and no history is kept."""
    processors = Processors(2, VOCAB, CPU)
    plain = [sequence(0, (0, 3), (4,)), sequence(1, (0,), ())]
    processors.start(plain)
    assert processors.need_of([0, 1]) == ProcessorFlags.NOTHING
    scores = torch.randn(2, VOCAB)
    assert processors(scores, torch.tensor([0, 1]), steps(plain), ProcessorFlags.NOTHING) is scores
    assert processors.history[torch.tensor([0])].numel() == 0


def test_a_slot_keeps_nothing_of_its_last_sequence() -> None:
    processors = Processors(1, VOCAB, CPU)
    demanding = sequence(
        0, (0, 2), (3, 4, 2, 3), (2, 3, 4), no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=2,
        bad_words=((6,), (3, 7)), logit_bias=((8, 3.0),), suppress_ids=(9,), begin_suppress_ids=(10,),
        forced_eos_ids=(EOS,), forced_bos_id=11, presence_penalty=1.0, repetition_penalty=2.0, min_tokens=11,
        max_tokens=40, timestamps=TimestampRules(14, 12, 13, 15),
        opening_ids=((3, 4), (5,), (6, 7), (8, 9), (10, 12)),
    )  # fmt: skip
    modest = sequence(0, (0,), (2, 3), bad_words=((2, 3, 12),), suppress_ids=(13,), min_tokens=2)
    everything = ProcessorFlags.of(demanding.request)
    for one in (demanding, modest):
        processors.start([one])
        scores = torch.randn(1, VOCAB)
        got = processors(
            scores.clone(), torch.tensor([0]), steps([one]), everything
        )  # as next to a demanding one
        torch.testing.assert_close(got[0], expected(scores[0], one), rtol=1e-6, atol=1e-6)


def test_what_is_appended_is_history() -> None:
    """Token by token, next to a sequence that is longer than any history anybody asked for."""
    processors = Processors(2, VOCAB, CPU)
    ours = sequence(0, (0,), (), no_repeat_ngram_size=2, repetition_penalty=1.5, max_tokens=6)
    long = sequence(1, (0,) * 50, (), max_tokens=6)
    processors.start([ours, long])
    slots = torch.tensor([0, 1])
    for token in (4, 5, 4, 6, 4, 5):
        scores = torch.randn(2, VOCAB)
        got = processors(scores.clone(), slots, steps([ours, long]), processors.need_of([0, 1]))
        torch.testing.assert_close(got[0], expected(scores[0], ours), rtol=1e-6, atol=1e-6)
        assert torch.equal(got[1], scores[1])
        processors.append(slots, steps([ours, long]), torch.tensor([token, token]))
        ours.tokens.append(token)
        long.tokens.append(token)
