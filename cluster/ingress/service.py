"""All that clients can ask for, whatever protocol they speak: requests in, text deltas and answers out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, Unpack

from tandem.cluster.config import ServeConfig
from tandem.cluster.ingress.files import Files, LocalFiles
from tandem.cluster.ingress.health import Health, Workers
from tandem.cluster.ingress.metrics import Metrics, Observation
from tandem.cluster.ingress.metrics import Protocol as WireProtocol
from tandem.cluster.router.routed_request import RoutedRequest
from tandem.errors import DeadlineExceeded, InvalidRequest
from tandem.inputs import Prompt, RequestOptions, SingletonPrompt, TaskOptions
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, Pooling
from tandem.protocol.wire_answers import ServedModel
from tandem.workers.request import Delta, EncodeRequest, EngineRequest
from tandem.workers.requests.chat import Conversation
from tandem.workers.requests.embedding import PreparedEmbedding, embedding_output
from tandem.workers.requests.output_processor import OutputProcessor, PreparedRequest
from tandem.workers.requests.request_builder import RequestBuilder, naming_prompt
from tandem.workers.requests.scoring import score_output
from tandem.workers.requests.segmentation import Document, Split

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
_UNREAD_S: Final = 10.0  # beyond a call's deadline, for its client to read what there is


class Router(Workers, Protocol):
    """What the service needs of `cluster.router.Router`; tests have their own."""

    def check_room(self, sequences: int = 1) -> None: ...
    def accept(self, requests: Sequence[EngineRequest]) -> AbstractContextManager[list[RoutedRequest]]: ...
    def deltas(self, routed: RoutedRequest, gather_s: Callable[[], float] = ...) -> AsyncGenerator[Delta]: ...
    async def hidden_states(self, requests: Sequence[EncodeRequest]) -> list[torch.Tensor]: ...


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
        """`files` are those of all replicas; None: there is one replica."""
        self.config, self.request_builder = config, request_builder
        self.health = Health(router, config.stall_timeout_s)
        self.metrics = Metrics(request_builder.info.name, replica, router.stats)
        self.files = LocalFiles() if files is None else files
        self.started = int(time.time())  # seconds since 1970
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

    def call(self, protocol: WireProtocol, method: str) -> Call:
        """Begins a client's call; use it in a `with` statement."""
        return Call(self, Observation(self.metrics, protocol, method))

    def check_room(self) -> None:
        """Raises Overloaded, Unavailable where no request would be accepted now."""
        self._router.check_room()

    async def tokenizing(self, work: Callable[[], T], prompt: object, several: object = False) -> T:
        """Runs work on a prompt, in a thread where it would hold up the event loop. `several`: it has more
        texts than the prompt's."""
        if not several and _length(prompt) <= _SHORT:
            return work()
        return await self.in_thread(work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Runs work that takes a while in one of the tokenizer's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def hidden_states(self, requests: Sequence[EncodeRequest]) -> list[torch.Tensor]:
        """See `cluster.router.Router.hidden_states`."""
        return await self._router.hidden_states(requests)

    async def pieces(
        self,
        prepared: Sequence[PreparedRequest],
        output_processors: Sequence[OutputProcessor],
        *,
        whole: bool,
    ) -> AsyncGenerator[Piece]:
        """What all samples of all prompts grow by. `whole`: nobody reads a sample before its end. Close it to
        cancel the samples that have not ended."""
        sequences = [sequence for request in prepared for sequence in request.sequences]
        with self._router.accept(sequences) as routed_requests:
            places = (
                (number, index, output_processor, whole)
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

    async def ends(self, requests: Sequence[EngineRequest]) -> list[Delta]:
        """The last deltas of requests that have no others. The first error ends them all."""
        with self._router.accept(requests) as routed_requests:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._end(routed)) for routed in routed_requests]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    async def _end(self, routed: RoutedRequest) -> Delta:
        async with aclosing(self._router.deltas(routed)) as deltas:
            delta = await anext(deltas)
        if delta.queued_s is not None:
            self.metrics.queue.observe(delta.queued_s)
        return delta

    async def _sample(
        self,
        routed: RoutedRequest,
        number: int,
        index: int,
        output_processor: OutputProcessor,
        whole: bool,
    ) -> AsyncGenerator[Piece]:
        gather_s = (lambda: _WHOLE_GATHER_S) if whole else self._gather_s
        self._live += not whole
        try:
            async with aclosing(self._router.deltas(routed, gather_s)) as deltas:
                async for delta in deltas:
                    if delta.queued_s is not None:
                        self.metrics.queue.observe(delta.queued_s)
                    for piece in output_processor.push(delta):
                        yield Piece(number, piece)
                    if delta.last or output_processor.stopped(index):
                        return
        finally:
            self._live -= not whole

    def _gather_s(self) -> float:
        return min(_LONGEST_GATHER_S, self._live / _MESSAGES_PER_S)


