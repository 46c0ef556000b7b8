"""Clients of a Tandem server's gRPC port: `Client`, and `AsyncClient` for asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tqdm import tqdm

from tandem.connection import OPTIONS, Metadata, Settings, positive, serving, typed_errors
from tandem.errors import OF_ONE_REQUEST, DeadlineExceeded, TandemError, Unavailable
from tandem.inputs import Prompt, RequestOptions, SingletonPrompt
from tandem.outputs import RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, for_each
from tandem.protocol import wire, wire_answers
from tandem.protocol.rpc import error_of
from tandem.protocol.wire_answers import ServedModel
from tandem.v1 import inference_pb2 as pb
from tandem.v1.inference_pb2_grpc import InferenceServiceStub


class Client(Settings):
    """A connection to a Tandem server, to be closed or used in a `with` statement. Threads may share it.

    `target` is a gRPC name ("localhost:9000", "dns:///tandem:9000"); `timeout_s`, in seconds, holds for
    every call that sets none; `credentials` turn on TLS; `metadata` goes with every call, for a token
    that a gateway wants. Making a client does not connect yet.

    Every method raises the errors of `tandem.errors`, the same that the server raised. A call that finds
    no server, or loses it before anything has come back, is tried again for a few seconds, then raises
    `Unavailable`.

    Example::

        with Client("localhost:9000") as client:
            print(client.generate("translate English to French: Good morning.").outputs[0].text)
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
    ) -> None:
        super().__init__(timeout_s, metadata)
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=OPTIONS)
        self._stub = InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def generate(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        decoder_prompt: SingletonPrompt | None = None,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput:
        """Answers one prompt, of any kind of `tandem.inputs`.

        `decoder_prompt` is the beginning of the answer, for a prompt that does not say it itself. Languages
        and task are as for `LLM.generate`. A request whose `timeout_s` passes ends with finish reason
        "deadline" and what it has generated. The output's `encoder_prompt_token_ids` are those of the prompt;
        for text they are empty.
        """
        request = self._generate_request(pb.GenerateRequest, prompt, params, decoder_prompt, options)
        with typed_errors():
            response = self._stub.Generate(request, **self._request_call(options))
        return wire_answers.output_of(request, response)

    def generate_many(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        concurrency: int = 64,
        use_tqdm: bool = False,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """Answers all prompts, in their order, `concurrency` of them at a time. `timeout_s` is each one's.
        An error ends the rest. `use_tqdm` shows a progress bar."""
        outputs = self._generate_all(prompts, params, concurrency, use_tqdm, (), options)
        return cast(list[RequestOutput], outputs)

    def generate_each(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None = None,
        *,
        concurrency: int = 64,
        use_tqdm: bool = False,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput | TandemError]:
        """As `generate_many`, but the error of a request that fails stands in its answer's place, and the
        others are answered. A server that is gone or full ends them all."""
        return self._generate_all(prompts, params, concurrency, use_tqdm, OF_ONE_REQUEST, options)

    def _generate_all(
        self,
        prompts: Sequence[Prompt],
        params: Params | Sequence[Params] | None,
        concurrency: int,
        use_tqdm: bool,
        kept: tuple[type[TandemError], ...],
        options: RequestOptions,
    ) -> list[RequestOutput | TandemError]:
        """The answers; errors that are not `kept` in their places end the rest."""
        requests = [
            self._generate_request(pb.GenerateRequest, prompt, one, None, options)
            for prompt, one in zip(prompts, for_each(params, len(prompts), "params"), strict=True)
        ]
        free, failed = threading.Semaphore(positive(concurrency, "concurrency")), threading.Event()

        def done(call: grpc.Future[pb.GenerateResponse]) -> None:
            error: Any = call.exception()
            if error is not None and not isinstance(error_of(error.code(), error.details()), kept):
                failed.set()
            progress.update()
            free.release()

        progress = tqdm(total=len(requests), desc="Generating", unit="prompt", disable=not use_tqdm)
        calls: list[grpc.Future[pb.GenerateResponse]] = []
        try:
            for request in requests:
                free.acquire()
                if failed.is_set():
                    break
                calls.append(self._stub.Generate.future(request, **self._request_call(options)))
                calls[-1].add_done_callback(done)
            answers: list[RequestOutput | TandemError] = []
            # After a failure there are fewer calls, and one of them raises here.
            for request, call in zip(requests, calls, strict=False):
                try:
                    with typed_errors():
                        answers.append(wire_answers.output_of(request, call.result()))
                except kept as error:
                    answers.append(error)
            return answers
        finally:
            for call in calls:
                call.cancel()  # nothing happens to those that are done
            progress.close()

    def stream(
        self,
        prompt: Prompt,
        params: Params | None = None,
        *,
        decoder_prompt: SingletonPrompt | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generator[TextDelta, None, None]:
        """Answers one prompt as the tokens are generated; the arguments are those of `generate`.

        Closing the iterator, as leaving a `for` loop over it does, cancels the request on the server.
        """
        request = self._generate_request(pb.GenerateStreamRequest, prompt, params, decoder_prompt, options)
        return self._deltas(request, self._request_call(options))

    def _deltas(
        self, request: pb.GenerateStreamRequest, settings: dict[str, Any]
    ) -> Generator[TextDelta, None, None]:
        call = self._stub.GenerateStream(request, **settings)
        try:
            with typed_errors():
                for message in call:
                    yield wire_answers.delta_of(message.delta)
        finally:
            call.cancel()

    def score(
        self,
        prompt: Prompt,
        targets: SingletonPrompt | Sequence[SingletonPrompt],
        **options: Unpack[RequestOptions],
    ) -> ScoreOutput:
        """The log-likelihood of a target, or of each of a list, as answers to one prompt.

        Targets are scored after the prompt's decoder prompt, if it has one. Text is tokenized as a label is,
        for a multilingual model in its `target_language`; token ids are taken as they are. Raises
        `DeadlineExceeded` where the `timeout_s` passes.
        """
        request = self._score_request(prompt, targets, options)
        with typed_errors():
            response = self._stub.Score(request, **self._request_call(options))
        return wire_answers.scores_of(request, response)

    def tokenize(self, text: str, *, model: str | None = None, timeout_s: float | None = None) -> list[int]:
        """The token ids the encoder is given for `text`, special tokens included."""
        request = wire.tokenize_request(text, model)
        with typed_errors():
            return list(self._stub.Tokenize(request, **self._call(timeout_s)).token_ids)

    def models(self, *, timeout_s: float | None = None) -> list[ServedModel]:
        """The models served."""
        with typed_errors():
            response = self._stub.ListModels(pb.ListModelsRequest(), **self._call(timeout_s))
        return wire_answers.models_of(response)

    def health(self, *, timeout_s: float | None = None) -> bool:
        """Whether there is a server and it can answer requests."""
        try:
            with typed_errors():
                response = self._health.Check(health_pb2.HealthCheckRequest(), **self._call(timeout_s))
        except (Unavailable, DeadlineExceeded):
            return False
        return serving(response)

    def close(self) -> None:
        """Closes the connection; calls under way end with `Cancelled`."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(Settings):
    """`Client` for asyncio, with the same methods and arguments. Made and used in one event loop.

    Cancelling the task that awaits an answer cancels the request on the server.

    Example::

        async with AsyncClient("localhost:9000") as client:
            async with aclosing(client.stream("translate English to French: Good morning.")) as deltas:
                async for delta in deltas:
                    print(delta.text, end="", flush=True)
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 60.0,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
    ) -> None:
        super().__init__(timeout_s, metadata)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=OPTIONS)
        self._stub = InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = health_pb2_grpc.HealthStub(self._channel)

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

    async def tokenize(
        self, text: str, *, model: str | None = None, timeout_s: float | None = None
    ) -> list[int]:
        """See `Client.tokenize`."""
        request = wire.tokenize_request(text, model)
        with typed_errors():
            return list((await self._stub.Tokenize(request, **self._call(timeout_s))).token_ids)

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
