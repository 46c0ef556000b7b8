"""Both clients against a server in this process whose answers each test scripts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tandem.client import AsyncClient, Client
from tandem.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RequestTooLarge,
    TandemError,
    Unavailable,
)
from tandem.inputs import Prompt, TokensPrompt
from tandem.live import LiveDelta, LiveParams, Sound
from tandem.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    RequestOutput,
    ScoreOutput,
    TargetScore,
    TextDelta,
)
from tandem.params import SamplingParams
from tandem.protocol import wire_answers, wire_live, wire_transcription
from tandem.protocol.rpc import add_inference_service, parse, set_error
from tandem.transcription import Transcription, TranscriptionDelta
from tandem.v1 import inference_pb2 as pb

WAIT_S = 20.0  # limit for what must happen; a passing test does not wait so long


class Servicer(health_pb2_grpc.HealthServicer):
    """Answers with the request's encoder text, unless a test puts something else in a method's place."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: dict[str, Any] = {}
        self.status = health_pb2.HealthCheckResponse.SERVING
        self.cancelled = threading.Event()
        self.generate: Callable[[pb.GenerateRequest], Awaitable[pb.GenerateResponse]] = self.echo
        self.stream: Callable[[pb.GenerateStreamRequest], AsyncIterator[TextDelta]] = self.echo_words

    async def echo(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        sample = CompletionOutput(0, request.encoder_prompt.text, [7, 1], "stop")
        return wire_answers.generate_response(RequestOutput("r", None, [5, 1], None, [0], [sample]))

    async def echo_words(self, request: pb.GenerateStreamRequest) -> AsyncIterator[TextDelta]:
        for word in request.encoder_prompt.text.split():
            yield TextDelta(0, word, [7])
        yield TextDelta(0, "", [1], finish_reason="stop")

    async def Generate(self, data: bytes, context: Any) -> pb.GenerateResponse:
        request = self._read(pb.GenerateRequest, data, context)
        try:
            return await self.generate(request)
        except TandemError as error:
            set_error(context, error)
            return pb.GenerateResponse()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GenerateStream(self, data: bytes, context: Any) -> AsyncIterator[pb.GenerateStreamResponse]:
        request = self._read(pb.GenerateStreamRequest, data, context)
        try:
            async for delta in self.stream(request):
                yield wire_answers.stream_response(delta)
        except TandemError as error:
            set_error(context, error)
        except (asyncio.CancelledError, GeneratorExit):
            # A call that is cancelled while a message is being written drops this generator, which waits at a
            # `yield` then and is closed instead.
            self.cancelled.set()
            raise

    async def Score(self, data: bytes, context: Any) -> pb.ScoreResponse:
        request = self._read(pb.ScoreRequest, data, context)
        scores = [TargetScore([7, 1], [-0.1 * n, -2.0], -0.1 * n - 2.0) for n in range(len(request.targets))]
        return wire_answers.score_response(ScoreOutput("r", None, [5, 1], None, [0], scores))

    async def Transcribe(self, data: bytes, context: Any) -> pb.TranscribeResponse:
        """A text as long as the file."""
        request = self._read(pb.TranscribeRequest, data, context)
        return wire_transcription.transcribe_response("r", self._transcription(request))

    async def TranscribeStream(self, data: bytes, context: Any) -> AsyncIterator[pb.TranscribeStreamResponse]:
        request = self._read(pb.TranscribeStreamRequest, data, context)
        whole = self._transcription(request)
        for text, answer in ((whole.text[:1], None), (whole.text[1:], whole)):
            delta = TranscriptionDelta(text, [], 1.0, answer)
            yield wire_transcription.transcribe_stream_response("r", delta)

    def _transcription(self, request: Any) -> Transcription:
        params = wire_transcription.params_of(request)
        text = "a" * len(request.audio)
        return Transcription(text, params.language or "en", 2.0, [], "sequential", 1, 2)

    async def TranscribeLive(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[pb.TranscribeLiveResponse]:
        """A turn for each commit, whose text is as long as its sound."""
        start, turn, heard = None, 0, 0
        async for data in requests:
            request = self._read(pb.TranscribeLiveRequest, data, context)
            if start is None:
                start = wire_live.params_of(request.start)
            elif request.WhichOneof("content") == "pcm":
                heard += len(request.pcm)
            else:
                delta = LiveDelta(turn, "a" * heard, "", 0.0, 1.0, start.language or "en")
                yield wire_live.live_response("r", delta)
                turn, heard = turn + 1, 0

    async def Tokenize(self, data: bytes, context: Any) -> pb.TokenizeResponse:
        request = self._read(pb.TokenizeRequest, data, context)
        return pb.TokenizeResponse(token_ids=[*request.text.encode(), 1])

    async def Embed(self, data: bytes, context: Any) -> pb.EmbedResponse:
        """A state of a prompt's ids for each of them."""
        request = self._read(pb.EmbedRequest, data, context)
        ids = [np.array(prompt.token_ids.ids, np.float32) for prompt in request.encoder_prompts]
        pooled = request.pooling != pb.POOLING_NONE
        return wire_answers.embed_response(
            "r",
            [EmbeddingOutput("r", len(one), one if pooled else np.stack([one] * len(one))) for one in ids],
        )

    async def Detokenize(self, data: bytes, context: Any) -> pb.DetokenizeResponse:
        request = self._read(pb.DetokenizeRequest, data, context)
        return pb.DetokenizeResponse(text=f"{list(request.token_ids)} {request.skip_special_tokens}")

    async def ListModels(self, data: bytes, context: Any) -> pb.ListModelsResponse:
        self._read(pb.ListModelsRequest, data, context)
        return wire_answers.list_models_response(
            [wire_answers.ServedModel("quickstart", "t5", 512, 256, 128)]
        )

    async def Check(self, _request: Any, _context: Any) -> Any:
        return health_pb2.HealthCheckResponse(status=self.status)

    def _read(self, kind: Any, data: bytes, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        self.requests.append(parse(kind, data, 2**20))
        return self.requests[-1]


class Server:
    """The servicer on a port, in a thread with an event loop of its own."""

    def __init__(self) -> None:
        self.servicer = Servicer()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self, port: int = 0) -> None:
        self._thread.start()
        self._port = self._run(self._start(port))

    async def _start(self, port: int) -> int:
        self._server = grpc.aio.server()
        add_inference_service(self.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        return port

    def stop(self) -> None:
        if self._loop.is_closed():
            return
        self._run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def servicer(server: Server) -> Servicer:
    return server.servicer


Ask = Callable[..., Any]


@pytest.fixture(params=["Client", "AsyncClient"])
def ask(request: pytest.FixtureRequest, server: Server) -> Ask:
    """Calls a method of a new client of either kind; a stream comes back as a list."""

    def of_client(method: str, *args: Any, target: str = server.target, **kwargs: Any) -> Any:
        settings = kwargs.pop("settings", {})
        with Client(target, **settings) as client:
            answer = getattr(client, method)(*args, **kwargs)
            return list(answer) if method.startswith("stream") else answer

    def of_async_client(method: str, *args: Any, target: str = server.target, **kwargs: Any) -> Any:
        settings = kwargs.pop("settings", {})

        async def run() -> Any:
            async with AsyncClient(target, **settings) as client:
                if method.startswith("stream"):
                    return [delta async for delta in getattr(client, method)(*args, **kwargs)]
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(run())

    return of_client if request.param == "Client" else of_async_client


def test_generate(ask: Ask, servicer: Servicer) -> None:
    output = ask(
        "generate",
        "Grüße",
        SamplingParams(max_tokens=5),
        decoder_prompt="Le",
        model="m",
        timeout_s=7,
        priority=2,
    )

    assert output == RequestOutput(
        "r", "Grüße", [], "Le", [0], [CompletionOutput(0, "Grüße", [7, 1], "stop")]
    )
    assert servicer.requests == [
        pb.GenerateRequest(
            encoder_prompt=pb.EncoderPrompt(text="Grüße"),
            decoder_prompt=pb.Prompt(text="Le"),
            sampling_params=pb.SamplingParams(decoding=pb.DecodingParams(max_tokens=5)),
            options=pb.RequestOptions(model="m", priority=2, timeout_ms=7000),
        )
    ]


def test_score(ask: Ask, servicer: Servicer) -> None:
    targets = ["eins", TokensPrompt(prompt_token_ids=[7, 1])]
    output = ask("score", "one", targets, model="m", timeout_s=7, priority=2)
    scores = [TargetScore([7, 1], [0.0, -2.0], -2.0), TargetScore([7, 1], [-0.1, -2.0], -2.1)]
    assert output == ScoreOutput("r", "one", [], None, [0], scores)
    ask("score", {"encoder_prompt": "one", "decoder_prompt": "ei"}, "ns")
    assert servicer.requests == [
        pb.ScoreRequest(
            encoder_prompt=pb.EncoderPrompt(text="one"),
            targets=[pb.Prompt(text="eins"), pb.Prompt(token_ids=pb.TokenIds(ids=[7, 1]))],
            options=pb.RequestOptions(model="m", priority=2, timeout_ms=7000),
        ),
        pb.ScoreRequest(
            encoder_prompt=pb.EncoderPrompt(text="one"),
            decoder_prompt=pb.Prompt(text="ei"),
            targets=[pb.Prompt(text="ns")],
            options=pb.RequestOptions(timeout_ms=60_000),
        ),
    ]
    with pytest.raises(InvalidRequest) as caught:
        ask("score", "one", ["eins", 3])
    assert caught.value.field == "targets.1"


def test_a_prompt_of_ids_comes_back_in_the_output(ask: Ask) -> None:
    output = ask("generate", TokensPrompt(prompt_token_ids=[9, 1]))
    assert (output.encoder_prompt, output.encoder_prompt_token_ids) == (None, [9, 1])


def test_generate_many_answers_in_order_and_bounded(ask: Ask, servicer: Servicer) -> None:
    running = most = 0

    async def slow(request: pb.GenerateRequest) -> pb.GenerateResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05 if request.encoder_prompt.text == "0" else 0.01)
        running -= 1
        return await servicer.echo(request)

    servicer.generate = slow
    prompts: list[Prompt] = [str(i) for i in range(20)]
    params = [SamplingParams(seed=i) for i in range(20)]

    outputs = ask("generate_many", prompts, params, concurrency=3)

    assert [output.outputs[0].text for output in outputs] == prompts
    assert {r.encoder_prompt.text: r.sampling_params.decoding.seed for r in servicer.requests} == {
        str(i): i for i in range(20)
    }
    assert most == 3
    with pytest.raises(InvalidRequest, match=r"must be SamplingParams.* not dict"):
        ask("generate_many", prompts, {"temperature": 0})


def test_generate_many_shows_progress_where_asked(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(server.target) as client:
        client.generate_many(["a", "b", "c"])
        assert capsys.readouterr().err == ""
        client.generate_many(["a", "b", "c"], use_tqdm=True)
    assert "3/3" in capsys.readouterr().err


def test_generate_many_stops_at_an_error(ask: Ask, servicer: Servicer) -> None:
    async def refuse(request: pb.GenerateRequest) -> pb.GenerateResponse:
        if request.encoder_prompt.text == "2":
            raise InvalidRequest("will not do", field="encoder_prompt")
        return await servicer.echo(request)

    servicer.generate = refuse
    with pytest.raises(InvalidRequest, match="will not do"):
        ask("generate_many", [str(i) for i in range(1000)], concurrency=2)
    assert len(servicer.requests) < 1000


def test_generate_each_puts_errors_in_their_places(ask: Ask, servicer: Servicer) -> None:
    async def refuse(request: pb.GenerateRequest) -> pb.GenerateResponse:
        if request.encoder_prompt.text in ("2", "4"):
            raise InvalidRequest("will not do", field="encoder_prompt")
        if request.encoder_prompt.text == "gone":
            raise ModelNotFound("gone")
        return await servicer.echo(request)

    servicer.generate = refuse
    answers = ask("generate_each", [str(i) for i in range(6)], concurrency=2)
    assert [type(answer) for answer in answers] == [
        InvalidRequest if i in (2, 4) else RequestOutput for i in range(6)
    ]
    assert str(answers[2]) == "encoder_prompt: will not do"
    assert answers[5].outputs[0].text == "5"
    with pytest.raises(ModelNotFound):
        ask("generate_each", ["1", "gone", *map(str, range(1000))], concurrency=2)
    assert len(servicer.requests) < 1000


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"params": [SamplingParams()]}, "params"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_generate_many_checks_its_arguments(ask: Ask, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask("generate_many", ["a", "b"], **arguments)
    assert caught.value.field == field


def test_generate_many_of_nothing(ask: Ask) -> None:
    assert ask("generate_many", []) == []


def test_stream(ask: Ask, servicer: Servicer) -> None:
    assert ask("stream", "one two", SamplingParams(seed=3)) == [
        TextDelta(0, "one", [7]),
        TextDelta(0, "two", [7]),
        TextDelta(0, "", [1], finish_reason="stop"),
    ]
    assert servicer.requests[0].sampling_params.decoding.seed == 3


async def endless(_request: pb.GenerateStreamRequest) -> AsyncIterator[TextDelta]:
    while True:
        yield TextDelta(0, "x", [7])
        await asyncio.sleep(0.005)


def test_closing_a_stream_cancels_the_call(server: Server) -> None:
    server.servicer.stream = endless
    with Client(server.target) as client:
        with closing(client.stream("x")) as deltas:
            assert next(deltas).text == "x"
        assert server.servicer.cancelled.wait(WAIT_S)


def test_leaving_a_loop_over_a_stream_cancels_the_call(server: Server) -> None:
    server.servicer.stream = endless
    with Client(server.target) as client:
        for _ in client.stream("x"):
            break
        assert server.servicer.cancelled.wait(WAIT_S)


async def test_closing_an_asynchronous_stream_cancels_the_call(server: Server) -> None:
    server.servicer.stream = endless
    async with AsyncClient(server.target) as client:
        async with aclosing(client.stream("x")) as deltas:
            assert (await anext(deltas)).text == "x"
        assert await asyncio.to_thread(server.servicer.cancelled.wait, WAIT_S)


async def test_cancelling_the_task_cancels_the_call(server: Server) -> None:
    started = threading.Event()

    async def hang(_request: pb.GenerateRequest) -> pb.GenerateResponse:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    server.servicer.generate = hang
    async with AsyncClient(server.target) as client:
        task = asyncio.create_task(client.generate("x"))
        assert await asyncio.to_thread(started.wait, WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.servicer.cancelled.wait, WAIT_S)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("must be at least 0", field="temperature"),
        ModelNotFound("no model 'm'", field="model"),
        Overloaded("4096 requests are waiting"),
        DeadlineExceeded("nothing was generated"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_the_servers_errors_are_raised(ask: Ask, servicer: Servicer, method: str, error: TandemError) -> None:
    async def fail(_request: object) -> Any:
        raise error

    async def fail_later(_request: object) -> AsyncIterator[TextDelta]:
        yield TextDelta(0, "x", [7])
        raise error

    servicer.generate, servicer.stream = fail, fail_later
    with pytest.raises(type(error)) as caught:
        ask(method, "x")
    assert (caught.value.message, caught.value.field) == (error.message, error.field)


def test_grpcs_own_refusal_of_a_long_message_is_typed(ask: Ask) -> None:
    with pytest.raises(RequestTooLarge):
        ask("generate", "x" * 5 * 2**20)


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_an_answer_that_never_comes_ends_at_the_deadline(ask: Ask, servicer: Servicer, method: str) -> None:
    async def hang(_request: object) -> Any:
        await asyncio.Event().wait()

    async def hang_later(_request: object) -> AsyncIterator[TextDelta]:
        yield TextDelta(0, "x", [7])
        await asyncio.Event().wait()

    servicer.generate, servicer.stream = hang, hang_later
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(method, "x", timeout_s=0.2)
    assert time.monotonic() - begin >= 0.2
    assert servicer.requests[0].options.timeout_ms == 200
    assert servicer.cancelled.wait(WAIT_S)


def test_a_server_that_is_not_up_yet_is_tried_again(server: Server, ask: Ask) -> None:
    target = server.target
    server.stop()
    late = Server()
    timer = threading.Timer(0.3, late.start, args=(int(target.rpartition(":")[2]),))
    timer.start()
    try:
        assert ask("generate", "x", target=target).outputs[0].text == "x"
    finally:
        timer.join()
        late.stop()


@pytest.mark.parametrize("error", [Overloaded("full"), InvalidRequest("no"), Unavailable("no decoder")])
def test_an_answer_is_not_tried_again(ask: Ask, servicer: Servicer, error: TandemError) -> None:
    async def fail(_request: object) -> Any:
        raise error

    servicer.generate = fail
    with pytest.raises(type(error)):
        ask("generate", "x")
    assert len(servicer.requests) == 1


def test_a_stream_that_has_begun_is_not_tried_again(ask: Ask, servicer: Servicer) -> None:
    async def break_off(_request: object) -> AsyncIterator[TextDelta]:
        yield TextDelta(0, "x", [7])
        raise Unavailable("the replica is gone")

    servicer.stream = break_off
    with pytest.raises(Unavailable):
        ask("stream", "x")
    assert len(servicer.requests) == 1


def test_no_server_is_unavailable(ask: Ask) -> None:
    with pytest.raises(Unavailable):
        ask("generate", "x", target="127.0.0.1:1")


def test_tokenize(ask: Ask, servicer: Servicer) -> None:
    assert ask("tokenize", "ab", model="m") == [97, 98, 1]
    assert servicer.requests[0].model == "m"


def test_detokenize(ask: Ask, servicer: Servicer) -> None:
    assert ask("detokenize", [97, 1], model="m") == "[97, 1] False"
    assert ask("detokenize", [97], skip_special_tokens=True) == "[97] True"
    assert servicer.requests[0].model == "m"


def test_embed(ask: Ask, servicer: Servicer) -> None:
    first, second = ask("embed", [{"prompt_token_ids": [7, 1]}, {"prompt_token_ids": [8, 9]}], priority=3)
    assert (first.embedding.tolist(), second.embedding.tolist()) == ([7, 1], [8, 9])
    assert servicer.requests[0].options.priority == 3
    [raw] = ask("embed", {"prompt_token_ids": [7, 8, 1]}, "none")
    assert (raw.encoder_tokens, raw.embedding.tolist()) == (3, [[7, 8, 1]] * 3)
    assert raw.embedding.dtype == np.float32
    for wrong, field in (
        (({"encoder_prompt": "a", "decoder_prompt": "b"},), "decoder_prompt"),
        (("a", "max"), "pooling"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ask("embed", *wrong)
        assert caught.value.field == field


def test_models(ask: Ask) -> None:
    assert ask("models") == [wire_answers.ServedModel("quickstart", "t5", 512, 256, 128)]


def test_health(ask: Ask, servicer: Servicer) -> None:
    assert ask("health") is True
    servicer.status = health_pb2.HealthCheckResponse.NOT_SERVING
    assert ask("health") is False
    assert ask("health", target="127.0.0.1:1") is False


def test_metadata_goes_with_every_call(ask: Ask, servicer: Servicer) -> None:
    ask("models", settings={"metadata": [("authorization", "Bearer token")]})
    assert servicer.metadata["authorization"] == "Bearer token"


def test_a_client_without_its_own_timeout_uses_the_clients(ask: Ask, servicer: Servicer) -> None:
    ask("generate", "x", settings={"timeout_s": 3})
    assert servicer.requests[0].options.timeout_ms == 3000


def test_one_client_serves_many_threads(server: Server) -> None:
    answers: dict[str, str] = {}
    with Client(server.target) as client:

        def run(text: str) -> None:
            answers[text] = client.generate(text).outputs[0].text

        threads = [threading.Thread(target=run, args=(str(i),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert answers == {str(i): str(i) for i in range(8)}


def test_transcriptions(ask: Ask, servicer: Servicer) -> None:
    """Whole, and as they grow; the parameters are those of TranscriptionParams."""
    answer = ask("transcribe", b"RIFF", language="fr", timestamps=None, options={"priority": 3})
    assert (answer.text, answer.language) == ("aaaa", "fr")
    assert servicer.requests[0].options.priority == 3
    assert servicer.requests[0].params.timestamps == pb.TIMESTAMPS_NONE
    deltas = ask("stream_transcription", b"RIFF")
    assert [delta.text for delta in deltas] == ["a", "aaa"]
    assert deltas[-1].transcription.text == "aaaa"
    with pytest.raises(InvalidRequest) as refused:
        ask("transcribe", b"RIFF", num_beams=99)
    assert refused.value.field == "num_beams"


def test_live(server: Server) -> None:
    """Sound goes on after answers have come."""
    with Client(server.target) as client:
        deltas = list(
            client.transcribe_live([b"ab", b"cd", "commit", b"ef", "commit"], LiveParams(language="fr"))
        )
    assert [(delta.turn, delta.final, delta.language) for delta in deltas] == [
        (0, "aaaa", "fr"),
        (1, "aa", "fr"),
    ]

    async def sound() -> AsyncIterator[Sound]:
        yield b"ab"
        yield "commit"

    async def run() -> list[LiveDelta]:
        async with AsyncClient(server.target) as client:
            return [delta async for delta in client.transcribe_live(sound())]

    assert [delta.final for delta in asyncio.run(run())] == ["aa"]