class Call:
    """One call of a client: one or more prompts, validated together and answered together.

    The task that enters it is cancelled some time after the call's deadline: the answer is complete by then,
    and nobody takes it.
    """

    def __init__(self, service: Service, observation: Observation) -> None:
        self._service, self._observation = service, observation
        self._limit: asyncio.TimerHandle | None = None

    def __enter__(self) -> Call:
        self._task = asyncio.current_task()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._limit is not None:
            self._limit.cancel()
        self._observation.__exit__(*raised)  # type: ignore[arg-type]

    def _prepared(self, request_id: str, timeout_s: float | None) -> None:
        self._observation.request_id = request_id
        if self._limit is None and self._task is not None:
            longest_s = self._service.config.limits.timeout_s if timeout_s is None else timeout_s
            loop = asyncio.get_running_loop()
            self._limit = loop.call_later(longest_s + _UNREAD_S, self._task.cancel)

    async def prepare(
        self,
        prompts: Sequence[Prompt],
        params: Params | None,
        **options: Unpack[RequestOptions],
    ) -> list[PreparedRequest]:
        """Validates and tokenizes, where there is room for the work. Raises InvalidRequest, ModelNotFound:
        see `RequestBuilder.prepare`; Overloaded, Unavailable."""
        self._service.check_room()
        request_builder = self._service.request_builder

        def prepare() -> list[PreparedRequest]:
            return _each(prompts, lambda prompt: request_builder.prepare(prompt, params, **options))

        several = len(prompts) > 1 or (params is not None and params.bad_words)
        prepared = await self._service.tokenizing(prepare, prompts, several)
        self._prepared(prepared[0].request_id, options.get("timeout_s"))
        return prepared

    async def prepare_chat(
        self, conversation: Conversation, params: Params, **options: Unpack[RequestOptions]
    ) -> PreparedRequest:
        """Renders, validates and tokenizes a conversation: see `RequestBuilder.chat_prompt` and `prepare`."""
        self._service.check_room()
        request_builder = self._service.request_builder
        prepared = await self._service.in_thread(
            lambda: request_builder.prepare(request_builder.chat_prompt(conversation), params, **options)
        )
        self._prepared(prepared.request_id, options.get("timeout_s"))
        return prepared

    async def prepare_embed(
        self, prompts: Sequence[Prompt], pooling: Pooling, **options: Unpack[RequestOptions]
    ) -> PreparedEmbedding:
        """Validates and tokenizes a request for hidden states: see `prepare` and
        `RequestBuilder.prepare_embed`."""
        self._service.check_room()
        request_builder = self._service.request_builder
        prepared = await self._service.tokenizing(
            lambda: request_builder.prepare_embed(prompts, pooling, **options), prompts, len(prompts) > 1
        )
        self._prepared(prepared.request_id, options.get("timeout_s"))
        return prepared

    async def embed(self, prepared: PreparedEmbedding) -> list[EmbeddingOutput]:
        """The prompts' hidden states, pooled as they are asked for."""
        states = await self._service.hidden_states(prepared.requests)
        self._observation.accepted(prepared.encoder_tokens)
        return await self._service.in_thread(
            lambda: [embedding_output(prepared.request_id, one, prepared.pooling) for one in states]
        )

    async def prepare_score(
        self,
        prompt: Prompt,
        targets: Sequence[SingletonPrompt],
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Validates and tokenizes a request to score: see `prepare` and `RequestBuilder.prepare_score`."""
        self._service.check_room()
        request_builder = self._service.request_builder
        prepared = await self._service.tokenizing(
            lambda: request_builder.prepare_score(prompt, targets, **options),
            [prompt, *targets],
            len(targets) > 1,
        )
        self._prepared(prepared.request_id, options.get("timeout_s"))
        return prepared

    async def score(self, prepared: PreparedRequest) -> ScoreOutput:
        """All targets' scores."""
        ends = await self._service.ends(prepared.sequences)
        self._observation.accepted(len(prepared.encoder_prompt_token_ids))
        return score_output(prepared, {end.request_id: end for end in ends})

    async def tokenize(
        self, text: str, *, field: str, model: str | None = None, special: bool = True
    ) -> list[int]:
        """The encoder's ids for a text, `special` tokens included."""
        request_builder = self._service.request_builder
        request_builder.check_model(model)
        return await self._service.tokenizing(
            lambda: request_builder.tokenize(text, field=field, special=special), text
        )

    async def detokenize(
        self, ids: Sequence[int], *, field: str, model: str | None = None, skip_special_tokens: bool = False
    ) -> str:
        """The text of ids: see `RequestBuilder.detokenize`."""
        request_builder = self._service.request_builder
        request_builder.check_model(model)
        return await self._service.tokenizing(
            lambda: request_builder.detokenize(ids, field=field, skip_special_tokens=skip_special_tokens), ids
        )

    async def segment(
        self, texts: Sequence[str], split: Split, **options: Unpack[TaskOptions]
    ) -> list[Document]:
        """Texts as the segments that are translated each by itself, where there is room for the work: see
        `RequestBuilder.segment`. Raises InvalidRequest, Overloaded, Unavailable."""
        self._service.check_room()
        request_builder = self._service.request_builder

        def documents() -> list[Document]:
            made = _each(texts, lambda text: request_builder.segment(text, split, **options))
            total, limit = sum(len(document.segments) for document in made), request_builder.limits.segments
            if total > limit:
                raise InvalidRequest(f"{total} {split}s in all, the limit is {limit}", field="prompt")
            return made

        return await self._service.tokenizing(documents, texts)

    async def stream(self, prepared: Sequence[PreparedRequest]) -> AsyncGenerator[Piece]:
        """What the prompts' answers grow by. Close it to cancel the rest.

        Raises DeadlineExceeded if the time is over before there is any token; with some, it ends with
        finish reason `deadline` and they stand.
        """
        request_builder = self._service.request_builder
        output_processors = [request_builder.output_processor(one) for one in prepared]
        async with aclosing(self._run(prepared, output_processors, whole=False)) as pieces:
            async for piece in pieces:
                yield piece

    async def generate(self, prepared: Sequence[PreparedRequest], *, first: int = 0) -> list[RequestOutput]:
        """The prompts' whole answers; otherwise as `stream`. `first` is the first prompt's number in a call
        that generates more than once."""
        output_processors = [self._service.request_builder.output_processor(one) for one in prepared]
        # Stop strings are found by looking at the text: the engine goes on until they are.
        whole = not any(output_processor.watches for output_processor in output_processors)
        async with aclosing(self._run(prepared, output_processors, whole=whole, first=first)) as pieces:
            async for _ in pieces:
                pass
        return [output_processor.output() for output_processor in output_processors]

    async def _run(
        self,
        prepared: Sequence[PreparedRequest],
        output_processors: Sequence[OutputProcessor],
        *,
        whole: bool,
        first: int = 0,
    ) -> AsyncGenerator[Piece]:
        empty = True
        async with aclosing(self._service.pieces(prepared, output_processors, whole=whole)) as pieces:
            async for piece in pieces:
                delta = piece.delta
                if empty:
                    if delta.finish_reason == "deadline" and not delta.token_ids:
                        raise DeadlineExceeded("the request's time was over before its first token")
                    self._observation.accepted(
                        sum(len(request.encoder_prompt_token_ids) for request in prepared)
                    )
                    empty = False
                self._observation.grew(first + piece.prompt, delta.index, len(delta.token_ids))
                yield piece


def _each(prompts: Sequence[P], work: Callable[[P], T]) -> list[T]:
    """What the work makes of each prompt. Its InvalidRequest says which of several prompts is at fault."""
    made: list[T] = []
    for number, prompt in enumerate(prompts):
        with naming_prompt(number, len(prompts)):
            made.append(work(prompt))
    return made


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
