"""The media of many requests, decoded a little ahead of the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import groupby
from types import TracebackType
from typing import Final, Self

from tandem.errors import InvalidRequest
from tandem.workers.request import EncoderInput, EngineRequest

THREADS: Final = 2
AHEAD: Final = 4  # inputs decoded, or being decoded, that are not submitted yet
# The first input waits so long, at most, for those that are decoded with it: one batch of them takes less
# time than to encode some while the decoding of others takes the processors.
TOGETHER_S: Final = 0.05
MOST_LIVE: Final = 256  # sequences of a call at the engine, running and waiting, that hold features


class MediaFeed:
    """Requests with media, in order, with the features that the engine needs; use it in a `with` statement.

    Samples and targets of one prompt share their input, which is decoded once. Features are large, so no more
    are made than the engine can use soon.
    """

    def __init__(
        self, prepare: Callable[[EncoderInput], EncoderInput], requests: Sequence[EngineRequest]
    ) -> None:
        """`prepare` decodes, see `Engine.prepare`."""
        self._prepare = prepare
        self._groups = deque(list(group) for _, group in groupby(requests, lambda one: one.encoder.key))
        self._decoding: deque[tuple[Future[EncoderInput], list[EngineRequest]]] = deque()
        self._pool: ThreadPoolExecutor | None = None  # made for the first of the requests

    def __bool__(self) -> bool:
        """Whether some are still to come."""
        return bool(self._groups or self._decoding)

    def ready(self, live: int) -> Iterator[tuple[list[EngineRequest], InvalidRequest | None]]:
        """The requests whose inputs are decoded by now, while fewer than MOST_LIVE of the sequences are
        at the engine, where `live` are; an input that cannot be decoded comes with the reason. Without any
        there, it waits for the first input, and for TOGETHER_S for those after it."""
        while self and live < MOST_LIVE:
            while self._groups and len(self._decoding) < AHEAD:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(THREADS, "media")
                group = self._groups.popleft()
                self._decoding.append((self._pool.submit(self._prepare, group[0].encoder), group))
            if not live:
                wait([future for future, _ in self._decoding], TOGETHER_S)
            future, group = self._decoding[0]
            if live and not future.done():
                return
            self._decoding.popleft()
            live += len(group)
            try:
                encoder_input = future.result()
            except InvalidRequest as error:
                yield group, error
            else:
                yield [replace(request, encoder=encoder_input) for request in group], None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
