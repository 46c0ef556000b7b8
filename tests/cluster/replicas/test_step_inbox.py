"""Steps cross from one thread to the other: all of them, in order, soon."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tandem.cluster.replicas import step_inbox
from tandem.cluster.replicas.step_inbox import StepInbox
from tandem.workers.request import Delta, EngineStats

STATS = EngineStats(0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, {})


def step(number: int) -> list[Delta]:
    return [Delta("r", [number])]


class Received:
    def __init__(self, live: int) -> None:
        self.numbers: list[int] = []
        self.batches = 0
        self.inbox = StepInbox(asyncio.get_running_loop(), self._take, lambda: live)
        self._at = 0.0

    def _take(self, deltas: list[Delta], stats: EngineStats) -> None:
        assert stats is STATS
        now = asyncio.get_running_loop().time()
        self.batches += now - self._at > 1e-4
        self._at = now
        self.numbers += deltas[0].token_ids

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.numbers) < count:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("pause_s", [0.0, 0.0002, 0.002])
async def test_every_step_arrives_once_and_in_order(pause_s: float) -> None:
    received = Received(live=3)
    count = 2000 if pause_s < 0.001 else 200

    def run() -> None:
        for number in range(count):
            received.inbox.put(step(number), STATS)
            if pause_s:
                time.sleep(pause_s)

    thread = threading.Thread(target=run)
    thread.start()
    await received.until(count)
    thread.join()
    assert received.numbers == list(range(count))


async def test_a_step_after_a_rest_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_inbox, "LONGEST_GATHER_S", 0.01)
    received = Received(live=1000)
    for number in range(3):
        await asyncio.sleep(0.05)
        received.inbox.put(step(number), STATS)
        await asyncio.sleep(0.001)
        assert len(received.numbers) == number + 1


async def test_under_load_steps_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_inbox, "LONGEST_GATHER_S", 0.2)
    received = Received(live=100_000)
    for number in range(20):
        received.inbox.put(step(number), STATS)
        await asyncio.sleep(0.001)
    await received.until(20)
    assert received.batches == 2  # the first at once, the others together
