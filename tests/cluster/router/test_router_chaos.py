"""Whatever fails and whoever gives up, in any order: each request has one right answer, and nothing of it is
left anywhere."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from fake_cluster import FakeCluster, expected, request, task_error
from ray.exceptions import ActorDiedError

from tandem.errors import DeadlineExceeded, InternalError, Unavailable


async def ask(cluster: FakeCluster, number: int, chance: random.Random) -> str:
    """How a request ended that may share its input with others, be cancelled, or have little time."""
    await asyncio.sleep(chance.random() * 0.3)
    key = number % 30
    one = request(
        f"k{key}#{number}",
        tokens=1 + number % 9,
        ids=(key, 2, 1)[: 2 + key % 2],
        timeout_s=chance.choice([None, None, 0.02, 0.1]),
        priority=chance.choice([0, 0, 3]),
    )
    task = asyncio.create_task(cluster.collect(one))
    if chance.random() < 0.2:
        await asyncio.sleep(chance.random() * 0.05)
        task.cancel()
    try:
        tokens, end = await task
    except asyncio.CancelledError:
        return "cancelled"
    except (Unavailable, InternalError):
        return "failed"
    except DeadlineExceeded:
        assert one.timeout_s is not None
        return "refused"
    if end == "deadline":
        assert one.timeout_s is not None
        assert tokens == expected(one)[: len(tokens)]
    else:
        assert (tokens, end) == (expected(one), "length")
    return str(end)


async def strike(cluster: FakeCluster, chance: random.Random, drains: list[asyncio.Task[None]]) -> None:
    """Perhaps something fails now."""
    encoders, engines = cluster.encoders, cluster.decoders.replicas
    luck = chance.random()
    if luck < 0.1:
        faults = (ActorDiedError(), task_error(RuntimeError("oops")), task_error(Unavailable("draining")))
        encoders.faults.append(chance.choice(faults))
        encoders.replace()
        cluster.router._encoders._discovery.look_soon()  # type: ignore[union-attr]
    elif luck < 0.15:
        encoders.losing = not encoders.losing
    elif luck < 0.2 and encoders.references:
        chance.choice(encoders.references).lose()
    elif luck < 0.3 and len(engines) < 5:
        await cluster.add_engine()
        name, one = chance.choice(list(engines.items())[:-1])
        if luck < 0.25:
            cluster.kill(one)
        else:
            del engines[name]
            drains.append(asyncio.create_task(one.actor.drain()))
        cluster.router._engines._discovery.look_soon()


def left(cluster: FakeCluster) -> list[Any]:
    """What the parts still hold of requests."""
    encoders, engines = cluster.router._encoders, cluster.router._engines
    assert encoders is not None
    staging = cluster.router._staging
    held: list[Any] = [
        encoders._jobs,
        encoders._queue._jobs,
        encoders._queue.tokens,
        [one for one in encoders._replicas.values() if one.batches or one.tokens],
        staging._used,
        staging._staged,
        staging._gate._waiters,
        engines._gate._waiters,
    ]
    for link in engines.links:
        held += [link.routed_requests, link._ids, link.keys, link._outbox, link._cancelled]
    for actor in cluster._all:
        if not actor.dead.is_set():
            held += [actor.actor._live, [link for link in actor.actor._links.values() if link.requests]]
    return [one for one in held if one]


@pytest.mark.parametrize("seed", range(12))
async def test_everything_fails_at_once(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    chance = random.Random(seed)
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with FakeCluster(
        engines=2,
        slots=chance.choice([2, 8]),
        encoder_batches_in_flight=chance.choice([1, 2]),
        encoder_attempts=50,
        staged_encoder_tokens=chance.choice([8, 2**17]),
        encoder_cache_bytes=chance.choice([0, 100, 2**20]),
    ) as cluster:
        cluster.encoders.step_s = chance.choice([0.0, 0.005, 0.02])
        drains: list[asyncio.Task[None]] = []
        tasks = [asyncio.create_task(ask(cluster, number, chance)) for number in range(80)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.01)
            await strike(cluster, chance, drains)
        ends = [task.result() for task in tasks]
        assert "length" in ends  # how many deadlines pass before depends on the machine
        cluster.encoders.losing = False
        cluster.encoders.faults.clear()
        await asyncio.wait_for(asyncio.gather(*drains), 10)
        await cluster.settled()
        await asyncio.sleep(0.1)
        assert left(cluster) == []
    assert complaints == []
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
