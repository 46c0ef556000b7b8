"""One engine for the calls of many threads, without a thread of its own.

One of the threads that wait for deltas steps the engine for all; the others sleep until there are deltas for
them. A thread that returns with its deltas wakes another to step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from tandem.errors import InternalError, InvalidRequest, TandemError
from tandem.workers.engine import Engine
from tandem.workers.media_feed import MediaFeed
from tandem.workers.request import Delta, EncoderInput, EngineRequest

if TYPE_CHECKING:
    import torch


class _Call:
    """The requests of one `deltas` call."""

    def __init__(self) -> None:
        self.live: set[str] = set()  # ids of those that have not ended
        self.inbox: deque[Delta] = deque()
        self.feed: MediaFeed | None = None  # of those that are not submitted yet
        # Set: the inbox is not empty, it is this thread's turn to step, or a step has passed that the feed
        # may have waited for.
        self.wake = threading.Event()


class SharedEngine:
    """Any thread may call the methods. After `close` or a failed step, calls raise the reason."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._engine_lock = threading.Lock()  # around the engine: held for as long as a step takes
        self._lock = threading.Lock()  # around all below; taken after the engine's where both are needed
        self._failure: TandemError | None = None  # why the engine cannot be used
        self._calls: dict[str, _Call] = {}  # the call of each live request, by its id
        self._stepping = False  # a thread steps
        self._asleep: list[_Call] = []  # they wait meanwhile

    def deltas(
        self, requests: Sequence[EngineRequest]
    ) -> Generator[Delta, Sequence[EngineRequest] | None, None]:
        """The requests' deltas, until all have ended. Closing the generator cancels those that have not.

        More requests, without media, may be sent to the generator in return for a delta.
        """
        call, of_media = _Call(), [request for request in requests if request.encoder.media]
        try:
            self._submit(call, [request for request in requests if not request.encoder.media])
            with MediaFeed(self.engine.prepare, of_media) as feed:
                call.feed = feed
                while call.live or feed:
                    delta = self._next(call)
                    if delta.last:
                        call.live.discard(delta.request_id)
                    if more := (yield delta):
                        self._submit(call, more)
        finally:
            for request_id in call.live:
                self.cancel(request_id)
            with self._lock:
                for request_id in call.live:
                    self._calls.pop(request_id, None)
                if call in self._asleep:  # an exception woke it
                    self._asleep.remove(call)
                self._wake_one()  # this one may have been woken to step

    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor:
        """See `Engine.encode`."""
        try:
            with self._engine_lock:
                self._check_usable()
                return self.engine.encode(inputs)
        except InvalidRequest:
            raise
        except BaseException as error:  # Ctrl-C too: the ranks may be apart
            self._fail(InternalError(f"the engine failed: {error!r}"))
            raise

    def _submit(self, call: _Call, requests: Sequence[EngineRequest]) -> None:
        with self._engine_lock:
            self._check_usable()
            for request in requests:
                self.engine.submit(request)
                call.live.add(request.request_id)
                with self._lock:
                    self._calls[request.request_id] = call

    def cancel(self, request_id: str) -> None:
        with self._engine_lock:
            self.engine.cancel(request_id)

    def close(self, reason: TandemError) -> bool:
        """Ends the engine; calls under way raise the reason. Returns whether the engine was sound."""
        with self._engine_lock:
            sound = self._failure is None
            self._fail(reason)
            if sound:
                self.engine.close()
            else:
                self.engine.release()
        return sound

    def _take_in(self, call: _Call) -> None:
        """Submits the requests whose media are decoded by now."""
        if not call.feed:
            return
        for group, refused in call.feed.ready(len(call.live)):
            if refused is None:
                self._submit(call, group)
            else:
                call.live.update(one.request_id for one in group)
                call.inbox.extend(Delta(one.request_id, [], error=refused) for one in group)

    def _next(self, call: _Call) -> Delta:
        while True:
            self._take_in(call)  # after every step: beams have no delta before their end
            if call.inbox:
                break
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
            if call is None:  # its generator is closed
                continue
            if delta.last:
                del self._calls[delta.request_id]
            call.inbox.append(delta)
        for call in [call for call in self._asleep if call.inbox or call.feed]:
            self._asleep.remove(call)
            call.wake.set()
        self._wake_one()  # those that got deltas may be busy with them

    def _wake_one(self) -> None:
        if self._asleep and not self._stepping:
            self._asleep.pop(0).wake.set()

    def _fail(self, reason: TandemError) -> None:
        with self._lock:
            self._failure = self._failure or reason  # the first reason stays
            self._stepping = False
            for call in self._asleep:
                call.wake.set()
            self._asleep.clear()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure
