"""What only real Ray can show: processes die, objects cross between them, Serve replaces replicas.

One cluster for the module. Expected tokens come from the same engine in this process, whose answers are
held to transformers' elsewhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from models import EOS, make_checkpoint
from ray import serve

from tandem.cluster import launch
from tandem.cluster.app import application
from tandem.cluster.config import ServeConfig
from tandem.cluster.handoff import is_made
from tandem.cluster.identity import identity_of
from tandem.cluster.router.router import Router
from tandem.errors import InvalidRequest
from tandem.workers.engine import Engine
from tandem.workers.request import Decoding, EncoderInput, EngineRequest

pytestmark = pytest.mark.ray
# Ray's workers cannot import the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

TOKENS = 200


class Door:
    """An ingress that nobody uses: the tests' routers live in the tests."""

    def __init__(self, config: ServeConfig, encoder: object, decoder: object) -> None:
        del config, encoder, decoder

    async def __call__(self) -> None: ...

    async def drain(self) -> None: ...


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    return ServeConfig(
        model=str(make_checkpoint(tmp_path_factory.mktemp("model"), "t5")),
        device="cpu",
        http_port=free_port(),
        grpc_port=free_port(),
        min_decoder_replicas=2,
        max_num_seqs=16,
        drain_timeout_s=60.0,
        check_invariants=True,
    )


