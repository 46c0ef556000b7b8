"""More requests than the engines can serve: who is refused at once, who is dropped, and what is said then. On
a cluster in one process: see fake_cluster.py; how well waits are foreseen is in test_forecast.py."""

from __future__ import annotations

import asyncio
import time

import pytest
from fake_cluster import FakeCluster, expected, request, until

from tandem.cluster.callers import CALLER, Caller
from tandem.cluster.router.routed_request import Arrival
from tandem.errors import DeadlineExceeded, Overloaded, Unavailable
from tandem.limits import Limits
from tandem.workers.request import EncodeRequest, EncoderInput, EngineRequest


def busy(count: int, tokens: int = 100) -> list[EngineRequest]:
    return [request(f"busy{i}", tokens=tokens, ids=(i, 1)) for i in range(count)]


async def measured(cluster: FakeCluster) -> None:
    """Returns when the router foresees how long a request would wait."""
    await until(lambda: cluster.router._forecast.wait_s() is not None)


async def test_a_request_that_would_wait_too_long_is_refused_at_once() -> None:
    async with FakeCluster(slots=2, step_s=0.01, max_queue_wait_s=2.0) as cluster:
        # Eight answers of a second each, two at a time.
        tasks = [asyncio.create_task(cluster.collect(one)) for one in busy(8)]
        await measured(cluster)
        began = time.monotonic()
        with pytest.raises(
            Overloaded, match=r"would wait \d.* s, max_queue_wait_s is 2; try again"
        ) as caught:
            await cluster.collect(request("more"))
        assert time.monotonic() - began < 1
        assert caught.value.refused == "wait"
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 1.6
        # Hidden states need no slot.
        await cluster.router.hidden_states([EncodeRequest(EncoderInput("states", (3, 1)))])
        # One level of priority counts as ten seconds of waiting.
        urgent = request("urgent", tokens=3, priority=1)
        assert await cluster.collect(urgent) == (expected(urgent), "length")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        later = request("later", tokens=3)
        assert await cluster.collect(later) == (expected(later), "length")


async def test_a_caller_is_not_refused_for_the_backlog_of_another() -> None:
    flood, light = Caller("flood"), Caller("light")
    async with FakeCluster(slots=2, step_s=0.01, max_queue_wait_s=2.0) as cluster:
        CALLER.set(flood)
        tasks = [asyncio.create_task(cluster.collect(one)) for one in busy(12)]
        await measured(cluster)
        with pytest.raises(Overloaded, match="would wait") as caught:
            await cluster.collect(request("more"))
        assert caught.value.refused == "wait"
        CALLER.set(light)
        one = request("one", tokens=3)
        assert await cluster.collect(one) == (expected(one), "length")
        assert sum(task.done() for task in tasks) < 8
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_what_would_not_be_whole_in_time_is_refused_at_once() -> None:
    async with FakeCluster(slots=2, step_s=0.01) as cluster:
        for one in busy(2, tokens=50):
            await cluster.collect(one)
        running = asyncio.create_task(cluster.collect(busy(1, tokens=1000)[0]))
        await asyncio.sleep(0.05)
        with pytest.raises(
            DeadlineExceeded, match=r"whole answer would take \d.* s, the request has 1\.[45]"
        ) as caught:
            await cluster.collect(request("long", tokens=1000, timeout_s=1.5))
        assert caught.value.refused == "deadline"
        short = request("short", tokens=5, timeout_s=1.5)
        assert await cluster.collect(short) == (expected(short), "length")
        running.cancel()
        await asyncio.wait([running])
        # An engine that is idle again may be faster than it was: nobody is kept out by old measurements.
        tokens, end = await cluster.collect(request("alone", tokens=1000, timeout_s=1.5))
        assert end == "deadline"
        assert tokens


