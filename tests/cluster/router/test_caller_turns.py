"""Callers that wait for the same workers: each gets its share, whatever the others ask for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from fake_cluster import FakeCluster, expected, request, until

from tandem.cluster.callers import CALLER, Caller, Quotas
from tandem.cluster.router.shares import Shares
from tandem.cluster.router.turns import Turns
from tandem.errors import InvalidRequest, Overloaded
from tandem.limits import Limits
from tandem.workers.request import EncodeRequest, EncoderInput

T = TypeVar("T")


@pytest.mark.parametrize("seed", range(50))
def test_those_who_always_wait_get_their_weights_shares(seed: int) -> None:
    draw = random.Random(seed)
    weights = [draw.uniform(0.1, 10) for _ in range(draw.randint(2, 5))]
    amounts = [draw.randint(1, 50) for _ in range(500)]
    callers = [Caller(str(number), Quotas(weight=weight)) for number, weight in enumerate(weights)]
    turns, given_out = Turns(), Counter[Caller]()
    for amount in amounts:
        first = min(callers, key=turns.start)
        turns.took(first, amount)
        given_out[first] += amount
    served = [given_out[caller] / caller.quotas.weight for caller in callers]
    # No two differ by more than their largest turns.
    assert max(served) - min(served) <= 2 * max(amounts) / min(weights)


def test_what_is_not_used_is_not_saved_up() -> None:
    busy, idle = Caller("busy"), Caller("idle")
    turns = Turns()
    for _ in range(100):
        turns.took(busy, 1)
    order = []
    for _ in range(6):
        first = min((busy, idle), key=turns.start)
        turns.took(first, 1)
        order.append(first.name)
    assert sorted(order) == ["busy"] * 3 + ["idle"] * 3


async def as_caller(caller: Caller, work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        CALLER.set(caller)
        return await work()

    return await asyncio.create_task(run(), context=contextvars.copy_context())


async def test_a_small_caller_is_served_beside_a_greedy_one() -> None:
    """The greedy one always has 100 requests waiting, of 10 steps of 2 ms each on 8 slots: 0.25 s of work.
    It asks for more than the queue holds."""
    small, greedy = Caller("small"), Caller("greedy")
    refused: Counter[str] = Counter()
    done: Counter[str] = Counter()
    passed: list[int] = []  # requests of the greedy one that ended while one of the small one's was there
    limits = Limits(queued_requests=100)

    async with FakeCluster(step_s=0.002, limits=limits) as cluster, asyncio.timeout(30):

        async def one(name: str) -> None:
            try:
                deltas = [delta async for delta in cluster.router.generate(request(name, tokens=10))]
            except Overloaded:
                refused[name[0]] += 1
                await asyncio.sleep(0.01)
                return
            assert [t for delta in deltas for t in delta.token_ids] == expected(request(name, tokens=10))
            done[name[0]] += 1

        async def flood() -> None:
            number = 0
            while True:
                number += 1
                await one(f"g{number}")

        floods = [asyncio.create_task(as_caller(greedy, flood)) for _ in range(130)]
        await asyncio.sleep(0.3)
        for number in range(12):
            before = done["g"]
            await as_caller(small, functools.partial(one, f"s{number}"))
            passed.append(done["g"] - before)
        for flooding in floods:
            flooding.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    assert refused["g"] > 0
    assert refused["s"] == 0
    assert done["s"] == 12
    # By arrival 100 would go before it; so those on the engine do, and those that end during its own steps.
    assert max(passed) < 50


def test_shares_are_those_of_who_was_there_lately() -> None:
    now = 0.0
    shares = Shares(lambda: now)
    a, b, c = (Caller(name, Quotas(weight=weight)) for name, weight in (("a", 1.0), ("b", 3.0), ("c", 4.0)))
    assert shares.of(a) == 1
    shares.saw(a)
    assert (shares.of(a), shares.of(b)) == (1, 0.75)
    now = 9.0
    shares.saw(b)
    shares.saw(c)
    assert [shares.of(each) for each in (a, b, c)] == [1 / 8, 3 / 8, 4 / 8]
    now = 11.0
    c.quotas = Quotas(weight=1.0)  # as the keys' file says now
    shares.saw(c)
    assert [shares.of(each) for each in (a, b, c)] == [1 / 5, 3 / 4, 1 / 4]  # a is gone, and may come back
    now = 25.0
    shares.saw(c)
    assert shares.of(c) == 1


async def test_nobody_waits_for_the_end_of_a_greedy_callers_answers() -> None:
    """They take 400 steps, and begin together; the small one's take 5."""
    small, greedy = Caller("small"), Caller("greedy")
    async with FakeCluster(step_s=0.001) as cluster, asyncio.timeout(30):
        (engine,) = (actor.engine for actor in cluster.decoders.replicas.values())

        async def ask(name: str, tokens: int) -> int:
            began = engine.stats().steps
            assert [delta async for delta in cluster.router.generate(request(name, tokens=tokens))]
            return engine.stats().steps - began

        await as_caller(small, functools.partial(ask, "s", 5))
        floods = [
            asyncio.create_task(as_caller(greedy, functools.partial(ask, f"g{number}", 400)))
            for number in range(20)
        ]
        await until(lambda: engine.stats().running > 5)
        taken = [await as_caller(small, functools.partial(ask, f"s{number}", 5)) for number in range(10)]
        assert engine.stats().running == 7  # of 8, all the greedy one's
        assert max(taken) < 100
        # Without others it has them all.
        await asyncio.gather(*floods)


async def test_each_has_its_share_of_the_queue_and_the_queue_an_end() -> None:
    callers = [Caller(name, Quotas(weight=weight)) for name, weight in (("a", 1.0), ("b", 1.0), ("c", 2.0))]
    limits = Limits(queued_requests=12)
    async with FakeCluster(engines=0, limits=limits) as cluster, contextlib.AsyncExitStack() as stack:
        accepted: list[int] = []

        async def fill() -> None:
            for count in range(20):
                try:
                    accepting = cluster.router.accept([request(f"{CALLER.get().name}{count}")])
                    stack.enter_context(accepting)
                except Overloaded:
                    accepted.append(count)
                    return

        for caller in callers:
            await as_caller(caller, fill)
        assert accepted == [12, 6, 6]  # all; a half beside one; two of four parts beside two


async def test_no_caller_sees_what_another_has_had_encoded() -> None:
    ids = (3, 2, 1)
    async with FakeCluster() as cluster:

        async def ask() -> None:
            one = request("same", tokens=2, ids=ids)
            assert [delta async for delta in cluster.router.generate(one)]
            await cluster.router.hidden_states([EncodeRequest(EncoderInput("same", ids))])

        for caller in (Caller("a"), Caller("b"), Caller("a")):
            await as_caller(caller, ask)
        counters = cluster.router.stats().encoder
        assert (counters.cache_misses, counters.cache_hits) == (2, 4)
        assert (counters.media_encoded, counters.media_reused) == (2, 2)
        assert cluster.router.stats().media_cache_bytes == 64
        assert cluster.encoders.owners == ["a", "b"]  # nor do outputs of fronts


async def test_a_priority_beyond_the_callers_is_refused() -> None:
    caller = Caller("a", Quotas(priority=0))
    async with FakeCluster() as cluster:

        async def ask() -> None:
            with pytest.raises(InvalidRequest, match="priority: a may have 0 at most"):
                _ = [delta async for delta in cluster.router.generate(request("r", priority=1))]
            assert [delta async for delta in cluster.router.generate(request("r", priority=-1))]

        await as_caller(caller, ask)
        assert not cluster.router.stats().outstanding
