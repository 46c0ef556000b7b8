from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from fake_cluster import FakeCluster, at_router, request

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.staging import Staging
from tandem.errors import Unavailable


def routed(tokens: int, priority: int = 0) -> RoutedRequest:
    one = at_router(request("r", ids=tuple(range(tokens)), priority=priority))
    one.close()  # its timer
    return one


def staging(tokens: int, possible: bool = True) -> Staging:
    return Staging(tokens, patience_s=0.05, possible=lambda: possible)


async def enter(room: Staging, one: RoutedRequest, inside: list[RoutedRequest], leave: asyncio.Event) -> None:
    async with room.room(one):
        inside.append(one)
        await leave.wait()


async def test_what_fits_goes_in_by_priority_and_arrival() -> None:
    room, leave = staging(10), asyncio.Event()
    inside: list[RoutedRequest] = []
    first, second, third = routed(6), routed(6), routed(3)
    urgent = routed(4, priority=5)
    tasks = []
    for one in (first, second, third):
        tasks.append(asyncio.create_task(enter(room, one, inside, leave)))
        await asyncio.sleep(0.005)
    assert inside == [first]  # the third would fit, but not before the second
    tasks.append(asyncio.create_task(enter(room, urgent, inside, leave)))
    await asyncio.sleep(0.005)
    assert inside == [first, urgent]
    assert room.waiting == 2
    leave.set()
    await asyncio.gather(*tasks)
    assert inside == [first, urgent, second, third]
    assert room.waiting == 0


async def test_an_input_larger_than_all_the_room_goes_alone() -> None:
    room, leave = staging(10), asyncio.Event()
    inside: list[RoutedRequest] = []
    tasks = [asyncio.create_task(enter(room, routed(n), inside, leave)) for n in (30, 1)]
    await asyncio.sleep(0.01)
    assert len(inside) == 1
    leave.set()
    await asyncio.gather(*tasks)
    assert len(inside) == 2


async def test_who_gives_up_leaves_no_trace() -> None:
    room, leave = staging(10), asyncio.Event()
    inside: list[RoutedRequest] = []
    tasks = [asyncio.create_task(enter(room, routed(8), inside, leave)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for number in (1, 0):  # one that waits, then the one inside
        tasks[number].cancel()
        with suppress(asyncio.CancelledError):
            await tasks[number]
    await asyncio.sleep(0.01)
    assert len(inside) == 2
    leave.set()
    await tasks[2]
    async with room.room(routed(10)):
        pass


async def test_without_an_engine_waiting_ends() -> None:
    room = staging(10, possible=False)
    async with room.room(routed(8)):
        with pytest.raises(Unavailable, match="no decoder"):
            async with room.room(routed(8)):
                pass


async def test_a_burst_is_not_encoded_far_ahead_of_full_engines() -> None:
    """Each input has 4 tokens; an engine takes 2 batches of 2."""
    async with FakeCluster(slots=2, step_s=0.005, staged_encoder_tokens=12) as cluster:
        tasks = [
            asyncio.create_task(cluster.collect(request(f"r{i}", tokens=20, ids=(i, 2, 3, 1))))
            for i in range(30)
        ]
        for _ in range(40):
            await asyncio.sleep(0.005)
            encoded = sum(len(batch) for batch in cluster.encoders.batches)
            ended = sum(task.done() for task in tasks)
            # 2 may have ended without their tasks' knowing.
            assert encoded <= ended + 2 * 2 + 12 // 4 + 2
        assert cluster.router.stats().waiting > 0
        await asyncio.gather(*tasks)
        await cluster.settled()
