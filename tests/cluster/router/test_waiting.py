"""Who waits for room, and who is let in."""

from __future__ import annotations

import asyncio

import pytest
from fake_cluster import at_router, request

from tandem.cluster.router.routed_request import RoutedRequest
from tandem.cluster.router.waiting import Gate
from tandem.errors import Unavailable


class Room:
    """Room for so many requests."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.admitted: list[RoutedRequest] = []

    def admit(self, routed: RoutedRequest) -> bool:
        if not self.places:
            return False
        self.places -= 1
        self.admitted.append(routed)
        return True


def routed(priority: int = 0) -> RoutedRequest:
    one = at_router(request("r", priority=priority))
    one.close()  # its timer
    return one


async def test_where_there_is_room_nobody_waits() -> None:
    room = Room(1)
    gate = Gate(room.admit, 0.05, lambda: False)
    one = routed()
    await gate.enter(one)
    assert room.admitted == [one]
    assert gate.waiting == 0


async def test_room_goes_to_the_first_in_order() -> None:
    room = Room(0)
    gate = Gate(room.admit, 60.0, lambda: True)
    first, second, urgent = routed(), routed(), routed(priority=5)
    tasks = [asyncio.create_task(gate.enter(one)) for one in (second, first, urgent)]
    await asyncio.sleep(0)
    assert gate.waiting == 3
    room.places = 2
    gate.admit_waiting()
    assert room.admitted == [urgent, first]
    room.places = 1
    gate.admit_waiting()
    await asyncio.gather(*tasks)
    assert room.admitted == [urgent, first, second]


async def test_a_newcomer_that_is_first_in_order_need_not_wait_for_the_others() -> None:
    room = Room(0)
    gate = Gate(room.admit, 60.0, lambda: True)
    waits = asyncio.create_task(gate.enter(routed()))
    await asyncio.sleep(0)
    room.places = 1  # which nobody has told the gate
    urgent = routed(priority=5)
    await gate.enter(urgent)
    assert room.admitted == [urgent]
    waits.cancel()


async def test_who_gives_up_is_forgotten() -> None:
    room = Room(0)
    gate = Gate(room.admit, 60.0, lambda: True)
    gone, stays = routed(), routed()
    leaving, staying = (asyncio.create_task(gate.enter(one)) for one in (gone, stays))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert gate.waiting == 1
    room.places = 2
    gate.admit_waiting()
    await staying
    assert room.admitted == [stays]


async def test_without_any_engine_patience_ends() -> None:
    gate = Gate(Room(0).admit, 0.01, lambda: False)
    with pytest.raises(Unavailable, match="no decoder"):
        await gate.enter(routed())
    assert gate.waiting == 0
