"""A batch of equal requests for an engine, so that all its steps have the same number of rows."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tandem import SamplingParams
from tandem.workers.engine import Engine
from tandem.workers.requests.answers.output_processor import PreparedRequest
from tandem.workers.requests.request_builder import RequestBuilder

_handles = itertools.count()


@dataclass(frozen=True)
class Given:
    """Hidden states that are at hand."""

    handle: int
    states: torch.Tensor

    def __call__(self) -> torch.Tensor:
        return self.states


def batch(request_builder: RequestBuilder, rows: int, inputs: int, outputs: int) -> list[PreparedRequest]:
    """Greedy requests, each with the same number of encoder tokens and of tokens to generate."""
    params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True)
    ids = [[random.randrange(3, 1000) for _ in range(inputs)] for _ in range(rows)]
    return [request_builder.prepare({"prompt_token_ids": one}, params) for one in ids]


def submit(engine: Engine, prepared: list[PreparedRequest]) -> None:
    """Submits them, with hidden states where the engine has no encoder."""
    for one in prepared:
        [request] = one.sequences
        if engine.runner.encoder is None:
            assert engine.spec.encoder is not None
            states = torch.zeros(len(request.encoder.token_ids), engine.spec.encoder.d_model)
            encoder = replace(request.encoder, hidden=Given(next(_handles), states.to(engine.runner.dtype)))
            request = replace(request, encoder=encoder)
        engine.submit(request)


def load(folder: Path) -> RequestBuilder:
    return RequestBuilder.load(folder, "bench")
