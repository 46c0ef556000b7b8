"""Every T5 through `LLM` and through the cluster, tensor-parallel 1 and 2: token for token transformers'."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import grpc
import pytest
from models import EOS, T5_VARIANTS, load_reference, reference_greedy
from serving import Stub, ids_request, make_config, on_ports_of

from tandem import LLM, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig

pytestmark = pytest.mark.ray
MAX_TOKENS = 24
PROMPTS = 64


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    lengths = [1, 2, 31, 32, 33, 150, *(rng.randrange(1, 80) for _ in range(PROMPTS - 6))]
    return [[*(rng.randrange(3, 128) for _ in range(length)), EOS] for length in lengths]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[launch.RunningCluster, ServeConfig]]:
    config = make_config()
    with launch.RunningCluster(config) as cluster:
        yield cluster, config


@pytest.mark.parametrize(
    ("variant", "tensor_parallel_size"),
    [*product(T5_VARIANTS, (1, 2)), ("gpt2", 1)],  # the last is colocated, as decoder-only models always are
)
def test_greedy(
    started: tuple[launch.RunningCluster, ServeConfig],
    checkpoint: Callable[..., Path],
    variant: str,
    tensor_parallel_size: int,
) -> None:
    cluster, first = started
    folder = checkpoint(variant)
    expected, _ = reference_greedy(load_reference(folder), prompts(), MAX_TOKENS)

    with LLM(str(folder), dtype="float32", tensor_parallel_size=tensor_parallel_size) as llm:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids in prompts()],
            SamplingParams(temperature=0, max_tokens=MAX_TOKENS),
            use_tqdm=False,
        )
    assert [output.outputs[0].token_ids for output in outputs] == expected

    config = make_config(model=str(folder), tensor_parallel_size=tensor_parallel_size)
    endpoints = cluster.deploy(on_ports_of(config, first))
    with grpc.insecure_channel(endpoints.grpc[0]) as channel, ThreadPoolExecutor(PROMPTS) as pool:
        stub = Stub(channel)
        answers = pool.map(
            lambda ids: stub.Generate(ids_request(ids, max_tokens=MAX_TOKENS, temperature=0), timeout=120),
            prompts(),
        )
        assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
