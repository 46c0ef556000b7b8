"""Beam sampling against transformers, whose draws come from a generator's state and ours from a hash. Given
our noise, transformers answers as we do, token for token; over many seeds both are distributed alike.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import EOS, decoding, load_reference
from parity import ranks_in_threads

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.request import BeamSearch, EncoderInput, EngineRequest, Hypothesis
from tandem.workers.sampling.noise import gumbel

Found = list[list[Hypothesis]]


def config(folder: Path, **options: Any) -> EngineConfig:
    sizes = {"max_num_seqs": 64, "page_size": 4, "max_encoder_length": 64, "max_decoder_length": 32}
    return EngineConfig(
        str(folder), dtype="float32", device="cpu", **{"check_invariants": True, **sizes, **options}
    )


def requests(start: int, count: int, **options: Any) -> list[EngineRequest]:
    """Requests with different prompts, widths and seeds."""
    rng = random.Random(7)
    made = []
    for number in range(count):
        prompt = (*(rng.randrange(2, 100) for _ in range(rng.choice([2, 9, 30]))), EOS)
        how = BeamSearch(2 + number % 3, 2, 1.0, early_stopping=bool(number % 2), renormalize=number % 4 == 3)
        asked = decoding(**{"max_tokens": 12, "seed": number, **options, "beams": how})
        made.append(EngineRequest(str(number), EncoderInput(str(prompt), prompt), (start,), asked))
    return made


def search(engine: Engine, asked: Sequence[EngineRequest]) -> Found:
    found: dict[str, list[Hypothesis]] = {}
    for request in asked:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            assert delta.hypotheses is not None
            found[delta.request_id] = delta.hypotheses
    assert engine.stats().free_pages == engine.stats().total_pages
    return [found[request.request_id] for request in asked]


def ids_of(found: Found) -> list[list[list[int]]]:
    return [[hypothesis.token_ids for hypothesis in one] for one in found]


@pytest.fixture(params=["t5", "bart"])
def folder(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(request.param)


def start_of(folder: Path) -> int:
    start: int = load_reference(folder).generation_config.decoder_start_token_id
    return start


def searched_by_transformers(model: Any, request: EngineRequest, **options: Any) -> list[Hypothesis]:
    how = request.decoding.beams
    assert how is not None
    out = model.generate(
        input_ids=torch.tensor([request.encoder.token_ids]),
        decoder_input_ids=torch.tensor([request.prefix_ids]),
        num_beams=how.num_beams,
        num_return_sequences=how.num_return_sequences,
        length_penalty=how.length_penalty,
        early_stopping=how.early_stopping,
        renormalize_logits=how.renormalize,
        max_new_tokens=request.decoding.max_tokens,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    found = []
    for row, score in zip(out.sequences[:, 1:].tolist(), out.sequences_scores.tolist(), strict=True):
        ids = row[: row.index(EOS) + 1] if EOS in row else row  # EOS is also the padding
        found.append(Hypothesis(ids, score, "stop" if ids[-1] == EOS else "length", None))
    return found


def test_a_temperature_near_0_is_transformers_beam_search(folder: Path) -> None:
    model, temperature = load_reference(folder), 1e-6
    asked = requests(start_of(folder), 8, temperature=temperature)
    asked = [
        replace(r, decoding=replace(r.decoding, beams=replace(r.decoding.beams, renormalize=False)))  # type: ignore[type-var]
        for r in asked
    ]
    for request, ours in zip(asked, search(Engine(config(folder)), asked), strict=True):
        theirs = searched_by_transformers(model, request, do_sample=False)
        assert ids_of([ours]) == ids_of([theirs])
        scores = [hypothesis.score * temperature for hypothesis in ours]
        assert scores == pytest.approx([hypothesis.score for hypothesis in theirs], rel=1e-3)


@pytest.mark.parametrize("kind", [{}, {"top_k": 20, "top_p": 0.95, "typical_p": 0.99}], ids=["all", "warped"])
def test_with_the_same_noise_it_is_transformers_beam_sampling(
    folder: Path, kind: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token for token and in order, where transformers' draws are taken from our noise."""
    model = load_reference(folder)
    asked = requests(start_of(folder), 24, temperature=1.5, **kind)
    for request, ours in zip(asked, search(Engine(config(folder)), asked), strict=True):
        seed, steps = torch.tensor([request.decoding.seed]), itertools.count()

        def draw(probs: torch.Tensor, num_samples: int, seed: Any = seed, steps: Any = steps) -> torch.Tensor:
            noise = gumbel(seed, torch.tensor([next(steps)]), probs.shape[1])
            return (probs.log() + noise).topk(num_samples).indices

        monkeypatch.setattr(torch, "multinomial", draw)
        options = {"top_k": 0, **kind, "temperature": request.decoding.temperature}
        theirs = searched_by_transformers(model, request, do_sample=True, **options)
        assert [(h.token_ids, h.finish_reason) for h in ours] == [
            (h.token_ids, h.finish_reason) for h in theirs
        ]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)