@pytest.fixture(scope="module")
def cluster(config: ServeConfig) -> Iterator[launch.RunningCluster]:
    with launch.RunningCluster(config) as cluster:
        cluster.deploy(config, ingress=Door)
        yield cluster


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    """Sampled, so that an answer shows whether a resumed request went on with the right noise."""
    return [
        EngineRequest(
            request_id=f"r{i}",
            encoder=EncoderInput(f"key{i // 2}", (*(3 + (7 * (i // 2) + j) % 100 for j in range(9)), EOS)),
            prefix_ids=(0,),
            decoding=Decoding(TOKENS, 0, 1.0, 0, 1.0, 0.0, 1.0, i, frozenset(), frozenset({EOS}), None),
        )
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def answers(config: ServeConfig, requests: list[EngineRequest]) -> list[list[int]]:
    engine = Engine(dataclasses.replace(config, placement="colocated").engine_config())
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id] += delta.token_ids
    return list(tokens.values())


@asynccontextmanager
async def routing(config: ServeConfig, engines: int) -> AsyncIterator[Router]:
    router = Router(
        config,
        identity_of(config),
        serve.get_deployment_handle("Encoder", launch.APPLICATION),
        serve.get_deployment_handle("Decoder", launch.APPLICATION),
    )
    await router.start()
    async with asyncio.timeout(120):
        while not await router.ready() or len(router.stats().engines) < engines:
            await asyncio.sleep(0.05)
    try:
        yield router
    finally:
        await router.close()


async def collect(router: Router, request: EngineRequest) -> list[int]:
    tokens: list[int] = []
    ends = 0
    async for delta in router.generate(request):
        tokens += delta.token_ids
        ends += delta.last
    assert ends == 1
    return tokens


async def under_way(router: Router, tokens: int) -> None:
    """Returns when the streams together have had so many tokens."""
    start = router.stats().generated_tokens
    async with asyncio.timeout(60):
        while router.stats().generated_tokens < start + tokens:
            await asyncio.sleep(0.005)


async def engines_free(router: Router) -> None:
    """Returns when no engine holds a sequence or a page."""
    async with asyncio.timeout(30):
        while any(
            s.running or s.waiting or s.free_pages < s.total_pages for s in router.stats().engines.values()
        ):
            await asyncio.sleep(0.05)


def actors(name: str) -> list[int]:
    """Process ids of this cluster's actors whose class or deployment is so named."""
    children: dict[int, list[int]] = {}
    titles = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(int(folder.name))
    found, below = [], [os.getpid()]
    while below:
        process = below.pop()
        below += children.get(process, [])
        if titles.get(process, "").startswith("ray::") and name in titles[process]:
            found.append(process)
    return found


def kill(process: int) -> None:
    """Returns when it is gone."""
    os.kill(process, signal.SIGKILL)
    while Path(f"/proc/{process}/exe").exists():
        time.sleep(0.01)


@pytest.mark.usefixtures("cluster")
async def test_answers_are_the_engines_own(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    async with routing(config, engines=2) as router:
        assert await asyncio.gather(*(collect(router, r) for r in requests)) == answers
        assert router.stats().encoder.cache_hits >= 6  # every input twice
        await engines_free(router)


@pytest.mark.usefixtures("cluster")
async def test_a_cancelled_stream_frees_the_engine(
    config: ServeConfig, requests: list[EngineRequest]
) -> None:
    async with routing(config, engines=2) as router:
        streams = [router.generate(request) for request in requests]
        await asyncio.gather(*(anext(stream) for stream in streams))
        await asyncio.gather(*(stream.aclose() for stream in streams))
        await engines_free(router)


@pytest.mark.usefixtures("cluster")
async def test_a_killed_encoder_costs_nothing_but_time(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    async with routing(config, engines=2) as router:
        first = asyncio.create_task(collect(router, requests[0]))
        await under_way(router, 1)
        [encoder] = actors("EncoderActor")
        kill(encoder)
        # Some find the encoder dead, some their input encoded before; all end.
        rest = await asyncio.gather(*(collect(router, r) for r in requests[1:]))
        assert [await first, *rest] == answers


@pytest.mark.usefixtures("cluster")
async def test_hidden_states_outlive_the_encoder(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    """Larger than what Ray keeps inline: it is in the store, and the router owns it."""
    async with routing(config, engines=2) as router:
        encoders = router._encoders
        assert encoders is not None
        long = EncoderInput("long", (*(3 + i % 100 for i in range(2000)), EOS))
        [where] = [where async for where in encoders.encode(long, (0.0, 0), math.inf)]
        assert encoders.cache_bytes > 200_000
        [encoder] = actors("EncoderActor")
        kill(encoder)
        packed = await where.reference
        assert not isinstance(packed["rows"], bytes)
        assert packed["rows"].shape == (2001, 32)
        assert await collect(router, requests[0]) == answers[0]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_whoever_borrows_a_reference_knows_when_it_is_made(size: int, tmp_path: Path) -> None:
    asked = tmp_path / "asked"

    @ray.remote(num_cpus=0)
    def make() -> bytes:
        while not asked.exists():
            time.sleep(0.02)
        return bytes(size)

    @ray.remote(num_cpus=0)
    def watch(borrowed: list[ray.ObjectRef[bytes]]) -> bool:
        before = is_made(borrowed[0])  # type: ignore[arg-type]
        asked.touch()
        while not is_made(borrowed[0]):  # type: ignore[arg-type]
            time.sleep(0.02)
        return before

    assert not ray.get(watch.remote([make.remote()]), timeout=60)


@pytest.mark.usefixtures("cluster")
async def test_an_engine_killed_under_load_leaves_all_streams_whole(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    async with routing(config, engines=2) as router:
        tasks = [asyncio.create_task(collect(router, request)) for request in requests]
        await under_way(router, 300)
        kill(actors("EngineActor")[0])
        assert await asyncio.gather(*tasks) == answers
        assert router.stats().resubmitted > 0


@pytest.mark.usefixtures("cluster")
async def test_the_streams_of_an_engine_that_hangs_go_on_elsewhere(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    async with routing(config, engines=2) as router:
        tasks = [asyncio.create_task(collect(router, request)) for request in requests]
        await under_way(router, 300)
        engine, stopped_at = actors("EngineActor")[0], time.monotonic()
        os.kill(engine, signal.SIGSTOP)
        try:
            assert await asyncio.gather(*tasks) == answers
            took_s = time.monotonic() - stopped_at
        finally:
            os.kill(engine, signal.SIGCONT)
        assert router.stats().resubmitted > 0
        assert config.engine_silence_s - 1 < took_s < 20


@pytest.mark.usefixtures("cluster")
async def test_scaling_down_drains(
    config: ServeConfig, requests: list[EngineRequest], answers: list[list[int]]
) -> None:
    async with routing(config, engines=2) as router:  # the killed one has been replaced
        tasks = [asyncio.create_task(collect(router, request)) for request in requests]
        await under_way(router, 100)
        smaller = application(dataclasses.replace(config, min_decoder_replicas=1), ingress=Door)
        await asyncio.to_thread(serve.run, smaller, name=launch.APPLICATION)
        assert await asyncio.gather(*tasks) == answers
        assert router.stats().resubmitted == 0
        assert await collect(router, requests[0]) == answers[0]


async def test_a_dead_shard_takes_its_group_along_and_the_group_comes_back(
    cluster: launch.RunningCluster,
    config: ServeConfig,
    requests: list[EngineRequest],
    answers: list[list[int]],
) -> None:
    config = dataclasses.replace(config, tensor_parallel_size=2, min_decoder_replicas=1)
    await asyncio.to_thread(cluster.deploy, config, ingress=Door)
    async with routing(config, engines=1) as router:
        tasks = [asyncio.create_task(collect(router, request)) for request in requests[:4]]
        await under_way(router, 20)
        [shard] = actors("ShardActor")
        kill(shard)
        assert await asyncio.gather(*tasks) == answers[:4]  # the replacement went on with them
        assert router.stats().resubmitted == 4


def test_nothing_is_left_of_the_environment(cluster: launch.RunningCluster) -> None:
    assert "RAY_SERVE_ENABLE_DIRECT_INGRESS" not in os.environ
    assert cluster.endpoints().http[0].startswith("127.0.0.1:")


class Neighbour:
    async def __call__(self) -> str:
        return "still here"


def test_applications_of_others_are_left_alone(cluster: launch.RunningCluster, config: ServeConfig) -> None:
    """A second server on the cluster is refused, for its name or its route, and its end ends nothing."""
    ours = serve.status().applications[launch.APPLICATION].deployments.keys()
    deployment: Any = serve.deployment(Neighbour)
    neighbour = serve.run(deployment.bind(), name="neighbour", route_prefix="/neighbour")
    second = launch.RunningCluster(config)
    with second, pytest.raises(InvalidRequest, match=f"application already, '{launch.APPLICATION}' at /"):
        second.deploy(config, ingress=Door)
    assert serve.status().applications[launch.APPLICATION].deployments.keys() == ours
    assert neighbour.remote().result(timeout_s=60) == "still here"

    cluster.undeploy()
    serve.run(deployment.bind(), name="neighbour", route_prefix="/")
    with pytest.raises(InvalidRequest, match="application already, 'neighbour' at /"):
        cluster.deploy(config, ingress=Door)
    assert neighbour.remote().result(timeout_s=60) == "still here"
    serve.delete("neighbour")
