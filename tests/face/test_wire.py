"""Values to messages and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tandem.errors import InvalidRequest
from tandem.inputs import ExplicitEncoderDecoderPrompt, Prompt, TaskOptions, TextPrompt, TokensPrompt
from tandem.outputs import CompletionOutput, FinishReason, RequestOutput, TextDelta, TokenLogprobs
from tandem.params import BeamSearchParams, SamplingParams
from tandem.protocol import score_wire, wire
from tandem.v1 import inference_pb2 as pb


@pytest.mark.parametrize(
    ("prompt", "encoder", "decoder"),
    [
        ("text", "text", None),
        (TextPrompt(prompt=""), "", None),
        (TokensPrompt(prompt_token_ids=[5, 1]), {"prompt_token_ids": [5, 1]}, None),
        (TokensPrompt(prompt_token_ids=[]), {"prompt_token_ids": []}, None),
        (ExplicitEncoderDecoderPrompt(encoder_prompt="a", decoder_prompt="b"), "a", "b"),
        (
            ExplicitEncoderDecoderPrompt(
                encoder_prompt=TextPrompt(prompt="a"), decoder_prompt=TokensPrompt(prompt_token_ids=[0])
            ),
            "a",
            {"prompt_token_ids": [0]},
        ),
        (
            TextPrompt(prompt="", multi_modal_data={"audio": b"RIFF"}),
            {"prompt": "", "multi_modal_data": {"audio": [b"RIFF"]}},
            None,
        ),
        (
            TokensPrompt(prompt_token_ids=[5], multi_modal_data={"image": [b"1", b"2"], "audio": b"RIFF"}),
            {"prompt_token_ids": [5], "multi_modal_data": {"audio": [b"RIFF"], "image": [b"1", b"2"]}},
            None,
        ),
    ],
)
def test_every_kind_of_prompt_arrives(prompt: Prompt, encoder: object, decoder: object) -> None:
    arguments = wire.arguments_of(wire.generate_request(pb.GenerateRequest, prompt))
    both = {"encoder_prompt": encoder, "decoder_prompt": decoder}
    assert arguments.prompt == (
        encoder if decoder is None else both
    )  # a single prompt may be a decoder-only model's


def test_what_is_not_set_is_not_sent() -> None:
    request = wire.generate_request(pb.GenerateStreamRequest, "x", SamplingParams())
    assert wire.arguments_of(request) == wire.GenerateArguments(
        request_id=None,
        model=None,
        prompt="x",
        kind=SamplingParams,
        params={},
        priority=0,
        timeout_s=None,
        chosen={},
    )
    chosen = TaskOptions(source_language="en", target_language="fr", task="t")
    request = wire.generate_request(pb.GenerateStreamRequest, "x", **chosen)
    assert wire.arguments_of(request).chosen == chosen
    scored = score_wire.score_request("x", "y", **chosen)
    assert score_wire.score_arguments_of(scored).chosen == chosen


def test_what_is_set_arrives_as_it_is() -> None:
    params = SamplingParams(
        n=1,  # a default, given explicitly
        temperature=0.8,
        top_k=-1,
        top_p=0.95,
        min_p=0.0,
        seed=2**63 - 1,
        max_tokens=7,
        min_tokens=0,
        stop=["\n", "Ünd"],
        stop_token_ids=[3, 3],
        ignore_eos=False,
        repetition_penalty=1.1,
        logprobs=0,
        prompt_logprobs=0,
        skip_special_tokens=False,
        typical_p=0.5,
        presence_penalty=-0.1,
        frequency_penalty=0.0,
        no_repeat_ngram_size=3,
        encoder_no_repeat_ngram_size=0,
        bad_words=["a", "b"],
        bad_words_ids=[[1], [2, 3]],
        logit_bias={0: 1.5, 2**31 - 1: -100},
        forced_bos_token_id=0,
        forced_eos_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[4],
    )
    request = wire.generate_request(
        pb.GenerateRequest, "x", params, model="m", priority=-3, timeout_s=0.0004, request_id="r"
    )
    arguments = wire.arguments_of(pb.GenerateRequest.FromString(request.SerializeToString()))
    assert arguments.kind is SamplingParams
    assert SamplingParams(**arguments.params) == params
    assert set(arguments.params) == set(SamplingParams.model_fields)
    assert (arguments.model, arguments.priority, arguments.request_id) == ("m", -3, "r")
    assert arguments.timeout_s == 0.001  # rounded up: a positive time stays one


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beam_search_arrives_as_it_is(early_stopping: Any) -> None:
    params = BeamSearchParams(
        num_beams=5,
        num_return_sequences=3,
        length_penalty=-0.6,
        early_stopping=early_stopping,
        max_tokens=7,
        min_tokens=2,
        stop_token_ids=[3],
        ignore_eos=True,
        repetition_penalty=1.1,
        presence_penalty=-0.1,
        frequency_penalty=0.0,
        no_repeat_ngram_size=3,
        encoder_no_repeat_ngram_size=0,
        bad_words=["a", "b"],
        bad_words_ids=[],
        logit_bias={5: 1.5},
        forced_bos_token_id=0,
        forced_eos_token_id=1,
        suppress_tokens=[4],
        begin_suppress_tokens=[],
        skip_special_tokens=False,
        temperature=0.8,
        top_k=-1,
        top_p=0.95,
        min_p=0.0,
        typical_p=0.5,
        seed=0,
    )
    request = wire.generate_request(pb.GenerateStreamRequest, "x", params)
    arguments = wire.arguments_of(pb.GenerateStreamRequest.FromString(request.SerializeToString()))
    assert arguments.kind is BeamSearchParams
    assert BeamSearchParams(**arguments.params) == params
    assert set(arguments.params) == set(BeamSearchParams.model_fields)


def test_without_parameters_no_kind_is_sent() -> None:
    assert wire.arguments_of(wire.generate_request(pb.GenerateRequest, "x")).kind is None


def test_a_request_samples_or_searches_beams() -> None:
    request = pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(text="a"),
        sampling_params=pb.SamplingParams(),
        beam_search_params=pb.BeamSearchParams(),
    )
    with pytest.raises(InvalidRequest) as caught:
        wire.arguments_of(request)
    assert caught.value.field == "beam_search_params"


def test_an_unknown_way_to_stop_is_refused() -> None:
    request = pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(text="a"),
        beam_search_params=pb.BeamSearchParams(early_stopping=9),  # type: ignore[arg-type]
    )
    with pytest.raises(InvalidRequest, match="early_stopping"):
        BeamSearchParams(**wire.arguments_of(request).params)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": "\ud800"}, "encoder_prompt"),
        ({"prompt": TokensPrompt(prompt_token_ids=[-1])}, "encoder_prompt"),
        ({"prompt": "x", "model": "\udfff"}, "model"),
        ({"prompt": "x", "priority": 2**31}, "priority"),
        ({"prompt": "x", "timeout_s": 2.0**40}, "timeout_ms"),
        ({"prompt": "x", "request_id": 5}, "request_id"),
    ],
)
def test_what_a_message_cannot_hold_is_refused_by_name(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.generate_request(pb.GenerateRequest, **arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GenerateRequest(), "encoder_prompt"),
        (pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt()), "encoder_prompt"),
        (
            pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt(text="a", media=[pb.Media(data=b"x")])),
            "encoder_prompt.media.0.modality",
        ),
        (
            pb.GenerateRequest(encoder_prompt=pb.EncoderPrompt(text="a"), decoder_prompt=pb.Prompt()),
            "decoder_prompt",
        ),
    ],
)
def test_a_prompt_has_one_of_text_and_ids(request_: pb.GenerateRequest, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.arguments_of(request_)
    assert caught.value.field == field


LOGPROBS = [TokenLogprobs(7, -0.5, [(7, -0.5), (8, -2.0)]), TokenLogprobs(1, -1.25, [])]


def test_an_output_comes_back_whole() -> None:
    output = RequestOutput(
        request_id="r",
        encoder_prompt=None,
        encoder_prompt_token_ids=[4, 1],
        prompt="Le",
        prompt_token_ids=[0, 9],
        outputs=[
            CompletionOutput(0, "a", [7, 1], "stop", None, LOGPROBS, -1.75),
            CompletionOutput(1, "b", [7], "stop", "###"),
            CompletionOutput(2, "c", [7, 0], "stop", 0),
            CompletionOutput(3, "", [], "length"),
            CompletionOutput(4, "", [], "stop", score=-0.0),
            CompletionOutput(5, "", [], "stop", score=-1.3),
        ],
    )
    request = wire.generate_request(
        pb.GenerateRequest,
        ExplicitEncoderDecoderPrompt(
            encoder_prompt=TokensPrompt(prompt_token_ids=[4, 1]), decoder_prompt="Le"
        ),
    )
    response = wire.generate_response(output)
    assert response.usage == pb.Usage(encoder_tokens=2, decoder_prompt_tokens=2, generated_tokens=5)
    assert response.prompt == pb.PromptInfo(encoder_tokens=2, decoder_token_ids=[0, 9])
    assert wire.output_of(request, pb.GenerateResponse.FromString(response.SerializeToString())) == output
    prompts: list[list[TokenLogprobs | None]] = [[None], [None, TokenLogprobs(9, -0.5, [(8, -0.25)], 2)]]
    for prompt in prompts:
        output.prompt_logprobs = prompt
        request.sampling_params.prompt_logprobs = 1
        assert wire.output_of(request, wire.generate_response(output)) == output


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "deadline", None])
def test_a_delta_comes_back_whole(reason: FinishReason | None) -> None:
    delta = TextDelta(index=3, text="é", token_ids=[7, 1], logprobs=LOGPROBS, finish_reason=reason)
    message = pb.GenerateStreamResponse.FromString(wire.stream_response(delta).SerializeToString())
    assert wire.delta_of(message.delta) == delta
    assert not message.HasField("started")
    assert not message.HasField("usage")
    delta = replace(delta, score=-1.3, prompt_logprobs=[None, TokenLogprobs(9, -0.5, [(8, -0.25)], 2)])
    assert wire.delta_of(wire.stream_response(delta).delta) == delta


def test_the_ends_of_a_stream() -> None:
    delta = TextDelta(index=0, text="é", token_ids=[7], finish_reason="stop")
    message = wire.stream_response(delta, wire.started("r1", 5, [0, 9]), pb.Usage(generated_tokens=1))
    assert message.started.request_id == "r1"
    assert message.started.prompt == pb.PromptInfo(encoder_tokens=5, decoder_token_ids=[0, 9])
    assert message.usage.generated_tokens == 1


def test_models_come_back_whole() -> None:
    models = [wire.ServedModel("a", "t5", 512, 128), wire.ServedModel("b", "bart", 1024, 1024)]
    assert wire.models_of(wire.list_models_response(models)) == models
