"""The messages of Score and Tandem's own values, as `wire` does for the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

from tandem.inputs import (
    ExplicitEncoderDecoderPrompt,
    Prompt,
    SingletonPrompt,
    TaskOptions,
    decoder_side,
    split_prompt,
)
from tandem.outputs import ScoreOutput, TargetScore
from tandem.protocol.wire import chosen_of, make_message, prompt_fields, prompt_of, prompts_of
from tandem.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class ScoreArguments:
    """What a Score request asks for; its values are not validated yet."""

    request_id: str | None
    model: str | None
    prompt: Prompt
    targets: list[SingletonPrompt]
    priority: int
    timeout_s: float | None
    chosen: TaskOptions


def score_arguments_of(request: pb.ScoreRequest) -> ScoreArguments:
    """Raises `InvalidRequest` for a prompt or target that is missing or has both text and token ids."""
    encoder, decoder = prompts_of(request)
    return ScoreArguments(
        request_id=request.request_id or None,
        model=request.model or None,
        # A decoder-only model has one prompt.
        prompt=encoder
        if decoder is None
        else ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder),
        targets=[prompt_of(target, f"targets.{number}") for number, target in enumerate(request.targets)],
        priority=request.priority,
        timeout_s=request.timeout_ms / 1000 if request.HasField("timeout_ms") else None,
        chosen=chosen_of(request),
    )


def score_request(
    prompt: Prompt,
    targets: SingletonPrompt | Sequence[SingletonPrompt],
    *,
    model: str | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    request_id: str | None = None,
    **chosen: Unpack[TaskOptions],
) -> pb.ScoreRequest:
    """Raises `InvalidRequest`, naming the field, for what a message cannot hold."""
    encoder, decoder, _ = split_prompt(prompt)
    many = [targets] if isinstance(targets, str | dict) else targets
    values: dict[str, Any] = {
        "request_id": request_id,
        "model": model,
        "encoder_prompt": prompt_fields(encoder),
        "decoder_prompt": prompt_fields(decoder),
        "targets": [
            prompt_fields(decoder_side(target, f"targets.{number}")) for number, target in enumerate(many)
        ],
        "priority": priority,
        "timeout_ms": timeout_s and math.ceil(timeout_s * 1000),
        **chosen,
    }
    return make_message(pb.ScoreRequest, values)


def score_response(output: ScoreOutput) -> pb.ScoreResponse:
    """The answer to Score."""
    return pb.ScoreResponse(
        request_id=output.request_id,
        prompt=pb.PromptInfo(
            encoder_tokens=len(output.encoder_prompt_token_ids), decoder_token_ids=output.prompt_token_ids
        ),
        scores=[pb.TargetScore(**asdict(score)) for score in output.scores],
    )


def scores_of(request: pb.ScoreRequest, response: pb.ScoreResponse) -> ScoreOutput:
    """The answer to a request. A text's encoder token ids stay on the server: the list is empty."""
    encoder, decoder = request.encoder_prompt, request.decoder_prompt
    return ScoreOutput(
        request_id=response.request_id,
        encoder_prompt=encoder.text if encoder.HasField("text") else None,
        encoder_prompt_token_ids=list(encoder.token_ids.ids),
        prompt=decoder.text if decoder.HasField("text") else None,
        prompt_token_ids=list(response.prompt.decoder_token_ids),
        scores=[
            TargetScore(list(score.token_ids), list(score.logprobs), score.cumulative_logprob)
            for score in response.scores
        ],
    )
