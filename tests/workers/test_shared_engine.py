"""Many threads, one engine: everybody gets what is theirs, and nobody waits for one who is busy or gone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from models import decoding

from tandem.errors import InternalError, InvalidRequest
from tandem.inputs import Media
from tandem.workers.request import Delta, EncoderInput, EngineRequest
from tandem.workers.shared_engine import SharedEngine

PATIENCE_S = 60.0


class Counting:
    """An engine that gives every request its number of tokens, one a step: 0, 1, 2, …"""

    def __init__(self) -> None:
        self.left: dict[str, tuple[int, int]] = {}  # by request: the next token, and how many there are
        self.cancelled: set[str] = set()
        self.closed = self.released = self.steps = 0
        self.fails_at: int | None = None
        self._inside = threading.Lock()

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        """Only for media."""
        raise AssertionError(encoder_input)

    def submit(self, request: EngineRequest) -> None:
        assert self._inside.acquire(blocking=False), "two threads at once"
        self.left[request.request_id] = 0, request.decoding.max_tokens
        self._inside.release()

    def cancel(self, request_id: str) -> None:
        self.cancelled.add(request_id)
        self.left.pop(request_id, None)

    def step(self) -> list[Delta]:
        assert self._inside.acquire(blocking=False), "two threads at once"
        time.sleep(0.0002)
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("the step failed")
        deltas = []
        for request_id, (token, most) in list(self.left.items()):
            last = token + 1 == most
            deltas.append(Delta(request_id, [token], finish_reason="length" if last else None))
            self.left[request_id] = token + 1, most
            if last:
                del self.left[request_id]
        self._inside.release()
        return deltas

    def close(self) -> None:
        self.closed += 1

    def release(self) -> None:
        self.released += 1


def request(name: str, tokens: int) -> EngineRequest:
    return EngineRequest(name, EncoderInput(name, (1,)), (0,), decoding(max_tokens=tokens))


@pytest.fixture
def engine() -> Counting:
    return Counting()


@pytest.fixture
def shared(engine: Counting) -> SharedEngine:
    untyped: Any = engine
    return SharedEngine(untyped)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Any]]:
    with ThreadPoolExecutor(32) as threads:
        yield threads.submit


def tokens(shared: SharedEngine, *requests: EngineRequest, pause_s: float = 0.0) -> dict[str, list[int]]:
    got: dict[str, list[int]] = {one.request_id: [] for one in requests}
    for delta in shared.deltas(requests):
        got[delta.request_id] += delta.token_ids
        time.sleep(pause_s)
    return got


def test_everybody_gets_what_is_theirs(
    shared: SharedEngine, engine: Counting, spawn: Callable[..., Any]
) -> None:
    rng = random.Random(0)

    def call(number: int, lengths: list[int], wait_s: float, pause_s: float) -> bool:
        time.sleep(wait_s)
        requests = [request(f"{number}.{at}", length) for at, length in enumerate(lengths)]
        got = tokens(shared, *requests, pause_s=pause_s)
        return got == {one.request_id: list(range(one.decoding.max_tokens)) for one in requests}

    calls = [
        spawn(
            call, number, [rng.randint(1, 40) for _ in range(rng.randint(1, 3))], 0.02 * rng.random(),
            rng.choice([0.0, 0.0, 0.001]),
        )
        for number in range(100)
    ]  # fmt: skip
    assert all(one.result(PATIENCE_S) for one in calls)
    assert not engine.left
    assert not engine.cancelled


def test_one_who_is_busy_with_what_it_got_holds_up_nobody(
    shared: SharedEngine, spawn: Callable[..., Any]
) -> None:
    busy = shared.deltas([request("busy", 50)])
    assert next(busy).token_ids == [0]
    others = [spawn(tokens, shared, request(f"other {number}", 20)) for number in range(8)]
    for number, other in enumerate(others):
        assert other.result(PATIENCE_S) == {f"other {number}": list(range(20))}
    assert [delta.token_ids[0] for delta in busy] == list(range(1, 50))


def test_one_who_turns_away_is_cancelled(
    shared: SharedEngine, engine: Counting, spawn: Callable[..., Any]
) -> None:
    gone = shared.deltas([request("gone", 10**9)])
    next(gone)
    other = spawn(tokens, shared, request("other", 300))
    gone.close()
    assert engine.cancelled == {"gone"}
    assert len(other.result(PATIENCE_S)["other"]) == 300


@pytest.mark.parametrize("others", [0, 3])
def test_media_decoded_while_nothing_is_delivered_come_in(
    shared: SharedEngine, engine: Counting, monkeypatch: pytest.MonkeyPatch, spawn: Callable[..., Any],
    others: int,
) -> None:  # fmt: skip
    """Beams have no delta before their end."""
    step = engine.step

    def decoded(encoder_input: EncoderInput) -> EncoderInput:
        while encoder_input.key == "late" and engine.steps < 50:
            time.sleep(0.001)
        return encoder_input

    monkeypatch.setattr(engine, "prepare", decoded)
    monkeypatch.setattr(engine, "step", lambda: [delta for delta in step() if delta.last])
    calls = [spawn(tokens, shared, request(f"other {number}", 5_000)) for number in range(others)]
    media = (Media("image", b"file"),)
    requests = [
        replace(request(name, most), encoder=EncoderInput(name, (1,), media=media))
        for name, most in (("early", 5_000), ("late", 50))
    ]
    ended = spawn(lambda: [delta.request_id for delta in shared.deltas(requests)])
    assert ended.result(PATIENCE_S) == ["late", "early"]
    assert all(one.result(PATIENCE_S) for one in calls)


def test_a_step_that_fails_fails_all(
    shared: SharedEngine, engine: Counting, spawn: Callable[..., Any]
) -> None:
    engine.fails_at = 40
    calls = [spawn(tokens, shared, request(str(number), 10**6)) for number in range(8)]
    errors = {type(one.exception(PATIENCE_S)) for one in calls}
    assert errors <= {RuntimeError, InternalError}
    assert RuntimeError in errors
    with pytest.raises(InternalError, match="the step failed"):
        tokens(shared, request("late", 1))
    assert not shared.close(InvalidRequest("closed"))
    assert (engine.closed, engine.released) == (0, 1)


def test_close_ends_calls_under_way(
    shared: SharedEngine, engine: Counting, spawn: Callable[..., Any]
) -> None:
    calls = [spawn(tokens, shared, request(str(number), 10**6)) for number in range(8)]
    while engine.steps < 5:
        time.sleep(0.001)
    assert shared.close(InvalidRequest("closed"))
    for one in calls:
        assert isinstance(one.exception(PATIENCE_S), InvalidRequest)
    assert engine.closed == 1


def test_a_request_that_is_refused_takes_the_others_of_its_call_along(
    shared: SharedEngine, engine: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    def choosy(one: EngineRequest) -> None:
        if one.request_id == "bad":
            raise InvalidRequest("is bad")
        submit(one)

    monkeypatch.setattr(engine, "submit", choosy)
    with pytest.raises(InvalidRequest, match="is bad"):
        tokens(shared, request("good", 5), request("bad", 5))
    assert engine.cancelled == {"good"}
    assert tokens(shared, request("next", 3)) == {"next": [0, 1, 2]}
