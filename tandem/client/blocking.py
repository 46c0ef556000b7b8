"""`Client`: blocking, for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, cast

import grpc
from grpc_health.v1 import health_pb2
from tqdm import tqdm

from tandem.client.connection import Connection, positive, serving, typed_errors
from tandem.errors import OF_ONE_REQUEST, DeadlineExceeded, TandemError, Unavailable
from tandem.inputs import Audio, CallOptions, Prompt, RequestOptions, SingletonPrompt
from tandem.live import LiveDelta, LiveParams, Sound
from tandem.outputs import EmbeddingOutput, RequestOutput, ScoreOutput, TextDelta
from tandem.params import Params, Pooling, for_each
from tandem.protocol import wire, wire_answers, wire_live, wire_transcription
from tandem.protocol.rpc import error_of
from tandem.protocol.wire_answers import ServedModel
from tandem.transcription import Transcription, TranscriptionDelta, TranscriptionOptions
from tandem.v1 import inference_pb2 as pb


class Client(Connection):
    """A connection to a Tandem server, to be closed or used in a `with` statement. Threads may share it.

    `target` is a gRPC name ("localhost:9000", "dns:///tandem:9000"); `timeout_s`, in seconds, holds for
    every call that sets none; `credentials` turn on TLS; `metadata` goes with every call, for a token
    that a gateway wants; `api_key` is for a server that asks for one. Making a client does not connect yet.

    Every method raises the errors of `tandem.errors`, the same that the server raised. A call that finds
    no server, or loses it before anything has come back, is tried again for a few seconds, then raises
    `Unavailable`.

    Example::

        with Client("localhost:9000") as client:
            print(client.generate("translate English to French: Good morning.").outputs[0].text)
    """

    _grpc = grpc

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

    def embed(
        self, prompts: Prompt | Sequence[Prompt], pooling: Pooling = "mean", **options: Unpack[RequestOptions]
    ) -> list[EmbeddingOutput]:
        """The encoder's hidden states of a prompt, or of each of a list, pooled as in `LLM.embed`.

        Raises `DeadlineExceeded` where the `timeout_s` passes.
        """
        request = self._embed_request(prompts, pooling, options)
        with typed_errors():
            response = self._stub.Embed(request, **self._request_call(options))
        return wire_answers.embeddings_of(request, response)

    def transcribe(
        self,
        audio: Audio,
        *,
        options: CallOptions | None = None,
        **asked: Unpack[TranscriptionOptions],
    ) -> Transcription:
        """Transcribes one recording of any length, of any kind that `LLM.transcribe` takes.

        `asked` are the fields of `TranscriptionParams`, as `language="en"`; `options` those of any request,
        as `{"timeout_s": 300}`. Raises `DeadlineExceeded` where its time passes.
        """
        options = options or {}
        request = self._transcribe_request(pb.TranscribeRequest, audio, asked, options)
        with typed_errors():
            response = self._stub.Transcribe(request, **self._request_call(options))
        return wire_transcription.transcription_of(response.transcription)

    def stream_transcription(
        self,
        audio: Audio,
        *,
        options: CallOptions | None = None,
        **asked: Unpack[TranscriptionOptions],
    ) -> Generator[TranscriptionDelta, None, None]:
        """Transcribes one recording; each delta is what has become final since the one
        before, and the last has the whole answer. The arguments are those of `transcribe`. Closing the
        iterator cancels the request on the server."""
        options = options or {}
        request = self._transcribe_request(pb.TranscribeStreamRequest, audio, asked, options)
        return self._transcription_deltas(request, self._request_call(options))

    def _transcription_deltas(
        self, request: pb.TranscribeStreamRequest, settings: dict[str, Any]
    ) -> Generator[TranscriptionDelta, None, None]:
        call = self._stub.TranscribeStream(request, **settings)
        try:
            with typed_errors():
                for message in call:
                    yield wire_transcription.delta_of(message)
        finally:
            call.cancel()

    def transcribe_live(
        self, sound: Iterable[Sound], params: LiveParams | None = None, *, options: CallOptions | None = None
    ) -> Generator[LiveDelta, None, None]:
        """Transcribes speech that goes on. `sound` is read in another thread, as fast as the server takes
        it; each delta is about one turn, and its final text is never taken back.

        Closing the iterator ends the session. The options are those of any request, without a time: the
        server ends a session in which nothing comes.
        """
        start = wire_live.start_message(params or LiveParams(), options or {})
        call = self._stub.TranscribeLive(wire_live.messages(start, sound), metadata=self._metadata)
        try:
            with typed_errors():
                for message in call:
                    yield wire_live.delta_of(message)
        finally:
            call.cancel()

    def tokenize(self, text: str, *, model: str | None = None, timeout_s: float | None = None) -> list[int]:
        """The token ids the encoder is given for `text`, special tokens included."""
        request = wire.tokenize_request(text, model)
        with typed_errors():
            return list(self._stub.Tokenize(request, **self._call(timeout_s)).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = False,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """The text of ids that the decoder generates, as the tokenizer's `decode` gives it."""
        request = wire.detokenize_request(token_ids, skip_special_tokens=skip_special_tokens, model=model)
        with typed_errors():
            text: str = self._stub.Detokenize(request, **self._call(timeout_s)).text
        return text

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