async def test_time_counts_from_the_arrival_of_the_call() -> None:
    async with FakeCluster(step_s=0.01) as cluster:
        now = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded) as caught:
            with cluster.router.accept([request("late", timeout_s=1.0)], arrival=Arrival(now - 1.5)):
                pass
        assert caught.value.refused == "deadline"
        for arrival in (Arrival(now - 9), Arrival(now, deadline=now + 2)):
            with cluster.router.accept([request("r", tokens=5000, timeout_s=10)], arrival=arrival) as [one]:
                *_, last = [delta async for delta in cluster.router.deltas(one, lambda: 60.0)]
            assert last.finish_reason == "deadline"
        assert 2 <= asyncio.get_running_loop().time() - now < 8


async def test_what_is_late_takes_no_encoder_and_no_slot() -> None:
    """However late the event loop is itself: nobody's timer has run when the room is given away."""
    async with FakeCluster(slots=1, encoder_batches_in_flight=1) as cluster:
        [replica] = cluster.decoders.replicas.values()
        with cluster.encoders.held():
            first = asyncio.create_task(cluster.collect(request("first", ids=(5, 1))))
            await until(lambda: cluster.encoders.running)
            late = asyncio.create_task(cluster.collect(request("late", ids=(6, 1), timeout_s=0.1)))
            await asyncio.sleep(0.01)
            time.sleep(0.3)
        assert await first == (expected(request("first", ids=(5, 1))), "length")
        assert await late == ([], "deadline")
        assert cluster.encoders.batches == [[[5, 1]]]
        assert len(replica.engine.submitted) == 1
        await cluster.settled()


async def test_refusals_say_why_and_when_to_try_again() -> None:
    async with FakeCluster(slots=2, step_s=0.01, limits=Limits(queued_requests=4)) as cluster:
        tasks = [asyncio.create_task(cluster.collect(one)) for one in busy(4, tokens=1000)]
        await until(lambda: cluster.router.stats().outstanding == 4)
        with pytest.raises(Overloaded) as caught:
            cluster.router.check_room()
        assert (caught.value.refused, caught.value.retry_after_s) == ("queue", None)  # not measured yet
        await measured(cluster)
        with pytest.raises(Overloaded) as caught:
            cluster.router.check_room()
        wait_s = cluster.router._forecast.wait_s()
        assert caught.value.refused == "queue"
        assert caught.value.retry_after_s == pytest.approx(wait_s, rel=0.2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await cluster.router.drain()
        with pytest.raises(Unavailable) as gone:
            cluster.router.check_room()
        assert (gone.value.refused, gone.value.retry_after_s) == ("shutdown", None)


async def test_a_call_of_many_prompts_is_not_refused_for_the_wait_of_its_own() -> None:
    async with FakeCluster(slots=2, step_s=0.002, max_queue_wait_s=0.1) as cluster:
        requests = [request(f"r{i}", tokens=20, ids=(i, 1)) for i in range(30)]
        with cluster.router.accept(requests) as accepted:
            assert len(accepted) == 30


async def test_the_requests_of_a_silent_engine_go_elsewhere() -> None:
    async with FakeCluster(engines=2, step_s=0.01, engine_silence_s=2.0) as cluster:
        requests = [request(f"r{i}", tokens=100, ids=(i, 1)) for i in range(8)]
        tasks = [asyncio.create_task(cluster.collect(one)) for one in requests]
        await until(lambda: cluster.router.stats().generated_tokens >= 50)
        silent, other = cluster.decoders.replicas.values()
        silent.silent, began = True, time.monotonic()
        assert await asyncio.gather(*tasks) == [(expected(one), "length") for one in requests]
        assert 1.5 < time.monotonic() - began < 15
        assert any(one.generated_ids for one in other.engine.submitted)


async def test_a_router_that_was_held_up_itself_blames_no_engine() -> None:
    async with FakeCluster(engine_silence_s=2.0) as cluster:
        [link] = cluster.router._engines.links
        time.sleep(2.5)
        await asyncio.sleep(0.5)
        assert cluster.router._engines.links == [link]
        assert link.accepting
