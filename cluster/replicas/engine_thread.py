"""The engine's own thread: it makes the engine, takes requests from other threads, steps while there is work,
and reports each step. One thread does it all because a CUDA device is chosen per thread."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import torch

from tandem.errors import InternalError, InvalidRequest, TandemError, Unavailable
from tandem.workers.request import Delta, EncoderInput, EngineRequest, EngineStats
from tandem.workers.scheduling.scheduler import EndReason

logger = logging.getLogger(__name__)


class StepEngine(Protocol):
    """The part of `workers.engine.Engine` that a thread drives."""

    @property
    def has_work(self) -> bool: ...
    def prepare(self, encoder_input: EncoderInput) -> EncoderInput: ...
    def submit(self, request: EngineRequest) -> None: ...
    def cancel(self, request_id: str, reason: EndReason = "cancelled") -> None: ...
    def encode(self, inputs: Sequence[EncoderInput]) -> torch.Tensor: ...
    def step(self) -> list[Delta]: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


class _Encoding(NamedTuple):
    """Inputs whose hidden states are wanted."""

    inputs: Sequence[EncoderInput]
    states: Future[torch.Tensor]


class EngineThread:
    """Owns the engine that `make` returns. `on_step` and `on_failure` are called in this thread and must not
    block.

    A request that the engine refuses is answered with a delta that carries the error. An exception out
    of a step or an encoding leaves the engine in an unknown state: it is reported once and the thread ends.
    """

    def __init__(
        self,
        make: Callable[[], StepEngine],
        on_step: Callable[[list[Delta], EngineStats], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._make = make
        self._on_step = on_step
        self._on_failure = on_failure
        self._made: Future[EngineStats] = Future()
        self._inbox: list[EngineRequest | str] = []  # a request to submit, or the id of one to cancel
        self._encodings: deque[_Encoding] = deque()  # one between two steps
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self._progress_at: float | None = None  # monotonic: the last step, or when work came; None: idle
        self._steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> Future[EngineStats]:
        """Starts the thread. The future is done when the engine is made, with its stats or what `make`
        raised."""
        self._thread.start()
        return self._made

    def prepare(self, encoder_input: EncoderInput) -> EncoderInput:
        """`Engine.prepare`, in the caller's thread."""
        return self._engine.prepare(encoder_input)

    def submit(self, request: EngineRequest) -> None:
        self._put(request)

    def cancel(self, request_id: str) -> None:
        """Cancels a request; nothing happens if it has ended."""
        self._put(request_id)

    def encode(self, inputs: Sequence[EncoderInput]) -> Future[torch.Tensor]:
        """`Engine.encode`, between two steps. The future has Unavailable where the thread ends before."""
        encoding = _Encoding(inputs, Future())
        with self._changed:
            if self._ended:
                encoding.states.set_exception(_gone())
            else:
                self._encodings.append(encoding)
                self._changed.notify()
        return encoding.states

    def stop(self) -> None:
        """Has the thread end after the running step and close the engine. Does not wait."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def stalled_s(self) -> float:
        """Seconds since the engine applied a step, while it has work; 0 where it has none. It grows where the
        engine hangs in a step, and where its steps move nothing."""
        since = self._progress_at
        return 0.0 if since is None else time.monotonic() - since

    def _put(self, item: EngineRequest | str) -> None:
        with self._changed:
            self._inbox.append(item)
            self._changed.notify()

    def _run(self) -> None:
        try:
            self._engine = self._make()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(self._engine.stats())
        try:
            while True:
                with self._changed:
                    while not (self._inbox or self._encodings or self._stopping or self._engine.has_work):
                        self._changed.wait()
                    if self._stopping:
                        break
                    inbox, self._inbox = self._inbox, []
                    encoding = self._encodings.popleft() if self._encodings else None
                if self._progress_at is None:
                    self._progress_at = time.monotonic()
                if encoding is not None:
                    self._encode(encoding)
                deltas = [delta for item in inbox if (delta := self._take(item))]
                deltas += self._engine.step()
                stats = self._engine.stats()
                self._on_step(deltas, stats)
                self._note_progress(stats)
            self._engine.close()
        except BaseException as error:
            logger.exception("the engine failed")
            self._on_failure(error)
        finally:
            with self._changed:
                self._ended = True
            for encoding in self._encodings:
                if encoding.states.set_running_or_notify_cancel():
                    encoding.states.set_exception(_gone())

    def _note_progress(self, stats: EngineStats) -> None:
        if not self._engine.has_work:
            self._progress_at = None
        elif stats.steps != self._steps:
            self._progress_at = time.monotonic()
        self._steps = stats.steps

    def _encode(self, encoding: _Encoding) -> None:
        if not encoding.states.set_running_or_notify_cancel():
            return
        try:
            encoding.states.set_result(self._engine.encode(encoding.inputs))
        except BaseException as error:
            encoding.states.set_exception(error)
            if not isinstance(error, InvalidRequest):  # the ranks may be apart
                raise

    def _take(self, item: EngineRequest | str) -> Delta | None:
        if isinstance(item, str):
            self._engine.cancel(item)
            return None
        try:
            self._engine.submit(item)
        except TandemError as error:
            return Delta(item.request_id, [], error=error)
        except Exception:
            # The engine can go on: `submit` promises that a failure leaves its state as it was.
            logger.exception("the engine could not take request %s", item.request_id)
            return Delta(item.request_id, [], error=InternalError("the engine could not take the request"))
        return None


def _gone() -> Unavailable:
    return Unavailable("the engine has ended")