def test_over_many_seeds_beams_are_distributed_as_transformers(folder: Path) -> None:
    model, start, tries = load_reference(folder), start_of(folder), 2000
    prompt = (17, 40, 9, EOS)
    for kind in ({"temperature": 2.5, "top_k": 5}, {"temperature": 2.0, "top_p": 0.6}):
        how = BeamSearch(2, 1, 1.0, early_stopping=False)
        asked = [
            EngineRequest(
                str(seed), EncoderInput("", prompt), (start,),
                decoding(max_tokens=3, seed=seed, beams=how, **kind),  # type: ignore[arg-type]
            )
            for seed in range(tries)
        ]  # fmt: skip
        ours = Counter(
            tuple(one[0].token_ids) for one in search(Engine(config(folder, check_invariants=False)), asked)
        )
        torch.manual_seed(1)
        out = model.generate(
            input_ids=torch.tensor([prompt]).expand(tries, -1),
            decoder_input_ids=torch.full((tries, 1), start),
            num_beams=2, do_sample=True, max_new_tokens=3, early_stopping=False, length_penalty=1.0,
            **{"top_k": 0, **kind},
        )[:, 1:].tolist()  # fmt: skip
        theirs = Counter(tuple(ids[: ids.index(EOS) + 1] if EOS in ids else ids) for ids in out)
        assert len(theirs) > 8, "something is left to chance"
        apart = sum(abs(ours[ids] - theirs[ids]) for ids in ours | theirs) / 2 / tries
        # Two samples of one distribution over this many outcomes are about this far apart.
        expected = sum((theirs[ids] / tries / torch.pi / tries) ** 0.5 for ids in theirs)
        assert apart < 2 * expected + 0.02, (apart, expected)


def test_a_draw_depends_on_nothing_but_its_request(folder: Path) -> None:
    asked = requests(start_of(folder), 12, temperature=1.2, top_k=20, top_p=0.95, min_p=0.001, typical_p=0.99)
    found = search(Engine(config(folder)), asked)
    assert len({tuple(h.token_ids) for one in found for h in one}) > 16
    assert search(Engine(config(folder)), asked) == found
    others = [
        replace(r, request_id=f"other {n}", decoding=replace(r.decoding, temperature=0.0))
        for n, r in enumerate(asked)
    ]
    mixed = search(Engine(config(folder, max_num_seqs=9, overlap=True)), [*others, *asked])
    assert ids_of(mixed[len(others) :]) == ids_of(found)
    assert ids_of(mixed[: len(others)]) == ids_of(search(Engine(config(folder)), others))
    tight = Engine(config(folder, overlap=True, max_num_seqs=12, num_pages=40, max_batched_tokens=16))
    assert ids_of(search(tight, asked)) == ids_of(found)
    assert tight.stats().preemptions > 0
    with ranks_in_threads(config(folder, tensor_parallel_size=2)) as (engine, _):
        assert ids_of(search(engine, asked)) == ids_of(found)
    seeds = [replace(r, decoding=replace(r.decoding, seed=100)) for r in asked]
    assert ids_of(search(Engine(config(folder)), seeds)) != ids_of(found)
