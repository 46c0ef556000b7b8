"""What the parity tests share: transformers' answers, and engines to compare with them.

Prompts that transformers itself decides by a hair are left out: where two tokens' logits differ by less
than rounding, either is right.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from models import EOS, PAD, decoding, load_reference, reference_greedy
from thread_group import ThreadGroup

from tandem.workers.config import EngineConfig
from tandem.workers.engine import Engine
from tandem.workers.follower import Follower
from tandem.workers.models.families import spec_of
from tandem.workers.models.model_folder import read_json
from tandem.workers.request import EncoderInput, EngineRequest

LENGTHS = [1, 2, 3, 7, 16, 33, 64, 90, 149]  # tokens of a prompt, before EOS
PROMPTS = 64
MAX_TOKENS = 24
CLEAR = 2e-4  # of the logits' standard deviation; rounding is a hundredth of it

Answers = list[list[int]]


@dataclass(frozen=True)
class Reference:
    """A variant, prompts, and transformers' answers."""

    folder: Path
    start: int | None  # what the decoder starts from; None: the prompt, there is no encoder
    prompts: list[tuple[int, ...]]
    answers: Answers

    @classmethod
    def make(cls, folder: Path, count: int = PROMPTS) -> Reference:
        model = load_reference(folder)
        rng = random.Random(17)
        size = model.get_input_embeddings().num_embeddings
        prompts = [
            (*(rng.randrange(2, size) for _ in range(rng.choice(LENGTHS))), EOS)
            for _ in range(count + count // 4)
        ]
        answers, clear = reference_greedy(model, prompts, MAX_TOKENS)
        kept = [number for number, lead in enumerate(clear) if lead > CLEAR][:count]
        assert len(kept) == count
        start = spec_of(read_json(folder, "config.json")).decoder_start_id
        return cls(folder, start, [prompts[n] for n in kept], [answers[n] for n in kept])

    def config(self, **options: Any) -> EngineConfig:
        sizes = {"max_num_seqs": 16, "page_size": 8, "max_encoder_length": 160, "max_decoder_length": 180}
        return EngineConfig(
            str(self.folder), dtype="float32", device="cpu", check_invariants=True, **{**sizes, **options}
        )


def serve(engine: Engine, requests: list[EngineRequest]) -> Answers:
    """The prompts' tokens, in order, all requests at once."""
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    ended = []
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            assert delta.error is None
            answers[delta.request_id] += delta.token_ids
            ended += [delta.request_id] * delta.last
    assert sorted(ended) == sorted(answers)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.total_pages)
    return list(answers.values())


def greedy(prompts: list[tuple[int, ...]], start: int | None = PAD) -> list[EngineRequest]:
    how = decoding(max_tokens=MAX_TOKENS)
    return [
        EngineRequest(str(number), EncoderInput("", ()), ids, how)
        if start is None
        else EngineRequest(str(number), EncoderInput(str(ids), ids), (start,), how)
        for number, ids in enumerate(prompts)
    ]


def sampled(prompts: list[tuple[int, ...]]) -> list[EngineRequest]:
    """Requests with different parameters."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 0.0},
        {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 1.5},
        {"temperature": 1.6, "top_k": 50, "top_p": 0.95, "min_tokens": 12},
    ]
    return [
        replace(request, decoding=decoding(seed=1000 + number, **kinds[number % len(kinds)]))
        for number, request in enumerate(greedy(prompts))
    ]


@contextmanager
def ranks_in_threads(config: EngineConfig) -> Iterator[tuple[Engine, list[Follower]]]:
    first, *others = ThreadGroup.ranks(config.tensor_parallel_size)
    followers = [Follower(config, group) for group in others]
    threads = [threading.Thread(target=follower.run, daemon=True) for follower in followers]
    engine = Engine(config, first)
    for thread in threads:
        thread.start()
    yield engine, followers
    engine.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@dataclass
class Kept:
    """Hidden states at hand in this process."""

    handle: int
    states: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return self.states
