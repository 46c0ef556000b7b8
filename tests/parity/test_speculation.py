"""Drafts change no answer: greedy answers stay transformers', token for token, however many guesses are
right. Checked with a model that copies, and with eager guesses for models that do not."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import parity
import pytest
import torch
from copier import EOS, FIRST, TINY, make_copier, source, stands_for
from models import EOS as MODELS_EOS
from models import decoding, load_reference, reference_greedy
from parity import Answers, Kept, Reference, greedy, ranks_in_threads, serve

from tandem.kernels.cpu import ops as cpu_ops
from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.execution.encoder import Encoder
from tandem.workers.request import Delta, EncoderInput, EngineRequest
from tandem.workers.scheduling import drafts

VOCAB = TINY["vocab_size"]
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("copier")
    make_copier(path, **TINY)
    return path


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    """Inputs from all copied to nothing copied; the longest answers are cut."""
    rng = random.Random(5)
    return [
        tuple(source(rng.randint(1, 55), rng.choice((0.0, 0.05, 0.2, 1.0)), VOCAB, rng)) for _ in range(32)
    ]


@pytest.fixture(scope="module")
def answers(folder: Path, prompts: list[tuple[int, ...]]) -> Answers:
    model = load_reference(folder)
    # One by one: padding would change the source.
    found = [reference_answer(model, prompt) for prompt in prompts]
    copied = [[stands_for(token, VOCAB) for token in prompt][:MAX_TOKENS] for prompt in prompts]
    same = sum(ours == theirs for ours, theirs in zip(found, copied, strict=True))
    assert same > 0.8 * len(prompts), "it hardly copies"
    return found


def reference_answer(model: Any, prompt: tuple[int, ...], **options: Any) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=MAX_TOKENS, do_sample=False, num_beams=1, **options
    )
    ids: list[int] = out[0, 1:].tolist()
    return ids


def config(folder: Path, **options: Any) -> EngineConfig:
    sizes = {"max_num_seqs": 8, "page_size": 16, "max_encoder_length": 60, "max_decoder_length": 60}
    return EngineConfig(
        str(folder), dtype="float32", device="cpu", check_invariants=True, **{**sizes, **options}
    )


def requests(prompts: list[tuple[int, ...]], **options: Any) -> list[EngineRequest]:
    ends = {"stop_ids": frozenset({EOS}), "eos_ids": frozenset({EOS})}
    how = decoding(**{"max_tokens": MAX_TOKENS, **ends, **options})
    return [
        EngineRequest(str(number), EncoderInput(str(ids), ids), (EOS,), how)
        for number, ids in enumerate(prompts)
    ]


def deltas(engine: Engine, request: EngineRequest) -> list[Delta]:
    engine.submit(request)
    found = []
    while engine.has_work:
        found += engine.step()
    return found


def tokens(found: list[Delta]) -> list[int]:
    return [token for delta in found for token in delta.token_ids]


WAYS: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1},
    "together": {},
    "launched ahead": {"overlap": True},
    "in graphs": {"overlap": True, "cuda_graphs": True},
    "preempted": {"num_pages": 14, "page_size": 8},
    "preempted, launched ahead": {"num_pages": 14, "page_size": 8, "overlap": True},
    "few tokens a step": {"max_batched_tokens": 9},
    "small pages": {"page_size": 3},
}


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_transformers(
    way: str, folder: Path, prompts: list[tuple[int, ...]], answers: Answers
) -> None:
    engine = Engine(config(folder, **WAYS[way]))
    assert serve(engine, requests(prompts)) == answers
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.generated_tokens == sum(map(len, answers))
    assert (stats.preemptions > 0) == ("preempted" in way)


def test_without_the_extension(
    folder: Path, prompts: list[tuple[int, ...]], answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_ops, "COMPILED", False)
    engine = Engine(config(folder, overlap=True))
    assert serve(engine, requests(prompts)) == answers
    assert engine.stats().accepted_tokens > 0


@pytest.fixture(params=[False, True], ids=["one by one", "launched ahead"])
def overlap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_tensor_parallel(
    overlap: bool, folder: Path, prompts: list[tuple[int, ...]], answers: Answers
) -> None:
    with ranks_in_threads(config(folder, tensor_parallel_size=2, overlap=overlap)) as (engine, _):
        assert serve(engine, requests(prompts)) == answers
        assert engine.stats().accepted_tokens > 0


def test_what_is_copied_takes_few_steps(overlap: bool, folder: Path) -> None:
    prompt = tuple(source(40, 0.0, VOCAB, random.Random(1)))
    steps = []
    for draft_tokens in (0, 7):
        engine = Engine(config(folder, draft_tokens=draft_tokens, overlap=overlap))
        found = deltas(engine, requests([prompt])[0])
        steps.append(engine.stats().steps)
        assert max(len(delta.token_ids) for delta in found) == 1 + draft_tokens
    assert steps[0] == MAX_TOKENS
    assert steps[1] < MAX_TOKENS / 3


def test_extracts(overlap: bool, tmp_path: Path) -> None:
    """After each piece a guess is wrong, and the next ones are soon right again."""
    make_copier(tmp_path, span=8, **TINY)
    rng = random.Random(9)
    asked = [source(16 * turns, 0.0, VOCAB, rng) for turns in (1, 2, 3)]
    kept = [[*ids[:8], *ids[16:24], *ids[32:40]][: len(ids) // 2] for ids in asked]
    expected = [[*ids, EOS] for ids in kept]
    engine = Engine(config(tmp_path, overlap=overlap))
    assert serve(engine, requests([tuple(ids) for ids in asked])) == expected
    assert engine.stats().accepted_tokens > 10


def test_resumed_from_another_replica(
    overlap: bool, folder: Path, prompts: list[tuple[int, ...]], answers: Answers
) -> None:
    splits = [random.Random(number).randint(0, len(answer)) for number, answer in enumerate(answers)]
    moved = [
        replace(request, generated_ids=tuple(answer[:split]))
        for request, answer, split in zip(requests(prompts), answers, splits, strict=True)
    ]
    engine = Engine(config(folder, overlap=overlap))
    assert serve(engine, moved) == [answer[split:] for answer, split in zip(answers, splits, strict=True)]
    assert engine.stats().accepted_tokens > 0


# -- an end inside a draft is the end


@pytest.mark.parametrize("max_tokens", range(1, 20))
def test_the_limit_inside_a_draft(max_tokens: int, overlap: bool, folder: Path) -> None:
    prompt = tuple(source(30, 0.0, VOCAB, random.Random(2)))
    found = deltas(Engine(config(folder, overlap=overlap)), requests([prompt], max_tokens=max_tokens)[0])
    assert tokens(found) == list(prompt[:max_tokens])
    assert [delta.finish_reason for delta in found] == [None] * (len(found) - 1) + ["length"]


@pytest.mark.parametrize("at", range(16))
def test_a_stop_id_inside_a_draft(at: int, overlap: bool, folder: Path) -> None:
    prompt = (*random.Random(3).sample(range(FIRST, VOCAB // 2), 20), EOS)
    stop = prompt[at]
    engine = Engine(config(folder, overlap=overlap))
    found = deltas(engine, requests([prompt], stop_ids=frozenset({EOS, stop}))[0])
    assert tokens(found) == list(prompt[: at + 1])
    assert (found[-1].finish_reason, found[-1].stop_reason) == ("stop", stop)
    assert [delta.last for delta in found] == [False] * (len(found) - 1) + [True]


@pytest.mark.parametrize("min_tokens", [5, 19, 21, 30])
def test_least_tokens(min_tokens: int, overlap: bool, folder: Path) -> None:
    prompt = tuple(source(20, 0.0, VOCAB, random.Random(4)))
    model = load_reference(folder)
    engine = Engine(config(folder, overlap=overlap))
    found = tokens(deltas(engine, requests([prompt], min_tokens=min_tokens)[0]))
    assert found == reference_answer(model, prompt, min_new_tokens=min_tokens)
    assert engine.stats().accepted_tokens > 0


def test_what_depends_on_the_position_alone_is_drafted(overlap: bool, folder: Path) -> None:
    """Drafts with forced, suppressed and biased tokens, and with the stop id ignored."""
    prompt = tuple(source(25, 0.0, VOCAB, random.Random(6)))
    asked: dict[str, Any] = {
        "forced_bos_id": 9, "forced_eos_ids": (11,), "suppress_ids": (prompt[5],), "max_tokens": 24,
        "begin_suppress_ids": (prompt[1], prompt[8]), "logit_bias": ((prompt[9], -900.0),),
        "stop_ids": frozenset(),
    }  # fmt: skip
    answers = []
    for draft_tokens in (0, 7):
        engine = Engine(config(folder, draft_tokens=draft_tokens, overlap=overlap))
        answers.append(tokens(deltas(engine, requests([prompt], **asked)[0])))
        assert (engine.stats().accepted_tokens > 0) == (draft_tokens > 0)
    assert answers[0] == answers[1]
    assert (answers[0][0], answers[0][-1]) == (9, 11)


def test_log_probabilities_come_with_drafted_tokens(overlap: bool, folder: Path) -> None:
    prompt = tuple(source(25, 0.1, VOCAB, random.Random(7)))
    request = requests([prompt], logprobs=3, prompt_logprobs=2)[0]
    request = replace(request, prefix_ids=(EOS, *prompt[1:4]))
    with_drafts, without = (
        deltas(Engine(config(folder, draft_tokens=draft_tokens, overlap=overlap)), request)
        for draft_tokens in (7, 0)
    )
    assert len(with_drafts) < len(without)
    ours, theirs = ([one for d in found for one in d.logprobs or []] for found in (with_drafts, without))
    assert [one.token_id for one in ours] == [one.token_id for one in theirs] == tokens(with_drafts)
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
    for found in (with_drafts, without):
        assert [delta.prompt_logprobs is not None for delta in found] == [True] + [False] * (len(found) - 1)
        assert [delta.queued_s is not None for delta in found] == [True] + [False] * (len(found) - 1)


@pytest.mark.parametrize(
    "asked",
    [{"temperature": 0.8}, {"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3},
     {"presence_penalty": 0.1}, {"encoder_no_repeat_ngram_size": 9}, {"bad_words": ((5, 6),)}],
)  # fmt: skip
def test_what_cannot_be_verified_is_not_drafted(asked: dict[str, Any], folder: Path) -> None:
    prompt = tuple(source(25, 0.0, VOCAB, random.Random(8)))
    engine = Engine(config(folder))
    deltas(engine, requests([prompt], **asked)[0])
    assert engine.stats().drafted_tokens == 0


# -- other models, eagerly


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts wherever there is anything to guess, right or wrong."""
    monkeypatch.setattr(drafts, "CHANCES", (1.0, 1.0, 1.0))
    monkeypatch.setattr(drafts, "RATE", 0.0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("variant", ["t5", "umt5", "bart", "t5gemma2", "bert2bert", "gpt2", "phi"])
def test_random_models(variant: str, overlap: bool, reference: Callable[..., Reference]) -> None:
    """Decoder-only models copy their prompt."""
    known = reference(variant, 32)
    engine = Engine(known.config(overlap=overlap, num_pages=90))
    asked = greedy(known.prompts, known.start)
    assert serve(engine, asked) == known.answers
    stats = engine.stats()
    assert stats.drafted_tokens > 50
    assert stats.drafted_tokens > stats.accepted_tokens


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("variant", ["t5", "bart", "t5gemma2"])
@pytest.mark.parametrize("draft_tokens", [1, 7])
def test_random_models_whose_source_is_their_answer(
    variant: str, draft_tokens: int, overlap: bool, reference: Callable[..., Reference]
) -> None:
    """Most guesses are right, so what is attended to depends on where the device says that rows are. Some go
    on from tokens they had: their prefill is in one step with others' guesses."""
    known = reference(variant, 32)
    rng = random.Random(8)
    encoder = Encoder(known.config())
    asked = []
    for number, (request, answer) in enumerate(
        zip(greedy(known.prompts, known.start), known.answers, strict=True)
    ):
        prompt = request.encoder.token_ids
        said = [token if rng.random() < 0.95 else 3 for token in answer]
        # The encoder's output is the prompt's, whatever its tokens are said to be.
        copied = (*said, *prompt)[: len(prompt)]
        hidden = Kept(number, encoder.encode([prompt]))
        encoder_input = EncoderInput(str(prompt), copied, hidden)
        had = tuple(answer[: number % 3 * 4])
        asked.append(replace(request, encoder=encoder_input, generated_ids=had))
    engine = Engine(known.config(overlap=overlap, draft_tokens=draft_tokens, max_num_seqs=5))
    expected = [
        answer[len(request.generated_ids) :] for request, answer in zip(asked, known.answers, strict=True)
    ]
    assert serve(engine, asked) == expected
    stats = engine.stats()
    assert 50 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("variant", ["gpt2", "phi"])
def test_a_decoder_that_repeats_its_prompt(
    variant: str, overlap: bool, reference: Callable[..., Reference]
) -> None:
    """Small models soon repeat themselves; these prompts do so already."""
    known = reference(variant, 32)
    model = load_reference(known.folder)
    prompts = [(*prompt[:9], *answer) for prompt, answer in zip(known.prompts, known.answers, strict=True)]
    more, _ = reference_greedy(model, prompts, parity.MAX_TOKENS)
    circles = [(*ids, *tokens) for ids, tokens in zip(prompts, more, strict=True)]
    answers, leads = reference_greedy(model, circles, parity.MAX_TOKENS)
    clear = [number for number, lead in enumerate(leads) if lead > parity.CLEAR]
    assert len(clear) > 20
    engine = Engine(known.config(overlap=overlap, max_num_seqs=5))
    assert serve(engine, greedy([circles[n] for n in clear], known.start)) == [answers[n] for n in clear]
    assert engine.stats().accepted_tokens > 20


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("variant", "options"),
    [("marian-two-vocabularies", {"decoder_vocab_size": 128}), ("bert2gpt2", {})],
)
def test_what_has_two_vocabularies_copies_nothing(
    variant: str, options: dict[str, Any], checkpoint: Callable[..., Path]
) -> None:
    """No drafts between two vocabularies, though they have one size."""
    path = checkpoint(variant, **options)
    engine = Engine(config(path))
    assert not engine.spec.drafts_from_source
    prompt = (*range(3, 50), MODELS_EOS)
    deltas(engine, replace(requests([prompt])[0], prefix_ids=(0,)))
    assert engine.stats().drafted_tokens == 0
