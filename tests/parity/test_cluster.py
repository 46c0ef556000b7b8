"""Through the whole cluster, as it is split and as it is not: token for token transformers'."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from models import EOS, load_reference, reference_greedy
from serving import Stub, ids_request, make_config

from tandem.cluster import launch

pytestmark = pytest.mark.ray
MAX_TOKENS = 24
PROMPTS = 64


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    lengths = [1, 2, 31, 32, 33, 150, *(rng.randrange(1, 80) for _ in range(PROMPTS - 6))]
    return [[*(rng.randrange(3, 128) for _ in range(length)), EOS] for length in lengths]


@pytest.mark.parametrize(
    ("variant", "tensor_parallel_size"),
    [("flan", 2), ("gpt2", 1)],
    ids=["disaggregated", "colocated"],  # as decoder-only models always are
)
def test_greedy(checkpoint: Callable[..., Path], variant: str, tensor_parallel_size: int) -> None:
    folder = checkpoint(variant)
    expected, _ = reference_greedy(load_reference(folder), prompts(), MAX_TOKENS)
    config = make_config(model=str(folder), tensor_parallel_size=tensor_parallel_size)
    with (
        launch.serve(config) as cluster,
        grpc.insecure_channel(cluster.endpoints().grpc[0]) as channel,
        ThreadPoolExecutor(PROMPTS) as pool,
    ):
        stub = Stub(channel)
        answers = pool.map(
            lambda ids: stub.Generate(ids_request(ids, max_tokens=MAX_TOKENS, temperature=0), timeout=120),
            prompts(),
        )
        assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
