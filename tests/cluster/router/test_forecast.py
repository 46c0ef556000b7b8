"""What a router foresees, against a cluster of slots and queues in simulated time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tandem.cluster.callers import Caller, Quotas
from tandem.cluster.router.forecast import WAIT_MARGIN, Forecast, Tracked
from tandem.workers.request import Decoding, Delta, EncoderInput, EngineRequest

EOS = 1


def request(tokens: int, *, known: bool = True, inputs: int = 20, priority: int = 0) -> EngineRequest:
    """Its answer has so many tokens, which is `known` beforehand or not."""
    stops = frozenset[int]() if known else frozenset({EOS})
    limit = tokens if known else 512
    decoding = Decoding(limit, 0, 0.0, 0, 1.0, 0.0, 1.0, 0, stops, stops, None)
    return EngineRequest("r", EncoderInput("key", (2,) * inputs), (0,), decoding, priority=priority)


@dataclass(eq=False)
class Asked:
    tracked: Tracked
    tokens: int  # of its whole answer
    deadline: float
    queued_s: float = 0.0
    given: int = 0


@dataclass(eq=False)
class Engine:
    running: list[Asked] = field(default_factory=list)
    queue: list[Asked] = field(default_factory=list)


class Cluster:
    """Routers before engines, whose steps take `step_s(rows)`; requests arrive at random for `seconds`."""

    def __init__(
        self, slots: int, step_s: Callable[[int], float], engines: int = 1, routers: int = 1
    ) -> None:
        self.now, self.slots, self.step_s = 0.0, slots, step_s
        self.engines = [Engine() for _ in range(engines)]
        self.forecasts = [Forecast(self._free, lambda: self.now) for _ in range(routers)]
        self.queues: list[list[Asked]] = [[] for _ in range(routers)]
        self.owner: dict[Asked, int] = {}
        self.ends: Counter[str] = Counter()
        self.waits: list[tuple[float, float]] = []  # when each began, and how long it had waited
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def _free(self) -> int:
        return sum(self.slots - len(e.running) - len(e.queue) for e in self.engines)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, args))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what, args = heapq.heappop(self._events)
            what(*args)
        self.now = until

    def offer(
        self,
        rate: float,
        tokens: Callable[[], int],
        chance: random.Random,
        *,
        known: bool = True,
        timeout_s: float | None = None,
        longest_wait_s: float | None = None,
    ) -> None:
        """Has a request come now, and others after it."""
        self.at(
            self.now + chance.expovariate(rate),
            lambda: self.offer(
                rate, tokens, chance, known=known, timeout_s=timeout_s, longest_wait_s=longest_wait_s
            ),
        )
        router, length = chance.randrange(len(self.forecasts)), tokens()
        forecast, one = self.forecasts[router], request(length, known=known)
        wait_s, whole_s = forecast.wait_s(), forecast.whole_s([one])
        waits = longest_wait_s is not None and wait_s is not None and WAIT_MARGIN * wait_s > longest_wait_s
        late = timeout_s is not None and whole_s is not None and whole_s > timeout_s
        if waits or late:
            self.ends["refused"] += 1
        else:
            asked = Asked(forecast.accepted(one, self.now), length, self.now + (timeout_s or 1e9))
            self.owner[asked] = router
            self.queues[router].append(asked)
            self._send()

    def _send(self) -> None:
        for forecast, queue in zip(self.forecasts, self.queues, strict=True):
            while queue:
                engine = min(self.engines, key=lambda e: len(e.running) + len(e.queue))
                left_s = queue[0].deadline - self.now
                if left_s <= 0 or not (len(queue) == 1 or forecast.in_time(queue[0].tracked, left_s)):
                    self._end(queue.pop(0), "dropped")
                elif len(engine.running) + len(engine.queue) < 2 * self.slots:
                    engine.queue.append(queue.pop(0))
                    if not engine.running:
                        self._begin(engine)
                else:
                    break

    def _begin(self, engine: Engine) -> None:
        for late in [one for one in engine.queue if one.deadline <= self.now]:
            engine.queue.remove(late)
            self._end(late, "dropped")
        while engine.queue and len(engine.running) < self.slots:
            asked = engine.queue.pop(0)
            asked.queued_s = self.now - asked.tracked.arrived_at
            self.waits.append((self.now, asked.queued_s))
            engine.running.append(asked)
        if engine.running:
            self.at(self.now + self.step_s(len(engine.running)), self._stepped, engine)

    def _stepped(self, engine: Engine) -> None:
        for asked in list(engine.running):
            asked.given += 1
            whole = asked.given == asked.tokens
            reason: Any = "stop" if whole else "deadline" if asked.deadline <= self.now else None
            queued_s = asked.queued_s if asked.given == 1 else None
            forecast = self.forecasts[self.owner[asked]]
            forecast.received(asked.tracked, Delta("r", [7], finish_reason=reason, queued_s=queued_s))
            if reason is not None:
                engine.running.remove(asked)
                self._end(asked, "whole" if whole else "cut")
        for forecast, queue in zip(self.forecasts, self.queues, strict=True):
            forecast.heard(bool(queue or engine.queue))
        self._send()
        self._begin(engine)

    def _end(self, asked: Asked, how: str) -> None:
        self.ends[how] += 1
        self.forecasts[self.owner.pop(asked)].ended(asked.tracked)


Lengths = Callable[[random.Random], Callable[[], int]]


def uniform(chance: random.Random) -> Callable[[], int]:
    return lambda: chance.randrange(20, 181)


def skewed(chance: random.Random) -> Callable[[], int]:
    return lambda: 1 + min(511, int(chance.expovariate(1 / 99)))


CASES = {
    # lengths, known, engines, routers, timeout_s; a full batch's answer of 100 tokens takes 0.8 s
    "one length": (lambda _: lambda: 100, True, 1, 1, 3.0),
    "little more time than an answer takes": (lambda _: lambda: 100, True, 1, 1, 1.0),
    "lengths that are known": (uniform, True, 1, 1, 3.0),
    "lengths that are learnt": (uniform, False, 1, 1, 3.0),
    "lengths of all kinds": (skewed, False, 1, 1, 5.0),
    "several engines and routers": (uniform, False, 3, 2, 3.0),
}


@pytest.mark.parametrize(("case", "load"), [*((case, 4) for case in CASES), ("lengths of all kinds", 2)])
def test_whole_answers_under_overload_are_nearly_as_many_as_engines_can_give(case: str, load: int) -> None:
    lengths, known, engines, routers, timeout_s = CASES[case]
    chance = random.Random(0)
    cluster = Cluster(16, lambda rows: 0.002 + 0.006 * rows / 16, engines, routers)
    capacity = engines * 16 / 0.8
    cluster.offer(load * capacity, lengths(chance), chance, known=known, timeout_s=timeout_s)
    cluster.run(20.0)
    ends = cluster.ends
    assert ends["whole"] >= 0.85 * 20 * capacity, ends
    assert ends["cut"] <= 0.2 * ends["whole"], ends  # before anything is known
    assert ends["refused"], ends


def test_without_overload_nobody_is_refused() -> None:
    for known in (True, False):
        chance = random.Random(1)
        cluster = Cluster(16, lambda rows: 0.002 + 0.006 * rows / 16)
        cluster.offer(0.8 * 20, uniform(chance), chance, known=known, timeout_s=5.0, longest_wait_s=5.0)
        cluster.run(40.0)
        assert set(cluster.ends) == {"whole"}


@pytest.mark.parametrize("routers", [1, 3])
@pytest.mark.parametrize("lengths", [uniform, skewed])
def test_the_longest_wait_is_kept(
    lengths: Callable[[random.Random], Callable[[], int]], routers: int
) -> None:
    chance = random.Random(2)
    cluster = Cluster(16, lambda rows: 0.002 + 0.006 * rows / 16, routers=routers)
    cluster.offer(4 * 20, lengths(chance), chance, known=False, longest_wait_s=5.0)
    cluster.run(40.0)
    waits = sorted(wait for at, wait in cluster.waits if at > 10)  # it has to learn what answers are like
    assert waits[int(0.99 * len(waits))] <= 5.0 * 1.05
    assert waits[len(waits) // 2] > 2.0  # and refuses no more than it has to
    assert cluster.ends["whole"] >= 0.9 * 40 * 20


def test_nothing_is_foreseen_before_it_is_measured_nor_long_after() -> None:
    cluster = Cluster(4, lambda _: 0.01)
    [forecast] = cluster.forecasts
    one = request(100)
    for _ in range(100):
        forecast.accepted(one, 0.0)
    assert forecast.wait_s() is None
    assert forecast.whole_s([one]) is None
    tracked = forecast.accepted(one, 0.0)
    forecast.heard(True)
    for _ in range(100):
        cluster.now += 0.02
        forecast.received(tracked, Delta("r", [7]))
        forecast.heard(True)
    # 100 requests wait for 10,000 tokens, at 50 a second; 98 of them, where two slots are free.
    assert forecast.wait_s() == pytest.approx(200 * 0.96)
    assert forecast.wait_s(priority=10) == pytest.approx(200 * 0.96 - 100)
    forecast.received(tracked, Delta("r", [], finish_reason="stop"))
    forecast.ended(tracked)
    assert forecast.whole_s([one]) == pytest.approx(WAIT_MARGIN * 200 * 0.96 + 1.98)
    cluster.now += 31
    assert forecast.whole_s([one]) is None
    assert forecast.in_time(forecast.accepted(one, 0.0), 0.1)
    assert not forecast.in_time(forecast.accepted(one, 0.0), 0.0)


def test_a_caller_waits_for_as_much_of_others_as_its_turns_let_before_it() -> None:
    cluster = Cluster(4, lambda _: 0.01)
    [forecast] = cluster.forecasts
    flood, light = Caller("flood"), Caller("light")
    one = request(100)
    began = forecast.accepted(one, 0.0, flood)
    for _ in range(100):
        forecast.accepted(one, 0.0, flood)
    forecast.heard(True)
    for _ in range(100):
        cluster.now += 0.02
        forecast.received(began, Delta("r", [7]))
        forecast.heard(True)

    def tokens(caller: Caller) -> float | None:
        """Ahead of the caller's next request: 50 are given each second."""
        cluster.engines[0].running = [Asked(began, 100, 1e9)] * 4  # no slot is free
        wait_s = forecast.wait_s(0, caller)
        return None if wait_s is None else wait_s * 50

    assert tokens(flood) == pytest.approx(10_000)
    assert tokens(light) == 0
    waiting = [forecast.accepted(one, 0.0, light) for _ in range(10)]
    assert tokens(light) == pytest.approx(2_000)
    assert tokens(flood) == pytest.approx(11_000)
    light.quotas = Quotas(weight=4)
    assert tokens(light) == pytest.approx(1_250)
    light.quotas = Quotas(weight=0.01)
    assert tokens(light) == pytest.approx(11_000)
    light.quotas = Quotas()
    for tracked in waiting:
        forecast.ended(tracked)
    assert tokens(light) == 0
    assert tokens(flood) == pytest.approx(10_000)
    assert forecast.whole_s([one] * 3, light) is None  # nothing is known of the pace
    forecast.received(began, Delta("r", [], finish_reason="stop"))
    forecast.ended(began)
    # Two of its own before the last, and two of the other's, 100 tokens each.
    assert forecast.whole_s([one] * 3, light) == pytest.approx(WAIT_MARGIN * 8 + 1.98, abs=0.1)
