"""Values to messages and back: requests."""

from __future__ import annotations

from typing import Any

import pytest

from tandem.errors import InvalidRequest
from tandem.inputs import (
    REQUEST_OPTIONS,
    ExplicitEncoderDecoderPrompt,
    Prompt,
    RequestOptions,
    TextPrompt,
    TokensPrompt,
)
from tandem.params import BeamSearchParams, SamplingParams
from tandem.protocol import wire
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
    read = wire.prompt_of(wire.generate_request(pb.GenerateRequest, prompt))
    both = {"encoder_prompt": encoder, "decoder_prompt": decoder}
    assert read == (encoder if decoder is None else both)  # a single prompt may be a decoder-only model's
    assert wire.prompt_of(wire.score_request(prompt, "y")) == read


def test_what_is_not_set_is_not_sent() -> None:
    request = wire.generate_request(pb.GenerateStreamRequest, "x", SamplingParams())
    assert request == pb.GenerateStreamRequest(
        encoder_prompt=pb.EncoderPrompt(text="x"), sampling_params=pb.SamplingParams()
    )
    assert wire.params_of(request) == SamplingParams()
    assert wire.options_of(request.options) == {}


def test_options_arrive_by_name() -> None:
    options = RequestOptions(
        source_language="en",
        target_language="fr",
        task="t",
        model="m",
        request_id="r",
        priority=-3,
        timeout_s=1.5,
        truncate_prompt_tokens=-1,
    )
    assert options.keys() == set(REQUEST_OPTIONS)
    for request in (
        wire.generate_request(pb.GenerateRequest, "x", **options),
        wire.generate_request(pb.GenerateStreamRequest, "x", **options),
        wire.score_request("x", "y", **options),
    ):
        assert wire.options_of(request.options) == options
    request = wire.score_request("x", "y", timeout_s=0.0004, model=None)
    assert wire.options_of(request.options) == {"timeout_s": 0.001}  # rounded up: a positive time stays one


def test_what_is_set_arrives_as_it_is() -> None:
    params = SamplingParams(
        n=1,  # a default, given explicitly
        num_beams=1,
        length_penalty=0.0,
        early_stopping="never",
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
    request = wire.generate_request(pb.GenerateRequest, "x", params)
    read = wire.params_of(pb.GenerateRequest.FromString(request.SerializeToString()))
    assert read == params
    assert read.model_fields_set == set(SamplingParams.model_fields)


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
    read = wire.params_of(pb.GenerateStreamRequest.FromString(request.SerializeToString()))
    assert read == params
    assert read.model_fields_set == set(BeamSearchParams.model_fields)


def test_without_parameters_none_are_sent() -> None:
    assert wire.params_of(wire.generate_request(pb.GenerateRequest, "x")) is None


def test_an_unknown_way_to_stop_is_refused() -> None:
    request = pb.GenerateRequest(
        encoder_prompt=pb.EncoderPrompt(text="a"),
        beam_search_params=pb.BeamSearchParams(early_stopping=9),  # type: ignore[arg-type]
    )
    with pytest.raises(InvalidRequest, match="early_stopping"):
        wire.params_of(request)


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
        wire.prompt_of(request_)
    assert caught.value.field == field
