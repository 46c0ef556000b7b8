"""One engine for the calls of many threads, without a thread of its own.

Whoever waits for an answer steps the engine, for all; the others sleep until there is something for them. A
thread that goes away with what it got leaves the stepping to one that sleeps.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence

from tandem.errors import InternalError, TandemError
from tandem.workers.engine import Engine
from tandem.workers.request import Delta, EngineRequest


class _Call:
    """A thread's requests."""

    def __init__(self) -> None:
        self.live: set[str] = set()  # ids of those that have not ended
        self.inbox: deque[Delta] = deque()
        self.wake = threading.Event()  # there is something in the inbox, or the engine to be stepped


class SharedEngine:
    """Its methods may be called by any thread. After `close`, or a step that failed, calls raise why."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._engine_lock = threading.Lock()  # around the engine: held for as long as a step takes
        self._lock = threading.Lock()  # around all below, if both are needed the inner one
        self._failure: TandemError | None = None  # why nothing works any more
        self._calls: dict[str, _Call] = {}  # of live requests, by their id
        self._stepping = False
        self._asleep: list[_Call] = []  # while another thread steps

    def deltas(self, requests: Sequence[EngineRequest]) -> Generator[Delta]:
        """What these requests grow by, until all have ended. What has not when the caller turns away is
        cancelled."""
        requests = [
            self.engine.prepare(request) for request in requests
        ]  # not while others wait for the engine
        call = _Call()
        try:
            with self._engine_lock:
                self._check_usable()
                for request in requests:
                    self.engine.submit(request)
                    call.live.add(request.request_id)
                    with self._lock:
                        self._calls[request.request_id] = call
            while call.live:
                delta = self._next(call)
                if delta.last:
                    call.live.discard(delta.request_id)
                yield delta
        finally:
            for request_id in call.live:
                self.cancel(request_id)
            with self._lock:
                for request_id in call.live:
                    self._calls.pop(request_id, None)
                if call in self._asleep:  # it was an exception that woke it
                    self._asleep.remove(call)
                self._wake_one()  # this one may have been woken to step

    def cancel(self, request_id: str) -> None:
        with self._engine_lock:
            self.engine.cancel(request_id)

    def close(self, reason: TandemError) -> bool:
        """Ends the engine; calls under way raise the reason. Returns whether it was sound till then."""
        with self._engine_lock:
            sound = self._failure is None
            self._fail(reason)
            if sound:
                self.engine.close()
        return sound

    def _next(self, call: _Call) -> Delta:
        while not call.inbox:
            with self._lock:
                if call.inbox:
                    break
                self._check_usable()
                steps, self._stepping = not self._stepping, True
                if not steps:
                    call.wake.clear()
                    self._asleep.append(call)
            if steps:
                self._step()
            else:
                call.wake.wait()
        return call.inbox.popleft()

    def _step(self) -> None:
        try:
            with self._engine_lock:
                self._check_usable()
                deltas = self.engine.step()
            with self._lock:
                self._deliver(deltas)
        except BaseException as error:  # Ctrl-C too: the ranks may be out of step, deltas lost
            self._fail(InternalError(f"the engine failed: {error!r}"))
            raise

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        self._stepping = False
        for delta in deltas:
            call = self._calls.get(delta.request_id)
            if call is None:  # it has turned away
                continue
            if delta.last:
                del self._calls[delta.request_id]
            call.inbox.append(delta)
        for call in [call for call in self._asleep if call.inbox]:
            self._asleep.remove(call)
            call.wake.set()
        self._wake_one()  # all that got something may be busy with it

    def _wake_one(self) -> None:
        if self._asleep and not self._stepping:
            self._asleep.pop(0).wake.set()

    def _fail(self, reason: TandemError) -> None:
        with self._lock:
            self._failure = self._failure or reason  # the first one is why
            self._stepping = False
            for call in self._asleep:
                call.wake.set()
            self._asleep.clear()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
