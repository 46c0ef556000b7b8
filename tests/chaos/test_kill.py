"""Parts are killed under load: every accepted request gets its right answer or a typed error, the part
comes back, and how many requests saw an error is counted and printed."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import ray
from ray import serve
from serving import Stub, make_config, on_ports_of, pids, text_stream

from tandem import LLM, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.rpc import error_of

pytestmark = pytest.mark.ray
CLIENTS = 16
SECONDS = 12.0  # of load around each kill
# Long answers, so that the kill finds them half done.
PARAMS: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True, "temperature": 0}
PROMPTS = [f"translate English to French: I have {n} dogs and a cat." for n in range(40)]
# Batches and tensor-parallel sizes differ by rounding errors. Answers in which the likeliest token is never
# ahead of the next by less than this (in natural-log probability) do not.
CLEAR = 1e-3
TYPED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.fixture(scope="module")
def expected() -> dict[str, list[int]]:
    """Answers that no rounding error changes, by prompt."""
    with LLM(dtype="float32") as llm:
        outputs = llm.generate(list(PROMPTS), SamplingParams(**PARAMS, logprobs=2), use_tqdm=False)
    answers = {
        prompt: output.outputs[0].token_ids
        for prompt, output in zip(PROMPTS, outputs, strict=True)
        if all(p.top[0][1] - p.top[1][1] > CLEAR for p in output.outputs[0].logprobs or [])
    }
    assert len(answers) > 2 * CLIENTS
    return answers


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
    errors: list[grpc.RpcError] = field(default_factory=list)
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
    """Kills in the middle of a load, goes on until the part is back."""
    with grpc.insecure_channel(endpoint) as channel:
        load = Load(Stub(channel), expected)
        with ThreadPoolExecutor(CLIENTS) as pool:
            runs = [pool.submit(load.run, client) for client in range(CLIENTS)]
            try:
                time.sleep(SECONDS / 2)
                kill()
                time.sleep(SECONDS / 2)
                deadline = time.monotonic() + 180
                while not back():
                    assert time.monotonic() < deadline, "the killed part did not come back"
                    time.sleep(0.5)
                after = load.right
                while load.right < after + CLIENTS:
                    assert time.monotonic() < deadline + 60, "no more answers after the kill"
                    time.sleep(0.2)
            finally:
                load.stop.set()
        for run in runs:
            run.result()
    return load


def report(what: str, load: Load) -> None:
    print(f"\n{what}: {load.right} right, {len(load.errors)} errors, {len(load.wrong)} wrong")
    assert not load.wrong, load.wrong[:3]
    assert load.right > CLIENTS
    for error in load.errors:
        assert error.code() in TYPED, error  # type: ignore[attr-defined]
        assert type(error_of(error)).__module__ == "tandem.errors"


def replicas(deployment: str) -> int:
    status = serve.status().applications[launch.APPLICATION].deployments[deployment]
    return status.replica_states.get("RUNNING", 0)


CASES = {
    # What is killed, the class of its actor, how many there are, tensor-parallel size.
    "an encoder replica": ("ServeReplica:tandem:Encoder", "Encoder", 1, 1),
    "a decoder's engine": ("EngineActor", "Decoder", 2, 1),
    "a decoder replica": ("ServeReplica:tandem:Decoder", "Decoder", 2, 1),
    "a tensor-parallel shard": ("ShardActor", "Decoder", 1, 2),
}


@pytest.mark.parametrize("what", list(CASES))
def test_kill_under_load(
    started: tuple[launch.RunningCluster, ServeConfig], expected: dict[str, list[int]], what: str
) -> None:
    actor_class, deployment, count, tensor_parallel_size = CASES[what]
    cluster, first = started
    config = make_config(
        min_decoder_replicas=count if deployment == "Decoder" else 1,
        min_encoder_replicas=count if deployment == "Encoder" else 1,
        tensor_parallel_size=tensor_parallel_size,
        encoder_cache_bytes=0,  # every request needs the encoder
        replica_wait_s=120.0,  # longer than a replacement takes to start
    )
    endpoints = cluster.deploy(on_ports_of(config, first))
    before = pids(actor_class)
    assert before, f"no actor of class {actor_class}"
    victim = min(before)

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        now = pids(actor_class)
        return victim not in now and len(now) >= len(before) and replicas(deployment) >= count

    load = under_load(endpoints.grpc[0], expected, kill, back)
    report(f"{what} killed", load)
    assert ray.is_initialized()
