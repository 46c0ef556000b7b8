"""How long a new request would wait, and its answer would then take, from what engines did lately."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from tandem.cluster.callers import ANYBODY, Caller
from tandem.cluster.messages import HEARTBEAT_S
from tandem.limits import PRIORITY_S
from tandem.outputs import FinishReason
from tandem.workers.request import Delta, EngineRequest

T = TypeVar("T")
_Kind = tuple[int, int, int]

_HORIZON_S: Final = 10.0  # of time in which requests waited: the rate is a mean over about so long
_MEASURED_S: Final = 1.0  # of it, before the rate says anything
_SILENCE_S: Final = 2 * HEARTBEAT_S  # longer than any pause while there is an engine: nobody's rate
_LONGEST_S: Final = 3600.0  # that is foreseen
_FRESH_S: Final = 30.0  # what is learnt of answers is forgotten this long after the latest one
# The weight of a new sample in a smoothed mean, and in its deviation: RFC 6298's; more after a while without.
_GAIN: Final = 1 / 8
_DEVIATION_GAIN: Final = 1 / 4
_RECENT_S: Final = 2.0
# A request that has to wait is let in where it ends in time even if it waits so many times what is foreseen,
# and its answer is so many mean deviations longer than the mean: it would take its slot from others.
WAIT_MARGIN: Final = 1.25
_DEVIATIONS: Final = 2.0


@dataclass(slots=True, eq=False)
class Tracked:
    """What a forecast keeps of one request."""

    request: EngineRequest
    caller: Caller
    arrived_at: float
    rows: int  # slots that it takes: every beam of a search has its own
    work: float | None  # expected, in tokens of all its rows; None: it was not known when it came
    begun_at: float | None = None  # when it joined the batch of the engine that has it
    tokens: int = 0  # received
    moved: bool = False  # it was begun by another engine, which was lost


@dataclass(slots=True)
class _Waiting:
    """Requests of one caller that no engine is known to have begun."""

    work: float = 0.0  # expected, in tokens, of the rows of which it is known
    rows: int = 0
    unknown_rows: int = 0  # those of which it is not


@dataclass(slots=True)
class _Smoothed:
    """A mean of samples and their mean deviation from it; the latest samples count most."""

    mean: float
    deviation: float
    at: float  # of the latest sample

    def add(self, sample: float, now: float) -> None:
        aged = 1 - math.exp((self.at - now) / _RECENT_S)
        self.deviation += max(_DEVIATION_GAIN, aged) * (abs(sample - self.mean) - self.deviation)
        self.mean += max(_GAIN, aged) * (sample - self.mean)
        self.at = now


class Forecast:
    """Foresees the waits and answers of one router's requests.

    What waits is counted in the tokens that are expected of it. It is served at the rate at which engines
    deliver tokens to this router while requests wait: the router's share of them, whatever other routers take
    and whatever is short, slots or encoders. Nothing is foreseen before that has been measured.
    """

    def __init__(self, free_slots: Callable[[], int], clock: Callable[[], float]) -> None:
        """`free_slots` counts those of all engines; `clock` is the event loop's, in seconds."""
        self._free_slots, self._clock = free_slots, clock
        self._waiting: dict[Caller, _Waiting] = {}  # of callers that have requests that wait
        self._live = 0  # requests that have not ended
        self._new_work = 0.0  # delivered since the last message
        self._work = self._seconds = 0.0  # delivered while requests waited, and for how long they did
        self._heard_at, self._saturated = 0.0, False
        self._answers: dict[_Kind | None, _Smoothed] = {}  # steps of an answer, by kind of request; None: any
        self._pace: dict[int, _Smoothed] = {}  # seconds of a step, by rows of a request

    # --- What happens

    def accepted(self, request: EngineRequest, arrived_at: float, caller: Caller = ANYBODY) -> Tracked:
        rows, steps = _rows(request), self._steps(request)
        tracked = Tracked(request, caller, arrived_at, rows, rows * steps.mean if steps else None)
        self._live += 1
        self._wait(tracked)
        return tracked

    def received(self, tracked: Tracked, delta: Delta) -> None:
        """A delta of a request has come from an engine."""
        steps = len(delta.token_ids)
        if tracked.begun_at is None and delta.error is None:
            now = self._clock()
            joined = now if delta.queued_s is None else tracked.arrived_at + delta.queued_s
            self._leave(tracked, min(joined, now))
        if delta.last:
            if delta.hypotheses:
                steps = max(len(one.token_ids) for one in delta.hypotheses)
            elif tracked.request.target_ids:
                steps = 1
            if (whole := tracked.tokens + steps) and delta.error is None:
                self._learn(tracked, whole, delta.finish_reason)
        tracked.tokens += steps
        self._new_work += tracked.rows * steps

    def displaced(self, tracked: Tracked) -> None:
        """A request has lost its engine, and waits for another."""
        if tracked.begun_at is not None:
            tracked.begun_at, tracked.moved = None, True
            self._wait(tracked)

    def ended(self, tracked: Tracked) -> None:
        """A request has ended, however it did."""
        self._live -= 1
        if tracked.begun_at is None:
            self._leave(tracked, self._clock())

    def heard(self, saturated: bool) -> None:
        """An engine's message is read. `saturated`: sequences wait, here, for encoders or at the engine."""
        now = self._clock()
        passed = now - self._heard_at
        if saturated and self._saturated and passed < _SILENCE_S and (self._new_work or self._work):
            forget = math.exp(-passed / _HORIZON_S)
            self._work = self._work * forget + self._new_work
            self._seconds = self._seconds * forget + passed
        self._heard_at, self._saturated, self._new_work = now, saturated, 0.0

    # --- What is to be expected

    def wait_s(
        self, priority: int = 0, caller: Caller = ANYBODY, *, work: float = 0.0, rows: int = 0
    ) -> float | None:
        """How long a request that came now would wait for a slot, `work` and `rows` more of its caller ahead
        of it; None where too little has been measured. Callers take turns, so that of another's rows as many
        go before it as its own caller has, by their weights. Requests of a higher priority and callers that
        come later are not foreseen."""
        if self._seconds < _MEASURED_S:
            return None
        steps = _fresh(self._answers.get(None), self._clock())
        ahead, waiting = work, rows
        own = rows + (self._waiting[caller].rows if caller in self._waiting else 0)
        for other, has in self._waiting.items():
            if has.unknown_rows and steps is None:
                return None
            its_work = has.work + (has.unknown_rows * steps.mean if steps else 0.0)
            before = own * other.quotas.weight / caller.quotas.weight
            ahead += its_work if other is caller else its_work * min(1.0, before / has.rows)
            waiting += has.rows
        if not ahead or (free := self._free_slots()) >= waiting:
            return 0.0
        wait_s = ahead * (1 - free / waiting) * self._seconds / max(self._work, 1e-9)
        return min(_LONGEST_S, max(0.0, wait_s - max(0, priority) * PRIORITY_S))

    def whole_s(self, requests: Sequence[EngineRequest], caller: Caller = ANYBODY) -> float | None:
        """How long it would take until the answers to a caller's requests that came now were whole; None
        where nothing is known of such answers. Alone they may be faster than any before them."""
        if not self._live:
            return None
        services = [self._service_s(one) for one in requests]
        known = [one for one in services if one is not None]
        if len(known) < len(services):
            return None
        ahead = requests[:-1]
        wait_s = self.wait_s(
            requests[0].priority,
            caller,
            work=sum(_rows(one) * steps.mean for one in ahead if (steps := self._steps(one))),
            rows=sum(map(_rows, ahead)),
        )
        if not wait_s:
            return max(mean for mean, _ in known)
        return WAIT_MARGIN * wait_s + max(mean + _DEVIATIONS * deviation for mean, deviation in known)

    def in_time(self, tracked: Tracked, left_s: float) -> bool:
        """Whether a request, if an engine began with it now, would probably be answered within `left_s`. One
        that has begun to be answered goes on as long as there is time."""
        service = None if tracked.tokens else self._service_s(tracked.request)
        return left_s > 0 and (service is None or service[0] <= left_s)

    # --- Within

    def _wait(self, tracked: Tracked) -> None:
        has = self._waiting.setdefault(tracked.caller, _Waiting())
        has.work += tracked.work or 0.0
        has.rows += tracked.rows
        has.unknown_rows += tracked.rows if tracked.work is None else 0

    def _leave(self, tracked: Tracked, at: float) -> None:
        """It waits no more."""
        tracked.begun_at = at
        has = self._waiting[tracked.caller]
        has.work -= tracked.work or 0.0
        has.rows -= tracked.rows
        has.unknown_rows -= tracked.rows if tracked.work is None else 0
        if not has.rows:
            del self._waiting[tracked.caller]

    def _learn(self, tracked: Tracked, steps: int, reason: FinishReason | None) -> None:
        request, now = tracked.request, self._clock()
        if not (request.target_ids or tracked.moved or tracked.begun_at is None):
            _add(self._pace, tracked.rows, (now - tracked.begun_at) / steps, now)
        for kind in (_kind(request), None):
            known = _fresh(self._answers.get(kind), now)
            if reason in ("stop", "length"):
                _add(self._answers, kind, steps, now)
            elif reason == "deadline" and known is not None:
                # It would have been longer: without it, only short answers would be learnt from.
                known.add(max(steps, known.mean) + known.deviation, now)

    def _steps(self, request: EngineRequest) -> _Smoothed | None:
        """The steps that an answer is expected to take; None where there was none of its kind lately."""
        decoding, now = request.decoding, self._clock()
        if request.target_ids:
            return _Smoothed(1.0, 0.0, now)
        if decoding.min_tokens >= decoding.max_tokens or not decoding.stop_ids:
            return _Smoothed(decoding.max_tokens, 0.0, now)
        known = _fresh(self._answers.get(_kind(request)), now)
        if known is None:
            return None
        mean = min(known.mean, decoding.max_tokens)
        return _Smoothed(mean, min(known.deviation, (decoding.max_tokens - mean) / _DEVIATIONS), now)

    def _service_s(self, request: EngineRequest) -> tuple[float, float] | None:
        """Seconds from joining a batch to the end of the answer, and their mean deviation."""
        steps, pace = self._steps(request), _fresh(self._pace.get(_rows(request)), self._clock())
        if steps is None or pace is None:
            return None
        return steps.mean * pace.mean, steps.deviation * pace.mean


def _rows(request: EngineRequest) -> int:
    """The slots that a request takes."""
    return request.decoding.beams.num_beams if request.decoding.beams else 1


def _kind(request: EngineRequest) -> _Kind:
    """Answers to inputs of much the same length are of much the same length, under much the same limit."""
    decoding = request.decoding
    return len(request.encoder.token_ids).bit_length(), decoding.max_tokens.bit_length(), _rows(request)


def _add(to: dict[T, _Smoothed], key: T, sample: float, now: float) -> None:
    known = _fresh(to.get(key), now)
    if known is None:
        to[key] = _Smoothed(sample, sample / 2, now)  # RFC 6298's first deviation
    else:
        known.add(sample, now)


def _fresh(known: _Smoothed | None, now: float) -> _Smoothed | None:
    return known if known is not None and now - known.at < _FRESH_S else None
