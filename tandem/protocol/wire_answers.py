"""The gRPC answers and Tandem's own values, each made from the other, for the client and the ingress alike.
Requests are in `wire`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Protocol, cast

from tandem.outputs import (
    CompletionOutput,
    EmbeddingOutput,
    FinishReason,
    Parsed,
    RequestOutput,
    ScoreOutput,
    TargetScore,
    TextDelta,
    TokenLogprobs,
)
from tandem.v1 import inference_pb2 as pb

# Generate and GenerateStream


def generate_response(output: RequestOutput) -> pb.GenerateResponse:
    """The answer to Generate; every sample is finished."""
    return pb.GenerateResponse(
        request_id=output.request_id,
        prompt=prompt_info(output, output.prompt_logprobs),
        outputs=[
            pb.Completion(
                index=sample.index,
                text=sample.text,
                token_ids=sample.token_ids,
                finish=_finish(sample.finish_reason, sample.stop_reason),
                logprobs=_logprobs(sample.logprobs),
                cumulative_logprob=sample.cumulative_logprob,
                score=sample.score,
                parsed_json=_json(sample.parsed),
            )
            for sample in output.outputs
        ],
        usage=usage(output, sum(len(sample.token_ids) for sample in output.outputs)),
    )


def output_of(request: pb.GenerateRequest, response: pb.GenerateResponse) -> RequestOutput:
    """The answer to a request. A text's encoder token ids stay on the server: the list is empty."""
    encoder, decoder = request.encoder_prompt, request.decoder_prompt
    return RequestOutput(
        request_id=response.request_id,
        encoder_prompt=encoder.text if encoder.HasField("text") else None,
        encoder_prompt_token_ids=list(encoder.token_ids.ids),
        prompt=decoder.text if decoder.HasField("text") else None,
        prompt_token_ids=list(response.prompt.decoder_token_ids),
        outputs=[
            CompletionOutput(
                index=sample.index,
                text=sample.text,
                token_ids=list(sample.token_ids),
                finish_reason=_finish_reason(sample),
                stop_reason=_stop_reason(sample),
                logprobs=_logprobs_of(sample.logprobs),
                cumulative_logprob=(
                    sample.cumulative_logprob if sample.HasField("cumulative_logprob") else None
                ),
                score=_score(sample),
                parsed=_parsed(sample),
            )
            for sample in response.outputs
        ],
        prompt_logprobs=(
            [None, *(_logprobs_of(response.prompt.logprobs) or ())]
            if request.sampling_params.HasField("prompt_logprobs")
            else None
        ),
        encoder_tokens=response.usage.encoder_tokens,
        media_tokens=response.usage.media_tokens,
    )


class Counted(Protocol):
    """An answer, or a valid request."""

    @property
    def encoder_tokens(self) -> int: ...
    @property
    def media_tokens(self) -> int: ...
    @property
    def prompt_token_ids(self) -> list[int]: ...


def prompt_info(of: Counted, logprobs: list[TokenLogprobs | None] | None = None) -> pb.PromptInfo:
    """The prompt, as the model saw it."""
    return pb.PromptInfo(
        encoder_tokens=of.encoder_tokens,
        media_tokens=of.media_tokens,
        decoder_token_ids=of.prompt_token_ids,
        logprobs=_prompt_logprobs(logprobs),
    )


def usage(of: Counted, generated_tokens: int) -> pb.Usage:
    """What a request used, which has generated so many tokens."""
    return pb.Usage(
        encoder_tokens=of.encoder_tokens,
        media_tokens=of.media_tokens,
        decoder_prompt_tokens=len(of.prompt_token_ids),
        generated_tokens=generated_tokens,
    )


def stream_response(
    delta: TextDelta, started: pb.Started | None = None, usage: pb.Usage | None = None
) -> pb.GenerateStreamResponse:
    """A message of a stream. `started` is the first one's, `usage` the last one's."""
    return pb.GenerateStreamResponse(
        started=started,
        delta=pb.CompletionDelta(
            index=delta.index,
            text=delta.text,
            token_ids=delta.token_ids,
            logprobs=_logprobs(delta.logprobs),
            finish=_finish(delta.finish_reason, delta.stop_reason),
            score=delta.score,
            prompt_logprobs=_prompt_logprobs(delta.prompt_logprobs),
            parsed_json=_json(delta.parsed),
        ),
        usage=usage,
    )


