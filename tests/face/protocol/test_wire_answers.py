"""Values to messages and back: answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tandem.inputs import ExplicitEncoderDecoderPrompt, TokensPrompt
from tandem.outputs import (
    CompletionOutput,
    FinishReason,
    RequestOutput,
    TextDelta,
    TokenLogprobs,
)
from tandem.protocol import wire, wire_answers
from tandem.v1 import inference_pb2 as pb

PARSED = {"<OD>": {"bboxes": [[1, 2, 3, 4]], "labels": ["é \N{GRINNING FACE}"], "scores": [0.1]}}
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
            CompletionOutput(6, "", [], "stop", parsed=PARSED),
            CompletionOutput(7, "", [], "stop", parsed=[]),
        ],
        encoder_tokens=11,
        media_tokens=9,
    )
    request = wire.generate_request(
        pb.GenerateRequest,
        ExplicitEncoderDecoderPrompt(
            encoder_prompt=TokensPrompt(prompt_token_ids=[4, 1]), decoder_prompt="Le"
        ),
    )
    response = wire_answers.generate_response(output)
    usage = pb.Usage(encoder_tokens=11, media_tokens=9, decoder_prompt_tokens=2, generated_tokens=5)
    assert response.usage == usage
    assert response.prompt == pb.PromptInfo(encoder_tokens=11, media_tokens=9, decoder_token_ids=[0, 9])
    assert (
        wire_answers.output_of(request, pb.GenerateResponse.FromString(response.SerializeToString()))
        == output
    )
    prompts: list[list[TokenLogprobs | None]] = [[None], [None, TokenLogprobs(9, -0.5, [(8, -0.25)], 2)]]
    for prompt in prompts:
        output.prompt_logprobs = prompt
        request.sampling_params.prompt_logprobs = 1
        assert wire_answers.output_of(request, wire_answers.generate_response(output)) == output


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "deadline", None])
def test_a_delta_comes_back_whole(reason: FinishReason | None) -> None:
    delta = TextDelta(index=3, text="é", token_ids=[7, 1], logprobs=LOGPROBS, finish_reason=reason)
    message = pb.GenerateStreamResponse.FromString(wire_answers.stream_response(delta).SerializeToString())
    assert wire_answers.delta_of(message.delta) == delta
    assert not message.HasField("started")
    assert not message.HasField("usage")
    delta = replace(delta, score=-1.3, prompt_logprobs=[None, TokenLogprobs(9, -0.5, [(8, -0.25)], 2)])
    assert wire_answers.delta_of(wire_answers.stream_response(delta).delta) == delta
    delta = replace(delta, parsed=PARSED)
    assert repr(wire_answers.delta_of(wire_answers.stream_response(delta).delta)) == repr(delta)


def test_the_ends_of_a_stream() -> None:
    delta = TextDelta(index=0, text="é", token_ids=[7], finish_reason="stop")
    prompt = pb.PromptInfo(encoder_tokens=5, decoder_token_ids=[0, 9])
    message = wire_answers.stream_response(delta, pb.Started(prompt=prompt), pb.Usage(generated_tokens=1))
    assert message.started.prompt == prompt
    assert message.usage.generated_tokens == 1


def test_models_come_back_whole() -> None:
    models = [
        wire_answers.ServedModel("a", "t5", 512, 128, 64),
        wire_answers.ServedModel("b", "bart", 1024, 1024, 512),
    ]
    assert wire_answers.models_of(wire_answers.list_models_response(models)) == models
