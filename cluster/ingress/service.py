"""All that clients can ask for, whatever protocol they speak: requests in, text deltas and answers out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from tandem.cluster.config import ServeConfig
from tandem.cluster.ingress.edge.guard import Guard
from tandem.cluster.ingress.files import Files, LocalFiles
from tandem.cluster.ingress.health import Health, Workers
from tandem.cluster.ingress.metrics import Metrics
from tandem.cluster.ingress.speech.live import Live
from tandem.cluster.ingress.speech.recordings import Recordings
from tandem.cluster.keys import Keys, hash_in_environment
from tandem.cluster.router.routed_request import Arrival, RoutedRequest
from tandem.cluster.router.router import Room
from tandem.outputs import TextDelta
from tandem.protocol.wire_answers import ServedModel
from tandem.workers.request import Delta, EncodeRequest, EngineRequest
from tandem.workers.requests.answers.output_processor import OutputProcessor, PreparedRequest
from tandem.workers.requests.request_builder import RequestBuilder

if TYPE_CHECKING:
    import torch

P = TypeVar("P")
T = TypeVar("T")

# A message to a client costs about as much as decoding its tokens, so one replica sends about this many
# per second: a single stream gets every token by itself, the tokens of many streams come in groups.
_MESSAGES_PER_S: Final = 1000.0
_LONGEST_GATHER_S: Final = 0.1  # the longest that tokens wait for others
_WHOLE_GATHER_S: Final = 1.0  # where only the whole answer is read; the metrics lag this much
_TOKENIZER_THREADS: Final = 2
# A longer text, or more than one, is tokenized in a thread. A shorter one takes less than half a millisecond,
# which is what a thread costs.
_SHORT: Final = 1024  # characters
_UNSENT: Final = 16  # deltas of a call with several samples that may wait for a slow client


class Router(Workers, Protocol):
    """What the service needs of `cluster.router.Router`; tests have their own."""

    def check_room(self, sequences: int = 1, *, priority: int | None = 0) -> None: ...
    def keep_room(
        self, media_bytes: int, audio_s: float, *, priority: int = 0
    ) -> AbstractContextManager[Room]: ...
    def accept(
        self,
        requests: Sequence[EngineRequest],
        *,
        arrival: Arrival | None = None,
        within: Room | None = None,
    ) -> AbstractContextManager[list[RoutedRequest]]: ...
    def deltas(self, routed: RoutedRequest, gather_s: Callable[[], float] = ...) -> AsyncGenerator[Delta]: ...
    async def hidden_states(
        self, requests: Sequence[EncodeRequest], *, arrival: Arrival | None = None
    ) -> list[torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A text delta, and which of the call's prompts it belongs to."""

    prompt: int  # the prompt's number in the call
    delta: TextDelta


