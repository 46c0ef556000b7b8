"""Parts are killed under load: every accepted request gets its right answer or a typed error, the part
comes back, and how many requests saw an error is counted and printed."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import grpc
import pytest
import ray
from clear_answers import clear_answers
from ray import serve
from ray.serve.schema import ReplicaState
from serving import Stub, eventually, make_config, on_ports_of, pids, text_stream

from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.errors import STATUS
from tandem.protocol.rpc import error_of

pytestmark = pytest.mark.ray
CLIENTS = 16
# Long answers, so that the kill finds them half done.
PARAMS: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True, "temperature": 0}
PROMPTS = [f"translate English to French: I have {n} dogs and a cat." for n in range(40)]
TYPED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[int]]:
    answers = clear_answers(PROMPTS, **PARAMS)
    assert len(answers) > 2 * CLIENTS
    return {prompt: answer.token_ids for prompt, answer in answers.items()}


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[launch.RunningCluster, ServeConfig]]:
    config = make_config()
    with launch.RunningCluster(config) as cluster:
        yield cluster, config


@dataclass
class Load:
    """Clients that stream one answer after the other until told to stop."""

    stub: Stub
    expected: dict[str, list[int]]
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, client: int) -> None:
        for prompt in itertools.islice(itertools.cycle(self.expected), client, None, CLIENTS):
            if self.stop.is_set():
                return
            tokens: list[int] = []
            try:
                for event in self.stub.GenerateStream(text_stream(prompt, **PARAMS), timeout=240):
                    tokens += event.delta.token_ids
            except grpc.RpcError as error:
                with self.lock:
                    self.errors.append(error)
                continue
            with self.lock:
                if tokens == self.expected[prompt]:
                    self.right += 1
                else:
                    self.wrong.append(f"{prompt}: {tokens} instead of {self.expected[prompt]}")


def under_load(
    endpoint: str, expected: dict[str, list[int]], kill: Callable[[], None], back: Callable[[], bool]
) -> Load:
    """Kills while every client is in the middle of an answer, goes on until the part is back and has
    answered."""
    with grpc.insecure_channel(endpoint) as channel:
        load = Load(Stub(channel), expected)

        def more(answers: int) -> Callable[[], bool]:
            enough = load.right + answers
            return lambda: load.right >= enough

        with ThreadPoolExecutor(CLIENTS) as pool:
            runs = [pool.submit(load.run, client) for client in range(CLIENTS)]
            try:
                eventually(more(CLIENTS), "no answers")
                kill()
                eventually(back, "the killed part did not come back")
                eventually(more(2 * CLIENTS), "no more answers after the kill")
            finally:
                load.stop.set()
        for run in runs:
            run.result()
    return load


def report(what: str, load: Load, record: Callable[[str, object], None]) -> None:
    """Checks every request, and records the counts that ../conftest.py prints at the end."""
    kinds = Counter(error.code().name for error in load.errors)
    record(
        "chaos",
        f"{what} killed: {load.right} right, {len(load.wrong)} wrong, errors: {dict(kinds) or 'none'}",
    )
    assert not load.wrong, load.wrong[:3]
    for error in load.errors:
        assert error.code() in TYPED, error
        assert type(error_of(error.code(), error.details())) in STATUS


def replicas(deployment: str) -> int:
    status = serve.status().applications[launch.APPLICATION].deployments[deployment]
    return status.replica_states.get(ReplicaState.RUNNING, 0)


@pytest.fixture(scope="module")
def endpoint_of(started: tuple[launch.RunningCluster, ServeConfig]) -> Callable[[int, int], str]:
    """An endpoint with this many decoders of a tensor-parallel size; the last test's, if it has them."""
    cluster, first = started

    @lru_cache(maxsize=1)
    def deploy(decoders: int, tensor_parallel_size: int) -> str:
        config = make_config(
            min_decoder_replicas=decoders,
            tensor_parallel_size=tensor_parallel_size,
            encoder_cache_bytes=0,  # every request needs the encoder
            replica_wait_s=120.0,  # longer than a replacement takes to start
        )
        return cluster.deploy(on_ports_of(config, first)).grpc[0]

    return deploy


CASES = {
    # What is killed: the class of its actor, its deployment, how many decoders, tensor-parallel size.
    "an encoder replica": ("ServeReplica:tandem:Encoder", "Encoder", 2, 1),
    "a decoder's engine": ("EngineActor", "Decoder", 2, 1),
    "a decoder replica": ("ServeReplica:tandem:Decoder", "Decoder", 2, 1),
    "a tensor-parallel shard": ("ShardActor", "Decoder", 1, 2),
}


@pytest.mark.parametrize("what", list(CASES))
def test_kill_under_load(
    endpoint_of: Callable[[int, int], str],
    expected: dict[str, list[int]],
    what: str,
    record_property: Callable[[str, object], None],
) -> None:
    actor_class, deployment, *shape = CASES[what]
    endpoint = endpoint_of(*shape)
    before, running = pids(actor_class), replicas(deployment)
    assert before, f"no actor of class {actor_class}"
    victim = min(before)

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        now = pids(actor_class)
        return victim not in now and len(now) >= len(before) and replicas(deployment) >= running

    load = under_load(endpoint, expected, kill, back)
    report(what, load, record_property)
    assert ray.is_initialized()
