"""The transcriptions of many recordings with an engine in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Final, NamedTuple

from tandem.errors import InvalidRequest
from tandem.workers.request import EngineRequest
from tandem.workers.requests.media.audio_file import Watch
from tandem.workers.shared_engine import SharedEngine
from tandem.workers.transcription.transcriber import Transcriber

Begin = Callable[[Watch], Transcriber]
THREADS: Final = 2
AHEAD: Final = 2  # recordings decoded, or being decoded, that have not begun
# Audio of the recordings under way, whose spectrograms are held: 32 kB a second with 80 mel bins.
LIVE_S: Final = 8 * 3600.0


class Progress(NamedTuple):
    """A recording that is under way."""

    number: int
    transcriber: Transcriber


class Refused(NamedTuple):
    """A recording that cannot be decoded."""

    number: int
    error: InvalidRequest


def transcribe_all(engine: SharedEngine, begin: Iterable[Begin], most: int) -> Generator[Progress | Refused]:
    """Transcribes recordings whose windows share the engine's batch, and yields each step of each.

    Args:
        begin: decodes a recording, in another thread, and begins its transcription, as
            `TranscriptionBuilder.begin`, with this `watch`. Each is taken from here, in this thread, shortly
            before its turn.
        most: recordings under way at once.

    Closing the generator cancels what is under way. Raises what the engine raises, and what `begin` does
    except InvalidRequest, which refuses one recording.
    """
    recordings = _Recordings(begin)
    with recordings.pool:
        try:
            live: dict[str, Progress] = {}  # by the ids of their requests
            while recordings.left:
                taken = recordings.take()
                requests = _start(live, taken)
                yield taken
                if not requests:
                    continue
                with closing(engine.deltas(requests)) as deltas:
                    delta = next(deltas, None)
                    while delta is not None:
                        one = live.pop(delta.request_id) if delta.last else live[delta.request_id]
                        requests = _wait_for(live, one, one.transcriber.push(delta))
                        if delta.last:
                            yield one
                        while recordings.ready and _room(live, most):
                            taken = recordings.take()
                            requests += _start(live, taken)
                            yield taken
                        try:
                            delta = deltas.send(requests)
                        except StopIteration:
                            delta = None
        finally:
            recordings.cancel()


def _start(live: dict[str, Progress], taken: Progress | Refused) -> list[EngineRequest]:
    return [] if isinstance(taken, Refused) else _wait_for(live, taken, taken.transcriber.start())


def _wait_for(live: dict[str, Progress], one: Progress, requests: list[EngineRequest]) -> list[EngineRequest]:
    live.update((request.request_id, one) for request in requests)
    return requests


def _room(live: dict[str, Progress], most: int) -> bool:
    under_way = {one.number: one.transcriber.duration_s for one in live.values()}
    return len(under_way) < most and sum(under_way.values()) < LIVE_S


class _Recordings:
    """Recordings in order, decoded a little ahead."""

    def __init__(self, begin: Iterable[Begin]) -> None:
        self.pool = ThreadPoolExecutor(THREADS, "media")
        self._begin = enumerate(begin)
        self._decoding: deque[tuple[int, Future[Transcriber]]] = deque()
        self._cancelled = False
        self._fill()

    @property
    def left(self) -> bool:
        """Whether some are still to be taken."""
        return bool(self._decoding)

    @property
    def ready(self) -> bool:
        """Whether the next is decoded."""
        return bool(self._decoding) and self._decoding[0][1].done()

    def take(self) -> Progress | Refused:
        """The next one, when it is decoded."""
        number, future = self._decoding.popleft()
        self._fill()
        try:
            return Progress(number, future.result())
        except InvalidRequest as error:
            return Refused(number, error)

    def cancel(self) -> None:
        """What is being decoded ends with the next look at it."""
        self._cancelled = True
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self) -> None:
        for number, begin in islice(self._begin, AHEAD - len(self._decoding)):
            self._decoding.append((number, self.pool.submit(begin, self._watch)))

    def _watch(self, _: float) -> None:
        if self._cancelled:
            raise CancelledError