class Service:
    """One model, served through one router."""

    def __init__(
        self,
        config: ServeConfig,
        request_builder: RequestBuilder,
        router: Router,
        replica: str,
        files: Files | None = None,
    ) -> None:
        """`files` are those of all replicas; None: there is one replica. Raises InvalidRequest where the keys
        cannot be read."""
        self.config, self.request_builder = config, request_builder
        self.guard = Guard(Keys(config.api_keys, config.api_key_sha256 or hash_in_environment()))
        self.health = Health(router, config.stall_timeout_s)
        self.metrics = Metrics(request_builder.info.name, replica, router.stats)
        self.files = LocalFiles() if files is None else files
        self.started = int(time.time())  # seconds since 1970
        self.recordings = Recordings(request_builder, router)
        self.live = Live(request_builder, router)
        self._router = router
        self._threads = ThreadPoolExecutor(_TOKENIZER_THREADS, thread_name_prefix="tokenizer")
        self._live = 0  # sequences being generated that are read as they grow

    @property
    def model(self) -> ServedModel:
        front = self.request_builder
        return ServedModel(
            front.info.name,
            front.info.family,
            front.max_encoder_tokens,
            front.max_decoder_tokens,
            front.max_segment_tokens,
        )

    def check_room(self, priority: int | None = 0) -> None:
        """Raises Overloaded, Unavailable where no request of this priority would be accepted now; None is of
        one that wants no decoder."""
        self._router.check_room(priority=priority)

    async def tokenizing(self, work: Callable[[], T], prompt: object, several: object = False) -> T:
        """Runs work on a prompt, in a thread where it would hold up the event loop. `several`: it has more
        texts than the prompt's."""
        if not several and _length(prompt) <= _SHORT:
            return work()
        return await self.in_thread(work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs work that takes a while in one of the tokenizer's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def hidden_states(self, requests: Sequence[EncodeRequest], arrival: Arrival) -> list[torch.Tensor]:
        """See `cluster.router.Router.hidden_states`."""
        return await self._router.hidden_states(requests, arrival=arrival)

    async def pieces(
        self,
        prepared: Sequence[PreparedRequest],
        output_processors: Sequence[OutputProcessor],
        *,
        arrival: Arrival,
        whole: bool,
        queued: Callable[[float], None],
    ) -> AsyncGenerator[Piece]:
        """What all samples of all prompts grow by. `whole`: nobody reads a sample before its end. `queued` is
        told for each how long it waited for an engine's batch, in seconds. Close it to cancel the samples
        that have not ended."""
        sequences = [sequence for request in prepared for sequence in request.sequences]
        with self._router.accept(sequences, arrival=arrival) as routed_requests:
            places = (
                (number, index, output_processor, whole, queued)
                for number, (request, output_processor) in enumerate(
                    zip(prepared, output_processors, strict=True)
                )
                for index in range(len(request.sequences))
            )
            streams = [
                self._sample(routed, *place) for routed, place in zip(routed_requests, places, strict=True)
            ]
            async with aclosing(streams[0] if len(streams) == 1 else _merge(streams)) as merged:
                async for piece in merged:
                    yield piece

    async def ends(
        self, requests: Sequence[EngineRequest], arrival: Arrival, queued: Callable[[float], None]
    ) -> list[Delta]:
        """The last deltas of requests that have no others; `queued` as in `pieces`. The first error ends them
        all."""
        with self._router.accept(requests, arrival=arrival) as routed_requests:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._end(routed, queued)) for routed in routed_requests]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    async def _end(self, routed: RoutedRequest, queued: Callable[[float], None]) -> Delta:
        async with aclosing(self._router.deltas(routed)) as deltas:
            delta = await anext(deltas)
        if delta.queued_s is not None:
            queued(delta.queued_s)
        return delta

    async def _sample(
        self,
        routed: RoutedRequest,
        number: int,
        index: int,
        output_processor: OutputProcessor,
        whole: bool,
        queued: Callable[[float], None],
    ) -> AsyncGenerator[Piece]:
        gather_s = (lambda: _WHOLE_GATHER_S) if whole else self._gather_s
        self._live += not whole
        try:
            async with aclosing(self._router.deltas(routed, gather_s)) as deltas:
                async for delta in deltas:
                    if delta.queued_s is not None:
                        queued(delta.queued_s)
                    for piece in output_processor.push(delta):
                        yield Piece(number, piece)
                    if delta.last or output_processor.stopped(index):
                        return
        finally:
            self._live -= not whole

    def _gather_s(self) -> float:
        return min(_LONGEST_GATHER_S, self._live / _MESSAGES_PER_S)


def _length(prompt: object) -> int:
    """Characters and token ids in prompts of any kind; a file, which is opened and hashed, is long."""
    if isinstance(prompt, bytes):
        return _SHORT + 1
    if isinstance(prompt, dict):
        return sum(map(_length, prompt.values()))
    if isinstance(prompt, Sequence) and len(prompt):
        return (
            len(prompt)
            if isinstance(prompt, str) or isinstance(prompt[0], int)
            else sum(map(_length, prompt))
        )
    return 0


async def _merge(streams: Sequence[AsyncGenerator[Piece]]) -> AsyncGenerator[Piece]:
    """The streams' pieces as they come. The first error ends them all."""
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(_UNSENT)

    async def pump(stream: AsyncGenerator[Piece]) -> None:
        end: Exception | None = None
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await queue.put(piece)
        except Exception as error:
            end = error
        await queue.put(end)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        live = len(tasks)
        while live:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                live -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
