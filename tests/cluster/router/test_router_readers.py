"""What the router promises its readers: when they get what, what they may hold, who goes first, and how it
ends. On a cluster in one process: see fake_cluster.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest
from fake_cluster import (
    FakeCluster,
    at_router,
    expected,
    request,
    until,
)

from tandem.errors import Overloaded, Unavailable
from tandem.limits import Limits


async def test_cancelling_frees_the_engine() -> None:
    async with FakeCluster(step_s=0.005) as cluster:
        [replica] = cluster.decoders.replicas.values()
        stream = cluster.router.generate(request("closed", tokens=10_000))
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(cluster.collect(request("cancelled", tokens=10_000)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await cluster.settled()
        assert len(replica.engine.cancelled) == 2


async def test_a_cancellation_does_not_overtake_its_request() -> None:
    async with FakeCluster(disaggregated=False) as cluster:
        [replica] = cluster.decoders.replicas.values()
        [link] = cluster.router._engines.links
        routed = at_router(request("r", tokens=100_000))
        replica.delays["exchange"] = [0.1]
        renewing = asyncio.create_task(link._exchange())  # it takes the request along, slowly
        link.submit(routed)
        while link._outbox:
            await asyncio.sleep(0)
        routed.close()
        await renewing
        async with asyncio.timeout(5):
            while not replica.engine.cancelled:
                await asyncio.sleep(0.01)


async def test_cancelling_in_the_encoder_queue_takes_it_out() -> None:
    async with FakeCluster(encoder_batches_in_flight=1) as cluster:
        with cluster.encoders.held():
            first = asyncio.create_task(cluster.collect(request("first")))
            await until(lambda: cluster.encoders.running)
            queued = asyncio.create_task(cluster.collect(request("queued", ids=(5, 5, 1))))
            await until(lambda: cluster.router.stats().queued_encoder_tokens == 3)
            queued.cancel()
            await until(lambda: cluster.router.stats().queued_encoder_tokens == 0)
        await first
        assert len(cluster.encoders.batches) == 1


async def test_the_deadline_keeps_what_there_is() -> None:
    async with FakeCluster(step_s=0.005) as cluster:
        slow = request("slow", tokens=10_000, timeout_s=0.2)
        tokens, end = await cluster.collect(slow)
        assert end == "deadline"
        assert tokens == expected(slow)[: len(tokens)] != []
        await cluster.settled()


async def test_the_deadline_holds_where_the_engine_is_silent() -> None:
    async with FakeCluster() as cluster:
        [replica] = cluster.decoders.replicas.values()
        replica.silent = True
        async with asyncio.timeout(5):
            assert await cluster.collect(request("r", timeout_s=0.1)) == ([], "deadline")


async def test_the_deadline_holds_before_there_is_an_engine() -> None:
    async with FakeCluster(engines=0) as cluster:
        assert await cluster.collect(request("r", timeout_s=0.1)) == ([], "deadline")


async def test_a_reader_that_stops_reading_holds_up_nobody_and_misses_nothing() -> None:
    async with FakeCluster() as cluster:
        slow = request("slow", tokens=200)
        stream = cluster.router.generate(slow)
        tokens = (await anext(stream)).token_ids
        others = [request(f"r{i}", tokens=50, ids=(i, 1)) for i in range(5)]
        assert await asyncio.gather(*map(cluster.collect, others)) == [
            (expected(r), "length") for r in others
        ]
        [replica] = cluster.decoders.replicas.values()
        while replica.engine.has_work:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        rest = [delta async for delta in stream]
        assert len(rest) == 1  # all that had gathered
        assert tokens + rest[0].token_ids == expected(slow)


async def test_tokens_gather_as_long_as_asked_and_the_end_comes_at_once() -> None:
    async with FakeCluster(step_s=0.002) as cluster, asyncio.timeout(5):
        one = request("r", tokens=30)
        with cluster.router.accept([one]) as [routed]:
            first, last = [delta async for delta in cluster.router.deltas(routed, lambda: 3600.0)]
        assert first.token_ids + last.token_ids == expected(one)
        gather_s = iter([0.01] * 2)
        with cluster.router.accept([one]) as [routed]:
            deltas = cluster.router.deltas(routed, lambda: next(gather_s, 3600.0))
            some = [delta async for delta in deltas]
        assert len(some) <= 4
        assert [t for delta in some for t in delta.token_ids] == expected(one)


async def test_gathered_tokens_survive_the_loss_of_an_engine() -> None:
    async with FakeCluster(engines=2, step_s=0.005) as cluster, contextlib.AsyncExitStack() as stack:
        one = request("r", tokens=40)
        [routed] = stack.enter_context(cluster.router.accept([one]))
        stream = cluster.router.deltas(routed, lambda: 3600.0)
        tokens = (await anext(stream)).token_ids
        rest = asyncio.ensure_future(anext(stream))
        [busy] = [a for a in cluster.decoders.replicas.values() if a.engine.submitted]
        while busy.engine.stats().steps < 10:
            await asyncio.sleep(0.002)
        cluster.kill(busy)
        tokens += (await rest).token_ids
        async for delta in stream:
            tokens += delta.token_ids
        assert tokens == expected(one)


@pytest.mark.parametrize("timeout_s", [None, 0.1])
async def test_nor_does_it_hold_anything_but_its_tokens(timeout_s: float | None) -> None:
    async with FakeCluster(limits=Limits(queued_requests=2), encoder_cache_bytes=0) as cluster:
        [replica] = cluster.decoders.replicas.values()
        slow = [
            request(f"r{i}", tokens=40 if timeout_s is None else 10_000, ids=(i, 1), timeout_s=timeout_s)
            for i in range(2)
        ]
        streams = [cluster.router.generate(one) for one in slow]
        firsts = [await anext(stream) for stream in streams]
        await cluster.settled()  # nothing was read meanwhile
        hidden = [weakref.ref(reference) for reference in cluster.encoders.references]
        cluster.encoders.references.clear()
        replica.engine.submitted.clear()
        await asyncio.sleep(0)
        gc.collect()
        assert [reference() for reference in hidden] == [None, None]
        assert await cluster.collect(request("new")) == (expected(request("new")), "length")
        for one, first, stream in zip(slow, firsts, streams, strict=True):
            [rest] = [delta async for delta in stream]
            tokens = first.token_ids + rest.token_ids
            assert tokens == expected(one)[: len(tokens)]
            assert rest.finish_reason == ("length" if timeout_s is None else "deadline")


async def test_more_requests_than_the_limit_are_refused() -> None:
    async with FakeCluster(limits=Limits(queued_requests=2)) as cluster:
        streams = [cluster.router.generate(request(f"r{i}", tokens=10_000)) for i in range(3)]
        await asyncio.gather(*(anext(stream) for stream in streams[:2]))
        with pytest.raises(Overloaded):
            await anext(streams[2])
        await streams[0].aclose()
        await anext(cluster.router.generate(request("now")))
        await streams[1].aclose()


async def test_requests_that_belong_together_are_accepted_together_or_not_at_all() -> None:
    async with FakeCluster(limits=Limits(queued_requests=3)) as cluster:
        samples = [request(f"r#{i}", ids=(5, 1)) for i in range(4)]
        cluster.router.check_room(3)
        with pytest.raises(Overloaded, match="exceed 3"), cluster.router.accept(samples):
            pass
        assert cluster.router.stats().outstanding == 0
        with cluster.router.accept(samples[:3]):
            assert cluster.router.stats().outstanding == 3
            with pytest.raises(Overloaded):
                cluster.router.check_room()
        assert cluster.router.stats().outstanding == 0  # nobody read them
        assert not cluster.encoders.batches


async def test_a_full_engine_gets_no_more_and_priority_decides_who_is_next() -> None:
    async with FakeCluster(slots=2, step_s=0.003) as cluster:
        [replica] = cluster.decoders.replicas.values()
        background = [
            asyncio.create_task(cluster.collect(request(f"r{i}", tokens=20, ids=(i, 1)))) for i in range(12)
        ]
        while cluster.router.stats().waiting < 8:  # two batches' worth are on the engine
            await asyncio.sleep(0.001)
        urgent = asyncio.create_task(cluster.collect(request("urgent", ids=(99, 1), priority=5)))
        await urgent
        order = [r.encoder.token_ids[0] for r in replica.engine.submitted]
        assert order.index(99) < 8
        await asyncio.gather(*background)
        assert cluster.router.stats().waiting == 0


async def test_waiting_requests_go_to_an_engine_that_joins() -> None:
    async with FakeCluster(slots=2, step_s=0.005) as cluster:
        requests = [request(f"r{i}", tokens=150, ids=(i, 1)) for i in range(8)]
        tasks = [asyncio.create_task(cluster.collect(r)) for r in requests]
        while cluster.router.stats().waiting < 4:
            await asyncio.sleep(0.001)
        cluster.router._engines._discovery.look_soon()
        joined = await cluster.add_engine()
        while not joined.engine.submitted:
            await asyncio.sleep(0.005)
        assert await asyncio.gather(*tasks) == [(expected(r), "length") for r in requests]
        assert len(joined.engine.submitted) >= 3  # a busy machine lets the first engine have one more


async def test_draining_ends_all_that_was_accepted_before_the_workers_stop() -> None:
    async with FakeCluster(slots=2, step_s=0.005) as cluster:
        [replica] = cluster.decoders.replicas.values()
        requests = [request(f"r{i}", tokens=20, ids=(i, 1)) for i in range(10)]
        tasks = [asyncio.create_task(cluster.collect(r)) for r in requests]
        while cluster.router.stats().waiting < 6:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(cluster.router.drain())
        await asyncio.sleep(0)
        assert not await cluster.router.ready()
        with pytest.raises(Unavailable, match="shuts down"):
            await cluster.collect(request("late"))
        await draining
        await replica.actor.drain()
        assert await asyncio.gather(*tasks) == [(expected(r), "length") for r in requests]


async def test_closing_ends_every_request() -> None:
    async with FakeCluster(step_s=0.005) as cluster:
        tasks = [asyncio.create_task(cluster.collect(request(f"r{i}", tokens=10_000))) for i in range(4)]
        await asyncio.sleep(0.05)
        await cluster.router.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        with pytest.raises(Unavailable):
            await cluster.collect(request("late"))
        await cluster.settled()
