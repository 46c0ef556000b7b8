"""`AsyncClient`: for asyncio, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2

from tandem.client.connection import Connection, positive, serving, typed_errors
from tandem.errors import OF_ONE_REQUEST, DeadlineExceeded, TandemError, Unavailable
from tandem.inputs import Audio, CallOptions, Prompt, RequestOptions, SingletonPrompt
from tandem.live import LiveDelta, LiveParams, Sound
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, Pooling, for_each
from tandem.protocol import wire, wire_answers, wire_live, wire_transcription
from tandem.protocol.wire_answers import ServedModel
from tandem.transcription import Transcription, TranscriptionDelta, TranscriptionOptions
from tandem.v1 import inference_pb2 as pb


class AsyncClient(Connection):
    """`Client` for asyncio, with the same methods and arguments. One event loop makes and uses it.

    Cancelling the task that awaits an answer cancels the request on the server.

    Example::

        async with AsyncClient("localhost:9000") as client:
            async with aclosing(client.stream("translate English to French: Good morning.")) as deltas:
                async for delta in deltas:
                    print(delta.text, end="", flush=True)
    """

    _grpc = grpc.aio

    async def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        decoder_prompt: SingletonPrompt | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput:
        """See `Client.generate`."""
        request = self._generate_request(pb.GenerateRequest, prompt, params, decoder_prompt, options)
        with typed_errors():
            response = await self._stub.Generate(request, **self._request_call(options))
        return wire_answers.output_of(request, response)

    async def generate_many(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        concurrency: int = 64,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """See `Client.generate_many`."""
        outputs = await self._generate_all(prompts, params, concurrency, (), options)
        return cast(list[RequestOutput], outputs)

    async def generate_each(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        concurrency: int = 64,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput | TandemError]:
        """See `Client.generate_each`."""
        return await self._generate_all(prompts, params, concurrency, OF_ONE_REQUEST, options)

    async def _generate_all(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None,
        concurrency: int,
        kept: tuple[type[TandemError], ...],
        options: RequestOptions,
    ) -> list[RequestOutput | TandemError]:
        free = asyncio.Semaphore(positive(concurrency, "concurrency"))

        async def answer(prompt: Prompt, one: Params | None) -> RequestOutput | TandemError:
            async with free:
                try:
                    return await self.generate(prompt, one, **options)
                except kept as error:
                    return error

        pairs = zip(prompts, for_each(params, len(prompts), "params"), strict=True)
        tasks = [asyncio.create_task(answer(prompt, one)) for prompt, one in pairs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # nothing happens to those that are done

    def stream(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        decoder_prompt: SingletonPrompt | None = None,
        **options: Unpack[RequestOptions],
    ) -> AsyncGenerator[TextDelta, None]:
        """See `Client.stream`. A loop that may be left early needs `contextlib.aclosing` around the
        iterator: Python closes an asynchronous one only some time later."""
        request = self._generate_request(pb.GenerateStreamRequest, prompt, params, decoder_prompt, options)
        return self._deltas(request, self._request_call(options))

    async def _deltas(
        self, request: pb.GenerateStreamRequest, settings: dict[str, Any]
    ) -> AsyncGenerator[TextDelta, None]:
        call = self._stub.GenerateStream(request, **settings)
        try:
            with typed_errors():
                async for message in call:
                    yield wire_answers.delta_of(message.delta)
        finally:
            call.cancel()

    async def score(
        self,
        prompt: Prompt,
        targets: SingletonPrompt | Sequence[SingletonPrompt],
        **options: Unpack[RequestOptions],
    ) -> ScoreOutput:
        """See `Client.score`."""
        request = self._score_request(prompt, targets, options)
        with typed_errors():
            response = await self._stub.Score(request, **self._request_call(options))
        return wire_answers.scores_of(request, response)

    async def embed(
        self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "mean", **options: Unpack[RequestOptions]
    ) -> list[EmbeddingOutput]:
        """See `Client.embed`."""
        request = self._embed_request(prompts, pooling, options)
        with typed_errors():
            response = await self._stub.Embed(request, **self._request_call(options))
        return wire_answers.embeddings_of(request, response)

    async def transcribe(
        self,
        audio: Audio,
        *,
        options: CallOptions | None = None,
        **asked: Unpack[TranscriptionOptions],
    ) -> Transcription:
        """See `Client.transcribe`."""
        options = options or {}
        request = self._transcribe_request(pb.TranscribeRequest, audio, asked, options)
        with typed_errors():
            response = await self._stub.Transcribe(request, **self._request_call(options))
        return wire_transcription.transcription_of(response.transcription)

    def stream_transcription(
        self,
        audio: Audio,
        *,
        options: CallOptions | None = None,
        **asked: Unpack[TranscriptionOptions],
    ) -> AsyncGenerator[TranscriptionDelta, None]:
        """See `Client.stream_transcription`, and `stream` about leaving it early."""
        options = options or {}
        request = self._transcribe_request(pb.TranscribeStreamRequest, audio, asked, options)
        return self._transcription_deltas(request, self._request_call(options))

    async def _transcription_deltas(
        self, request: pb.TranscribeStreamRequest, settings: dict[str, Any]
    ) -> AsyncGenerator[TranscriptionDelta, None]:
        call = self._stub.TranscribeStream(request, **settings)
        try:
            with typed_errors():
                async for message in call:
                    yield wire_transcription.delta_of(message)
        finally:
            call.cancel()

    async def transcribe_live(
        self,
        sound: AsyncIterable[Sound],
        params: LiveParams | None = None,
        *,
        options: CallOptions | None = None,
    ) -> AsyncGenerator[LiveDelta, None]:
        """See `Client.transcribe_live`, and `stream` about leaving it early."""
        start = wire_live.start_message(params or LiveParams(), options or {})

        async def messages() -> AsyncGenerator[pb.TranscribeLiveRequest]:
            yield start
            async for one in sound:
                yield wire_live.sound_message(one)

        call = self._stub.TranscribeLive(messages(), metadata=self._metadata)
        try:
            with typed_errors():
                async for message in call:
                    yield wire_live.delta_of(message)
        finally:
            call.cancel()

    async def tokenize(
        self, text: str, *, model: str | None = None, timeout_s: float | None = None
    ) -> list[int]:
        """See `Client.tokenize`."""
        request = wire.tokenize_request(text, model)
        with typed_errors():
            return list((await self._stub.Tokenize(request, **self._call(timeout_s))).token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """See `Client.detokenize`."""
        request = wire.detokenize_request(token_ids, skip_special_tokens=skip_special_tokens, model=model)
        with typed_errors():
            text: str = (await self._stub.Detokenize(request, **self._call(timeout_s))).text
        return text

    async def models(self, *, timeout_s: float | None = None) -> list[ServedModel]:
        """See `Client.models`."""
        with typed_errors():
            response = await self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout_s))
        return wire_answers.models_of(response)

    async def health(self, *, timeout_s: float | None = None) -> bool:
        """See `Client.health`."""
        try:
            with typed_errors():
                request = health_pb2.HealthCheckRequest()
                response = await self._health.Check(request, **self._call(timeout_s))
        except (Unavailable, DeadlineExceeded):
            return False
        return serving(response)

    async def close(self) -> None:
        """Closes the connection; calls under way end with `asyncio.CancelledError`."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