def delta_of(message: pb.CompletionDelta) -> TextDelta:
    prompt = _logprobs_of(message.prompt_logprobs)
    return TextDelta(
        index=message.index,
        text=message.text,
        token_ids=list(message.token_ids),
        logprobs=_logprobs_of(message.logprobs),
        finish_reason=_finish_reason(message),
        stop_reason=_stop_reason(message),
        score=_score(message),
        prompt_logprobs=None if prompt is None else [None, *prompt],
        parsed=_parsed(message),
    )


def _json(parsed: Parsed | None) -> str | None:
    return None if parsed is None else json.dumps(parsed)


def _parsed(sample: pb.Completion | pb.CompletionDelta) -> Parsed | None:
    return json.loads(sample.parsed_json) if sample.HasField("parsed_json") else None


def _score(sample: pb.Completion | pb.CompletionDelta) -> float | None:
    return sample.score if sample.HasField("score") else None


def _finish(reason: FinishReason | None, stop_reason: int | str | None) -> pb.Finish | None:
    if reason is None:
        return None
    return pb.Finish(
        reason=f"FINISH_REASON_{reason.upper()}",
        stop_token_id=stop_reason if isinstance(stop_reason, int) else None,
        stop_text=stop_reason if isinstance(stop_reason, str) else None,
    )


def _finish_reason(sample: pb.Completion | pb.CompletionDelta) -> FinishReason | None:
    if not sample.HasField("finish"):
        return None
    name = pb.FinishReason.Name(sample.finish.reason)
    return cast(FinishReason, name.removeprefix("FINISH_REASON_").lower())


def _stop_reason(sample: pb.Completion | pb.CompletionDelta) -> int | str | None:
    match sample.finish.WhichOneof("stop_reason"):
        case "stop_token_id":
            return sample.finish.stop_token_id
        case "stop_text":
            return sample.finish.stop_text
    return None


def _logprobs(logprobs: list[TokenLogprobs] | None) -> list[pb.TokenLogprobs] | None:
    if logprobs is None:
        return None
    return [
        pb.TokenLogprobs(
            token_id=token.token_id,
            logprob=token.logprob,
            top=[pb.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in token.top],
            rank=token.rank,
        )
        for token in logprobs
    ]


def _prompt_logprobs(logprobs: list[TokenLogprobs | None] | None) -> list[pb.TokenLogprobs] | None:
    """All but the first, which is None."""
    return _logprobs([token for token in logprobs or () if token is not None])


def _logprobs_of(logprobs: Iterable[pb.TokenLogprobs]) -> list[TokenLogprobs] | None:
    return [
        TokenLogprobs(
            token.token_id,
            token.logprob,
            [(top.token_id, top.logprob) for top in token.top],
            token.rank if token.HasField("rank") else None,
        )
        for token in logprobs
    ] or None


# Score


def score_response(output: ScoreOutput) -> pb.ScoreResponse:
    """The answer to Score."""
    return pb.ScoreResponse(
        request_id=output.request_id,
        prompt=prompt_info(output),
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
        encoder_tokens=response.prompt.encoder_tokens,
        media_tokens=response.prompt.media_tokens,
    )


# Embed


def embed_response(request_id: str, outputs: Iterable[EmbeddingOutput]) -> pb.EmbedResponse:
    """The answer to Embed."""
    return pb.EmbedResponse(
        request_id=request_id,
        embeddings=[
            pb.Embedding(
                encoder_tokens=output.encoder_tokens,
                width=output.embedding.shape[-1],
                values=output.embedding.ravel().tolist(),
            )
            for output in outputs
        ],
    )


def embeddings_of(request: pb.EmbedRequest, response: pb.EmbedResponse) -> list[EmbeddingOutput]:
    """The answer to a request."""
    import numpy as np

    pooled = request.pooling != pb.POOLING_NONE
    return [
        EmbeddingOutput(
            response.request_id,
            embedding.encoder_tokens,
            np.array(embedding.values, np.float32).reshape(
                embedding.width if pooled else (-1, embedding.width)
            ),
        )
        for embedding in response.embeddings
    ]


# Models


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server serves."""

    id: str  # what requests call it
    family: str  # its config's `model_type`: "t5", "bart", …
    max_encoder_tokens: int
    max_decoder_tokens: int  # prompt and generated together
    max_segment_tokens: int  # the longest segment's, such as a sentence's, where a text is translated by them


def list_models_response(models: Iterable[ServedModel]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=[pb.Model(**asdict(model)) for model in models])


def models_of(response: pb.ListModelsResponse) -> list[ServedModel]:
    return [
        ServedModel(
            model.id,
            model.family,
            model.max_encoder_tokens,
            model.max_decoder_tokens,
            model.max_segment_tokens,
        )
        for model in response.models
    ]
