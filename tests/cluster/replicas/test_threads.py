"""Workers that share a machine share its cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tandem.cluster.config import ServeConfig
from tandem.cluster.replicas.threads import use_cpus


@pytest.mark.parametrize(
    ("cpus", "beside", "threads"),
    [(3.0, 2, 3), (1.0, 2, 1), (0.1, 1, 8), (0.1, 2, 4), (0.5, 4, 2), (0.1, 16, 1)],
)
def test_threads(cpus: float, beside: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))

    def used() -> int:
        use_cpus(cpus, beside)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(used).result() == threads


def test_an_encoder_computes_beside_the_shards_of_a_decoder() -> None:
    assert ServeConfig().workers_at_once == 2
    assert ServeConfig(tensor_parallel_size=2).workers_at_once == 4
    assert ServeConfig(placement="colocated").workers_at_once == 1
    assert ServeConfig(placement="colocated", tensor_parallel_size=2).workers_at_once == 2
