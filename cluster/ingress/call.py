"""A client's call, whatever its protocol: what is asked for is prepared, then answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar, Unpack

from tandem.cluster.ingress.metrics import Protocol as WireProtocol
from tandem.cluster.ingress.observation import Observation
from tandem.cluster.ingress.service import Piece, Service
from tandem.cluster.router.routed_request import Arrival
from tandem.errors import DeadlineExceeded, InvalidRequest
from tandem.inputs import CallOptions, Media, Prompt, RequestOptions, SingletonPrompt, TaskOptions
from tandem.live import LiveDelta, LiveParams, Sound
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput
from tandem.params import Params, Pooling
from tandem.transcription import Transcription, TranscriptionDelta, TranscriptionParams
from tandem.workers.requests.answers.embedding import PreparedEmbedding, embedding_output
from tandem.workers.requests.answers.output_processor import OutputProcessor, PreparedRequest
from tandem.workers.requests.answers.scoring import score_output
from tandem.workers.requests.prompts.chat import Conversation
from tandem.workers.requests.request_builder import naming_prompt
from tandem.workers.requests.segmentation.segments import Document, Split
from tandem.workers.transcription.builder import PreparedLive, PreparedTranscription
from tandem.workers.transcription.transcriber import Transcriber

if TYPE_CHECKING:
    import torch

P = TypeVar("P")
T = TypeVar("T")

_UNREAD_S: Final = 10.0  # beyond a call's deadline, for its client to read what there is


class Call:
    """One or more prompts, validated together and answered together; use it in a `with` statement.

    The task that enters it is cancelled some time after the call's deadline: the answer is complete by then,
    and nobody takes it.
    """

    def __init__(
        self, service: Service, protocol: WireProtocol, method: str, arrival: Arrival | None = None
    ) -> None:
        """`arrival`: of the call's head, from which its time counts; None: now."""
        self.arrival = Arrival.now() if arrival is None else arrival
        self._service = service
        self._observation = Observation(service.metrics, protocol, method, self.arrival)
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
        self._service.check_room(options.get("priority", 0))
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
        self._service.check_room(options.get("priority", 0))
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
        self._service.check_room(None)
        request_builder = self._service.request_builder
        prepared = await self._service.tokenizing(
            lambda: request_builder.prepare_embed(prompts, pooling, **options), prompts, len(prompts) > 1
        )
        self._prepared(prepared.request_id, options.get("timeout_s"))
        return prepared

    async def embed(self, prepared: PreparedEmbedding) -> list[EmbeddingOutput]:
        """The prompts' hidden states, pooled as they are asked for. Those of some prompts at a time are held,
        which are larger than what they become."""
        outputs: list[EmbeddingOutput] = []
        size = self._service.config.limits.prompts
        for first in range(0, len(prepared.requests), size):
            states = await self._service.hidden_states(prepared.requests[first : first + size], self.arrival)
            outputs += await self._service.in_thread(partial(_pooled, prepared, states))
        self._observation.accepted(prepared.encoder_tokens, prepared.media_tokens)
        return outputs

    async def prepare_transcription(
        self, media: Media, params: TranscriptionParams, field: str, **options: Unpack[CallOptions]
    ) -> PreparedTranscription:
        """Validates a request to transcribe and reads its recording's header: see
        `TranscriptionBuilder.prepare`. Errors call the recording `field`."""
        self._service.check_room(options.get("priority", 0))
        prepared = await self._service.recordings.prepare(media, params, field, **options)
        self._prepared(prepared.request_id, prepared.timeout_s)
        return prepared

    async def transcribe(self, prepared: PreparedTranscription) -> AsyncGenerator[Transcriber]:
        """A recording's transcription as it grows: see `Recordings.transcribe`."""
        recorded: Transcriber | None = None
        async with aclosing(self._service.recordings.transcribe(prepared, self.arrival)) as steps:
            try:
                async for recorded in steps:
                    yield recorded
            finally:
                if recorded is not None:
                    self._observation.transcribed(recorded)

    async def transcription_deltas(
        self, prepared: PreparedTranscription
    ) -> AsyncGenerator[TranscriptionDelta]:
        """What a recording's transcription grows by; the last has the whole answer."""
        text, segments = "", 0
        async with aclosing(self.transcribe(prepared)) as steps:
            async for one in steps:
                grown, found = one.text[len(text) :], one.final_segments[segments:]
                text, segments = text + grown, segments + len(found)
                if grown or found or one.done:
                    whole = one.transcription() if one.done else None
                    yield TranscriptionDelta(grown, found, one.seek_s, whole)

    async def transcription(self, prepared: PreparedTranscription) -> Transcription:
        """A recording's whole transcription."""
        whole: Transcriber | None = None
        async with aclosing(self.transcribe(prepared)) as steps:
            async for transcriber in steps:
                whole = transcriber
        assert whole is not None  # it began
        return whole.transcription()

    async def prepare_live(self, params: LiveParams, **options: Unpack[CallOptions]) -> PreparedLive:
        """Validates a request to transcribe speech that goes on: see `TranscriptionBuilder.prepare_live`."""
        self._service.check_room(options.get("priority", 0))
        prepared = await self._service.live.prepare(params, **options)
        self._observation.request_id = prepared.request_id
        return prepared

    async def transcribe_live(
        self, prepared: PreparedLive, sound: AsyncIterator[Sound]
    ) -> AsyncGenerator[LiveDelta]:
        """What is said, as it is said: see `Live.transcribe`."""
        try:
            async with aclosing(self._service.live.transcribe(prepared, sound)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._observation.heard(prepared.transcriber)

    async def prepare_score(
        self,
        prompt: Prompt,
        targets: Sequence[SingletonPrompt],
        **options: Unpack[RequestOptions],
    ) -> PreparedRequest:
        """Validates and tokenizes a request to score: see `prepare` and `RequestBuilder.prepare_score`."""
        self._service.check_room(options.get("priority", 0))
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
        ends = await self._service.ends(prepared.sequences, self.arrival, self._observation.queued)
        self._observation.accepted(prepared.encoder_tokens, prepared.media_tokens)
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

    async def stream(
        self, prepared: Sequence[PreparedRequest], *, first: int | None = None
    ) -> AsyncGenerator[Piece]:
        """What the prompts' answers grow by. Close it to cancel the rest. For `first` see `generate`.

        Raises DeadlineExceeded if the time is over before there is any token; with some, it ends with
        finish reason `deadline` and they stand.
        """
        request_builder = self._service.request_builder
        output_processors = [request_builder.output_processor(one) for one in prepared]
        async with aclosing(self._run(prepared, output_processors, whole=False, first=first)) as pieces:
            async for piece in pieces:
                yield piece

    async def generate(
        self, prepared: Sequence[PreparedRequest], *, first: int | None = None
    ) -> list[RequestOutput]:
        """The prompts' whole answers; otherwise as `stream`. `first` is the first prompt's number in a call
        that generates more than once; their time counts from now."""
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
        first: int | None = None,
    ) -> AsyncGenerator[Piece]:
        empty, arrival = True, self.arrival
        if first is not None:
            arrival = replace(arrival, at=Arrival.now().at)
        pieces_of = self._service.pieces(
            prepared, output_processors, arrival=arrival, whole=whole, queued=self._observation.queued
        )
        async with aclosing(pieces_of) as pieces:
            async for piece in pieces:
                delta = piece.delta
                if delta.finish_reason is not None:
                    self._observation.finished(delta.finish_reason)
                if empty:
                    if delta.finish_reason == "deadline" and not delta.token_ids:
                        raise DeadlineExceeded("the request's time was over before its first token")
                    for request in prepared:
                        self._observation.accepted(request.encoder_tokens, request.media_tokens)
                    empty = False
                self._observation.grew((first or 0) + piece.prompt, delta.index, len(delta.token_ids))
                yield piece


def _pooled(prepared: PreparedEmbedding, states: Sequence[torch.Tensor]) -> list[EmbeddingOutput]:
    return [embedding_output(prepared.request_id, one, prepared.pooling) for one in states]


def _each(prompts: Sequence[P], work: Callable[[P], T]) -> list[T]:
    """What the work makes of each prompt. Its InvalidRequest says which of several prompts is at fault."""
    made: list[T] = []
    for number, prompt in enumerate(prompts):
        with naming_prompt(number, len(prompts)):
            made.append(work(prompt))
    return made
