"""The gRPC methods, called as Serve calls them: with bytes and its context."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_router import FakeRouter
from grpc_calls import Api, Context, refused
from grpc_health.v1 import health_pb2
from hearing import HEARING
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tandem.cluster.ingress.service import _LONGEST_GATHER_S, _MESSAGES_PER_S, _WHOLE_GATHER_S, Service
from tandem.errors import InternalError, InvalidRequest, Overloaded, TandemError, Unavailable
from tandem.inputs import Media, TextPrompt
from tandem.protocol import wire
from tandem.v1 import inference_pb2 as pb
from tandem.workers.request import BeamSearch
from tandem.workers.requests.request_builder import RequestBuilder

SENTENCE = "le chat est sur le tapis"


@pytest.fixture
def api(service: Service) -> Api:
    return Api(service)


def source(value: str = "the cat") -> pb.EncoderPrompt:
    return pb.EncoderPrompt(text=value)


def source_ids(*ids: int) -> pb.EncoderPrompt:
    return pb.EncoderPrompt(token_ids=pb.TokenIds(ids=ids))


def text(value: str = "the cat") -> pb.Prompt:
    return pb.Prompt(text=value)


async def test_generate(api: Api, router: FakeRouter, request_builder: RequestBuilder) -> None:
    request = pb.GenerateRequest(
        encoder_prompt=source(), decoder_prompt=text("le"),
        sampling_params=pb.SamplingParams(n=2, logprobs=1, prompt_logprobs=0, decoding={"max_tokens": 30}),
        options=pb.RequestOptions(request_id="r1", model="tiny", priority=3, timeout_ms=1500),
    )  # fmt: skip
    answer = await api.Generate(request.SerializeToString(), Context())
    assert answer.request_id == "r1"
    assert [sample.text for sample in answer.outputs] == [" " + SENTENCE] * 2
    assert answer.usage.encoder_tokens == len(request_builder.tokenize("the cat"))
    assert len(answer.outputs[0].logprobs) == len(answer.outputs[0].token_ids)
    assert [entry.token_id for entry in answer.prompt.logprobs] == list(answer.prompt.decoder_token_ids)[1:]
    assert {entry.rank for entry in answer.prompt.logprobs} == {7}
    assert (router.requests[0].priority, router.requests[0].timeout_s) == (3, 1.5)


async def test_languages_and_task_reach_the_validator(
    api: Api, router: FakeRouter, request_builder: RequestBuilder
) -> None:
    prefixed = tuple(request_builder.tokenize("translate English to French: the cat"))
    for chosen in (
        {"source_language": "en", "target_language": "fr"},
        {"source_language": "English", "target_language": "fra_Latn"},
        {"task": "translation_en_to_fr"},
    ):
        request = wire.generate_request(pb.GenerateRequest, "the cat", **chosen)  # type: ignore[arg-type]
        await api.Generate(request.SerializeToString(), Context())
        assert router.requests[-1].encoder.token_ids == prefixed
        scored = wire.score_request("the cat", "le chat", **chosen)  # type: ignore[arg-type]
        await api.Score(scored.SerializeToString(), Context())
        assert router.requests[-1].encoder.token_ids == prefixed
        assert router.requests[-1].target_ids
    for chosen, field in (({"task": "x"}, "task"), ({"target_language": "xx"}, "target_language")):
        request = wire.generate_request(pb.GenerateRequest, "the cat", **chosen)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest) as caught:
            await api.Generate(request.SerializeToString(), Context())
        assert caught.value.field == field


async def test_generate_stream(api: Api, router: FakeRouter) -> None:
    request = pb.GenerateStreamRequest(encoder_prompt=source(), options={"request_id": "r1"})
    messages = [m async for m in api.GenerateStream(request.SerializeToString(), Context())]
    count = len(messages)
    assert [message.HasField("started") for message in messages] == [True] + [False] * (count - 1)
    assert [message.HasField("usage") for message in messages] == [False] * (count - 1) + [True]
    assert messages[0].started.request_id == "r1"
    assert "".join(message.delta.text for message in messages) == SENTENCE
    assert [i for m in messages for i in m.delta.token_ids] == [*router.answer, router.eos_id]
    assert messages[-1].usage.generated_tokens == len(router.answer) + 1


async def test_sampling_params_that_ask_for_no_samples_leave_the_models_beams(
    service: Service, folder: Path, router: FakeRouter
) -> None:
    service.request_builder = RequestBuilder.load(folder, "tiny", overrides={"num_beams": 3})
    cases: list[tuple[pb.SamplingParams, int | None]] = [
        (pb.SamplingParams(), 3),
        (pb.SamplingParams(n=1, decoding={"temperature": 0, "top_p": 1, "seed": 4, "max_tokens": 9}), 3),
        (pb.SamplingParams(length_penalty=0.5, early_stopping=pb.EARLY_STOPPING_TRUE), 3),
        (pb.SamplingParams(decoding={"temperature": 0.5}), None),
        (pb.SamplingParams(num_beams=1, n=1, stop=["x"]), None),
    ]
    for params, num_beams in cases:
        request = pb.GenerateRequest(encoder_prompt=source(), sampling_params=params)
        await Api(service).Generate(request.SerializeToString(), Context())
        beams = router.requests[-1].decoding.beams
        assert (beams and beams.num_beams) == num_beams
    request = pb.GenerateRequest(encoder_prompt=source(), sampling_params=pb.SamplingParams(n=2))
    with pytest.raises(InvalidRequest, match="n: does not go with beam search"):
        await Api(service).Generate(request.SerializeToString(), Context())


async def test_beams_come_whole_and_at_the_end_of_a_stream(api: Api, router: FakeRouter) -> None:
    asked = pb.BeamSearchParams(num_beams=4, num_return_sequences=2, length_penalty=0.6)
    answer = await api.Generate(
        pb.GenerateRequest(encoder_prompt=source(), beam_search_params=asked).SerializeToString(), Context()
    )
    assert [(sample.index, sample.score) for sample in answer.outputs] == [(0, -0.5), (1, -1.5)]
    assert answer.outputs[0].text == SENTENCE
    tokens = sum(len(sample.token_ids) for sample in answer.outputs)
    assert answer.usage.generated_tokens == tokens
    [request] = router.requests
    assert request.decoding.beams == BeamSearch(4, 2, 0.6, early_stopping=False)
    stream = pb.GenerateStreamRequest(encoder_prompt=source(), beam_search_params=asked)
    messages = [m async for m in api.GenerateStream(stream.SerializeToString(), Context())]
    deltas = [m.delta for m in messages]
    assert [(d.index, d.text, d.score) for d in deltas] == [
        (sample.index, sample.text, sample.score) for sample in answer.outputs
    ]
    assert all(d.finish.reason == pb.FINISH_REASON_STOP for d in deltas)
    assert [m.usage.generated_tokens for m in messages] == [0, tokens]


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (pb.GenerateRequest(), "encoder_prompt: "),
        (pb.GenerateRequest(encoder_prompt=source(), beam_search_params=pb.BeamSearchParams(num_beams=33)),
         "num_beams: "),
        (pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt()), "encoder_prompt: "),
        (pb.GenerateRequest(encoder_prompt=source("")), "encoder_prompt: must not be empty"),
        (pb.GenerateRequest(encoder_prompt=source("a b c d " * 30)), "encoder_prompt: has"),
        (pb.GenerateRequest(encoder_prompt=source_ids()), "encoder_prompt.token_ids: has no tokens"),
        (pb.GenerateRequest(encoder_prompt=source_ids(2**31)),
         "encoder_prompt.token_ids: id 2147483648"),
        (pb.GenerateRequest(encoder_prompt=source(), decoder_prompt=text("a b c d " * 30)),
         "decoder_prompt: has"),
        (pb.GenerateRequest(encoder_prompt=source(), options={"timeout_ms": 0}), "timeout_ms: "),
        (pb.GenerateRequest(encoder_prompt=source(), options={"timeout_ms": 60_001}), "timeout_ms: "),
        (pb.GenerateRequest(encoder_prompt=source(), options={"priority": 99}), "priority: "),
        (pb.GenerateRequest(encoder_prompt=source(), options={"request_id": "a\nb"}), "request_id: "),
        (pb.GenerateRequest(encoder_prompt=source(), sampling_params=pb.SamplingParams(n=65)), "n: "),
        (pb.GenerateRequest(encoder_prompt=source(), sampling_params={"decoding": {"top_p": float("nan")}}),
         "top_p: "),
        (pb.GenerateRequest(encoder_prompt=source(), sampling_params={"decoding": {"max_tokens": 64}}),
         "max_tokens: "),
    ],
)  # fmt: skip
async def test_a_bad_value_is_refused_by_name(
    api: Api, router: FakeRouter, request_: pb.GenerateRequest, details: str
) -> None:
    context = Context()
    code, said = await refused(api.Generate(request_.SerializeToString(), context), context)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said.startswith(details)
    stream = pb.GenerateStreamRequest.FromString(request_.SerializeToString())
    context = Context()
    assert (code, said) == await refused(api.GenerateStream(stream.SerializeToString(), context), context)
    assert not router.requests


async def test_bad_bytes_are_refused(api: Api) -> None:
    good = pb.GenerateRequest(encoder_prompt=source()).SerializeToString()
    for data, code, details in (
        (b"\xff", "INVALID_ARGUMENT", "not a tandem.v1.GenerateRequest message"),
        (b"\x2a\x03\x0a\x01\xff" + good, "INVALID_ARGUMENT", "options.request_id: must be UTF-8"),
        (good + b"\x98\x06\x01", "INVALID_ARGUMENT", "99: unknown field of GenerateRequest"),
        (
            good + b"\x2a\xa4\x9c\x01\x0a\xa0\x9c\x01" + b"x" * 20_000,  # options { request_id }
            "RESOURCE_EXHAUSTED",
            "message larger than max (20",
        ),
        (b"x" * 30_001, "RESOURCE_EXHAUSTED", "message larger than max (30001 vs. 30000"),
    ):
        context = Context()
        status, said = await refused(api.Generate(data, context), context)
        assert (status.name, said[: len(details)]) == (code, details)


async def test_media_have_a_limit_of_their_own_and_are_refused_by_name(api: Api, router: FakeRouter) -> None:
    for size, details in (
        (9_000, "encoder_prompt.media: 'tiny' takes text only"),
        (29_900, "encoder_prompt.media: 'tiny' takes text only"),
        (30_000, "message larger than max"),
    ):
        media = [pb.Media(modality=pb.Media.MODALITY_AUDIO, data=b"x" * size)]
        request = pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt(media=media))
        context = Context()
        _, said = await refused(api.Generate(request.SerializeToString(), context), context)
        assert said.startswith(details)
    assert not router.requests


async def test_media_reach_the_engine_request(
    service: Service, request_builder: RequestBuilder, router: FakeRouter, folder: Path
) -> None:
    info = replace(request_builder.info, front=HEARING.front)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    service.request_builder = RequestBuilder(info, tokenizer, request_builder.limits, processor=HEARING)
    prompt: TextPrompt = {"prompt": "", "multi_modal_data": {"audio": [b"RIFF", b"fLaC"]}}
    request = wire.generate_request(pb.GenerateRequest, prompt)
    await Api(service).Generate(request.SerializeToString(), Context())
    assert router.requests[0].encoder.media == (Media("audio", b"RIFF"), Media("audio", b"fLaC"))
    request = wire.generate_request(
        pb.GenerateRequest, {"prompt": "", "multi_modal_data": {"audio": b"x" * 10_001}}
    )
    context = Context()
    code, said = await refused(Api(service).Generate(request.SerializeToString(), context), context)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert said == "encoder_prompt.media: has 10001 bytes, the limit is 10000"


async def test_score(api: Api, router: FakeRouter, request_builder: RequestBuilder) -> None:
    request = pb.ScoreRequest(
        encoder_prompt=source(), decoder_prompt=text("le"),
        targets=[text(SENTENCE), pb.Prompt(token_ids=pb.TokenIds(ids=[7, 1]))],
        options=pb.RequestOptions(request_id="r1", model="tiny", priority=3, timeout_ms=1500),
    )  # fmt: skip
    answer = await api.Score(request.SerializeToString(), Context())
    assert answer.request_id == "r1"
    first, second = answer.scores
    assert list(first.token_ids) == request_builder.tokenize(SENTENCE)
    assert (
        first.cumulative_logprob == sum(first.logprobs) == sum(-0.25 * n for n in range(len(first.logprobs)))
    )
    assert (list(second.token_ids), list(second.logprobs)) == ([7, 1], [0, -0.25])
    assert answer.prompt.encoder_tokens == len(request_builder.tokenize("the cat"))
    assert list(answer.prompt.decoder_token_ids) == list(router.requests[0].prefix_ids)
    assert len(answer.prompt.decoder_token_ids) > 1
    assert {(r.priority, r.timeout_s) for r in router.requests} == {(3, 1.5)}
    assert len({r.encoder.key for r in router.requests}) == 1
    assert not router.live
    assert not router.cancelled


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (pb.ScoreRequest(targets=[text()]), "encoder_prompt: is required"),
        (pb.ScoreRequest(encoder_prompt=source(""), targets=[text()]), "encoder_prompt: must not be empty"),
        (pb.ScoreRequest(encoder_prompt=source_ids(2**31), targets=[text()]),
         "encoder_prompt.token_ids: id 2147483648"),
        (pb.ScoreRequest(encoder_prompt=source()), "targets: 1 to 256 targets, got 0"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text("a")] * 257), "targets: 1 to 256 targets"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text(), pb.Prompt()]), "targets.1: one of text"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text(), text("")]), "targets.1: must not be"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text("a b c d " * 30)]), "targets.0: has"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[pb.Prompt(token_ids=pb.TokenIds())]),
         "targets.0.token_ids: has no tokens"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[pb.Prompt(token_ids=pb.TokenIds(ids=[2**31]))]),
         "targets.0.token_ids: id 2147483648"),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text()], options={"timeout_ms": 0}),
         "timeout_ms: "),
        (pb.ScoreRequest(encoder_prompt=source(), targets=[text()], options={"priority": 99}), "priority: "),
    ],
)  # fmt: skip
async def test_a_bad_score_request_is_refused_by_name(
    api: Api, router: FakeRouter, request_: pb.ScoreRequest, details: str
) -> None:
    context = Context()
    code, said = await refused(api.Score(request_.SerializeToString(), context), context)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said.startswith(details)
    assert not router.requests


async def test_what_ends_one_target_ends_the_call(api: Api, router: FakeRouter) -> None:
    data = pb.ScoreRequest(encoder_prompt=source(), targets=[text(SENTENCE)] * 3).SerializeToString()
    for error, expected in (
        (Overloaded("full"), (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")),
        (RuntimeError("secret"), (grpc.StatusCode.INTERNAL, "internal error, see the log")),
    ):
        router.fail(error)
        context = Context()
        assert await refused(api.Score(data, context), context) == expected
    router.error, router.deadline_after = None, 0
    context = Context()
    code, _ = await refused(api.Score(data, context), context)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not router.live


async def test_a_score_that_is_cancelled_cancels_its_targets(api: Api, router: FakeRouter) -> None:
    router.stall_after = 0
    data = pb.ScoreRequest(encoder_prompt=source(), targets=[text(SENTENCE)] * 3).SerializeToString()
    task = asyncio.create_task(api.Score(data, Context()))
    while len(router.live) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(router.cancelled), router.live) == (3, set())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), method=st.sampled_from(["Generate", "Score", "Tokenize"]))
async def test_no_bytes_are_an_internal_error(api: Api, data: bytes, method: str) -> None:
    context = Context()
    try:
        await getattr(api, method)(data, context)
    except TandemError:
        assert context.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_errors_become_statuses(api: Api, router: FakeRouter, after: int, method: str) -> None:
    data = pb.GenerateRequest(encoder_prompt=source()).SerializeToString()
    for error, expected in (
        (Overloaded("full"), (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")),
        (Unavailable("gone"), (grpc.StatusCode.UNAVAILABLE, "gone")),
        (RuntimeError("secret"), (grpc.StatusCode.INTERNAL, "internal error, see the log")),
    ):
        router.fail(error, after)
        context = Context()
        assert await refused(getattr(api, method)(data, context), context) == expected


async def test_nothing_is_sent_before_a_call_is_accepted(api: Api, router: FakeRouter) -> None:
    """Else gRPC would not try it again."""
    router.fail(Unavailable("gone"))
    stream = api.GenerateStream(
        pb.GenerateStreamRequest(encoder_prompt=source()).SerializeToString(), Context()
    )
    with pytest.raises(Unavailable):
        await anext(stream)


async def test_an_unexpected_error_leaves_as_one_of_ours(api: Api, router: FakeRouter) -> None:
    router.fail(RuntimeError("secret"))
    with pytest.raises(InternalError, match="see the server's log") as caught:
        await api.Generate(pb.GenerateRequest(encoder_prompt=source()).SerializeToString(), Context())
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("n", [1, 3])
async def test_closing_a_stream_ends_it_on_the_engine(api: Api, router: FakeRouter, n: int) -> None:
    router.stall_after = 2
    request = pb.GenerateStreamRequest(encoder_prompt=source(), sampling_params=pb.SamplingParams(n=n))
    stream: Any = api.GenerateStream(request.SerializeToString(), Context())
    await anext(stream)
    assert len(router.live) == n
    await stream.aclose()
    assert not router.live


async def test_cancelling_a_call_ends_it_on_the_engine(api: Api, router: FakeRouter) -> None:
    router.stall_after = 2
    data = pb.GenerateRequest(encoder_prompt=source()).SerializeToString()
    call = asyncio.create_task(api.Generate(data, Context()))
    while not router.live:
        await asyncio.sleep(0.005)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not router.live


async def test_tokenize(api: Api, request_builder: RequestBuilder) -> None:
    answer = await api.Tokenize(pb.TokenizeRequest(text="the cat").SerializeToString(), Context())
    assert list(answer.token_ids) == request_builder.tokenize("the cat")
    context = Context()
    code, details = await refused(api.Tokenize(b"", context), context)
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "text: must not be empty")
    request = pb.TokenizeRequest(text="a", model="other")
    code, _ = await refused(api.Tokenize(request.SerializeToString(), context), context)
    assert code is grpc.StatusCode.NOT_FOUND


async def test_list_models(api: Api) -> None:
    [model] = (await api.ListModels(b"", Context())).models
    assert (model.id, model.family) == ("tiny", "t5")
    assert (model.max_encoder_tokens, model.max_decoder_tokens, model.max_segment_tokens) == (64, 64, 31)


async def test_health(api: Api, router: FakeRouter) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    for name in ("", "tandem.v1.InferenceService"):
        request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
        assert (await api.Check(request, Context())).status == serving
    context = Context()
    unknown = health_pb2.HealthCheckRequest(service="x").SerializeToString()
    assert (await refused(api.Check(unknown, context), context))[0] is grpc.StatusCode.NOT_FOUND
    context = Context()
    assert (await refused(api.Check(b"\x0a\x05x", context), context))[0] is grpc.StatusCode.INVALID_ARGUMENT
    statuses = (await api.List(b"", Context())).statuses
    assert {name: answer.status for name, answer in statuses.items()} == {
        "": serving, "tandem.v1.InferenceService": serving,
    }  # fmt: skip
    router.is_ready = False
    answer = await api.Check(b"", Context())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_watch_tells_changes(
    api: Api, router: FakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem.cluster.ingress.grpc_api._WATCH_S", 0.01)
    watch = api.Watch(b"", Context())
    assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
    change = asyncio.ensure_future(anext(watch))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    assert not change.done()
    router.is_ready = False
    assert (await asyncio.wait_for(change, 10)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await watch.aclose()  # type: ignore[attr-defined]


async def test_many_streams_are_gathered_and_one_is_not(api: Api, router: FakeRouter) -> None:
    """The rate of messages is bounded; what comes between them is the router's to put together."""
    data = pb.GenerateStreamRequest(encoder_prompt=source()).SerializeToString()

    async def stream() -> None:
        async for _ in api.GenerateStream(data, Context()):
            pass

    await stream()
    assert max(router.gathers_s) <= 1 / _MESSAGES_PER_S
    router.gathers_s.clear()
    router.stall_after = 1  # until they are all there
    calls = [asyncio.create_task(stream()) for _ in range(200)]
    async with asyncio.timeout(60):
        while len(router.gathers_s) < len(calls):
            await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert max(router.gathers_s) == _LONGEST_GATHER_S


@pytest.mark.parametrize(("stop", "gather_s"), [([], _WHOLE_GATHER_S), (["never said"], 1 / _MESSAGES_PER_S)])
async def test_a_whole_answer_is_read_seldom_unless_a_stop_string_may_end_it(
    api: Api, router: FakeRouter, stop: list[str], gather_s: float
) -> None:
    message = pb.GenerateRequest(encoder_prompt=source(), sampling_params=pb.SamplingParams(stop=stop))
    await api.Generate(message.SerializeToString(), Context())
    assert max(router.gathers_s) == gather_s
