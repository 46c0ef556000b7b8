"""The gRPC messages and Tandem's own values, each made from the other. The client and the cluster's
ingress both use this, so the mapping exists once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar, Unpack, cast

from google.protobuf.message import Message

from tandem.errors import InvalidRequest
from tandem.inputs import (
    ExplicitEncoderDecoderPrompt,
    Modality,
    MultiModalData,
    Prompt,
    PromptSide,
    SingletonPrompt,
    TaskOptions,
    TextPrompt,
    TokensPrompt,
    split_prompt,
)
from tandem.outputs import CompletionOutput, FinishReason, RequestOutput, TextDelta, TokenLogprobs
from tandem.params import BeamSearchParams, EarlyStopping, Params, SamplingParams
from tandem.v1 import inference_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
GenerateT = TypeVar("GenerateT", pb.GenerateRequest, pb.GenerateStreamRequest)

# Requests


@dataclass(frozen=True, slots=True)
class GenerateArguments:
    """What a Generate or GenerateStream request asks for; its values are not validated yet."""

    request_id: str | None
    model: str | None
    prompt: Prompt
    kind: type[Params] | None  # None: the model's own way of decoding
    params: dict[str, Any]  # those of `kind` that the request sets
    priority: int
    timeout_s: float | None
    chosen: TaskOptions


def arguments_of(request: pb.GenerateRequest | pb.GenerateStreamRequest) -> GenerateArguments:
    """Raises `InvalidRequest` for a prompt that is missing or has both text and token ids."""
    encoder, decoder = prompts_of(request)
    prompt: Prompt = encoder  # a decoder-only model's, too
    if decoder is not None:
        prompt = ExplicitEncoderDecoderPrompt(encoder_prompt=encoder, decoder_prompt=decoder)
    sampling, beams = request.HasField("sampling_params"), request.HasField("beam_search_params")
    if sampling and beams:
        raise InvalidRequest("does not go with sampling_params", field="beam_search_params")
    return GenerateArguments(
        request_id=request.request_id or None,
        model=request.model or None,
        prompt=prompt,
        kind=BeamSearchParams if beams else SamplingParams if sampling else None,
        params=_params_of(request.beam_search_params if beams else request.sampling_params),
        priority=request.priority,
        timeout_s=request.timeout_ms / 1000 if request.HasField("timeout_ms") else None,
        chosen=chosen_of(request),
    )


def chosen_of(request: pb.GenerateRequest | pb.GenerateStreamRequest | pb.ScoreRequest) -> TaskOptions:
    chosen = TaskOptions()
    if request.HasField("source_language"):
        chosen["source_language"] = request.source_language
    if request.HasField("target_language"):
        chosen["target_language"] = request.target_language
    if request.HasField("task"):
        chosen["task"] = request.task
    return chosen


def prompts_of(
    request: pb.GenerateRequest | pb.GenerateStreamRequest | pb.ScoreRequest,
) -> tuple[SingletonPrompt, SingletonPrompt | None]:
    """The encoder's and the decoder's."""
    if not request.HasField("encoder_prompt"):
        raise InvalidRequest("is required", field="encoder_prompt")
    encoder = encoder_prompt_of(request.encoder_prompt)
    if not request.HasField("decoder_prompt"):
        return encoder, None
    return encoder, prompt_of(request.decoder_prompt, "decoder_prompt")


_MODALITIES: Final[dict[Modality, pb.Media.Modality]] = {
    "audio": pb.Media.MODALITY_AUDIO,
    "image": pb.Media.MODALITY_IMAGE,
}


def encoder_prompt_of(message: pb.EncoderPrompt) -> SingletonPrompt:
    if not message.media:
        return prompt_of(message, "encoder_prompt")
    names = {number: name for name, number in _MODALITIES.items()}
    data = MultiModalData()
    for number, media in enumerate(message.media):
        if media.modality not in names:
            raise InvalidRequest(
                f"must be one of {', '.join(map(pb.Media.Modality.Name, names))}",
                field=f"encoder_prompt.media.{number}.modality",
            )
        data.setdefault(names[media.modality], []).append(media.data)  # type: ignore[union-attr]
    if message.HasField("token_ids"):
        return TokensPrompt(prompt_token_ids=list(message.token_ids.ids), multi_modal_data=data)
    return TextPrompt(prompt=message.text, multi_modal_data=data)


def media_bytes(request: Message) -> int:
    """How much of a request is media, which have a limit of their own."""
    if not isinstance(request, pb.GenerateRequest | pb.GenerateStreamRequest | pb.ScoreRequest):
        return 0
    return sum(len(media.data) for media in request.encoder_prompt.media)


_EARLY_STOPPING: Final[dict[int, EarlyStopping | None]] = {
    pb.EARLY_STOPPING_UNSPECIFIED: None,
    pb.EARLY_STOPPING_FALSE: False,
    pb.EARLY_STOPPING_TRUE: True,
    pb.EARLY_STOPPING_NEVER: "never",
}


def _params_of(message: pb.SamplingParams | pb.BeamSearchParams) -> dict[str, Any]:
    """What the message sets, as keyword arguments."""
    params = {field.name: _plain(value) for field, value in message.ListFields()}
    if "early_stopping" in params:
        params["early_stopping"] = _EARLY_STOPPING.get(params["early_stopping"], params["early_stopping"])
    return params


def _plain(value: Any) -> Any:
    if isinstance(value, pb.TokenIds):
        return list(value.ids)
    if isinstance(value, pb.TokenIdLists):
        return [list(ids.ids) for ids in value.lists]
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, bool | int | float | str) else list(value)


def _params_fields(params: Params) -> dict[str, Any]:
    """What the parameters set, as fields of their message."""
    fields = params.model_dump(exclude_unset=True, exclude_none=True)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if name in fields:
            fields[name] = {"ids": fields[name]}
    if "bad_words_ids" in fields:
        fields["bad_words_ids"] = {"lists": [{"ids": ids} for ids in fields["bad_words_ids"]]}
    if "early_stopping" in fields:
        numbers = {value: number for number, value in _EARLY_STOPPING.items()}
        fields["early_stopping"] = numbers[fields["early_stopping"]]
    return fields


def prompt_of(message: pb.EncoderPrompt | pb.Prompt, field: str) -> SingletonPrompt:
    match message.WhichOneof("content"):
        case "text":
            return message.text
        case "token_ids":
            return TokensPrompt(prompt_token_ids=list(message.token_ids.ids))
    raise InvalidRequest("one of text and token_ids is needed", field=field)


def generate_request(
    kind: type[GenerateT],
    prompt: Prompt,
    params: Params | None = None,
    *,
    model: str | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    request_id: str | None = None,
    **chosen: Unpack[TaskOptions],
) -> GenerateT:
    """Raises `InvalidRequest`, naming the field, for what a message cannot hold."""
    encoder, decoder, _ = split_prompt(prompt)
    values: dict[str, Any] = {
        "request_id": request_id,
        "model": model,
        "encoder_prompt": prompt_fields(encoder),
        "decoder_prompt": prompt_fields(decoder),
        "sampling_params": _params_fields(params) if isinstance(params, SamplingParams) else None,
        "beam_search_params": _params_fields(params) if isinstance(params, BeamSearchParams) else None,
        "priority": priority,
        "timeout_ms": timeout_s and math.ceil(timeout_s * 1000),
        **chosen,
    }
    return make_message(kind, values)


def tokenize_request(text: str, model: str | None = None) -> pb.TokenizeRequest:
    """Raises `InvalidRequest`, naming the field, for what a message cannot hold."""
    return make_message(pb.TokenizeRequest, {"text": text, "model": model})


def make_message(kind: type[MessageT], values: dict[str, Any]) -> MessageT:
    message = kind()
    for field, value in values.items():
        if value is not None:
            try:
                message.MergeFrom(kind(**{field: value}))
            except (TypeError, ValueError) as error:  # not of the field's type or range; a lone surrogate
                raise InvalidRequest(str(error), field=field) from None
    return message


def prompt_fields(side: PromptSide | None) -> dict[str, Any] | None:
    if side is None:
        return None
    fields: dict[str, Any] = {"text": side.text}
    if side.token_ids is not None:
        fields = {"token_ids": {"ids": side.token_ids}}
    if side.media:
        fields["media"] = [{"modality": _MODALITIES[one.modality], "data": one.data} for one in side.media]
    return fields


# Answers


def generate_response(output: RequestOutput) -> pb.GenerateResponse:
    """The answer to Generate; every sample is finished."""
    return pb.GenerateResponse(
        request_id=output.request_id,
        prompt=pb.PromptInfo(
            encoder_tokens=len(output.encoder_prompt_token_ids),
            decoder_token_ids=output.prompt_token_ids,
            logprobs=_prompt_logprobs(output.prompt_logprobs),
        ),
        outputs=[
            pb.Completion(
                index=sample.index,
                text=sample.text,
                token_ids=sample.token_ids,
                finish=_finish(sample.finish_reason, sample.stop_reason),
                logprobs=_logprobs(sample.logprobs),
                cumulative_logprob=sample.cumulative_logprob,
                score=sample.score,
            )
            for sample in output.outputs
        ],
        usage=pb.Usage(
            encoder_tokens=len(output.encoder_prompt_token_ids),
            decoder_prompt_tokens=len(output.prompt_token_ids),
            generated_tokens=sum(len(sample.token_ids) for sample in output.outputs),
        ),
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
            )
            for sample in response.outputs
        ],
        prompt_logprobs=(
            [None, *(_logprobs_of(response.prompt.logprobs) or ())]
            if request.sampling_params.HasField("prompt_logprobs")
            else None
        ),
    )


def started(request_id: str, encoder_tokens: int, decoder_token_ids: Sequence[int]) -> pb.Started:
    """What the first message of a stream has beside its delta."""
    prompt = pb.PromptInfo(encoder_tokens=encoder_tokens, decoder_token_ids=decoder_token_ids)
    return pb.Started(request_id=request_id, prompt=prompt)


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
    )


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


# Models


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server serves."""

    id: str  # what requests call it
    family: str  # its config's `model_type`: "t5", "bart", …
    max_encoder_tokens: int
    max_decoder_tokens: int  # prompt and generated together


def list_models_response(models: Iterable[ServedModel]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(models=[pb.Model(**asdict(model)) for model in models])


def models_of(response: pb.ListModelsResponse) -> list[ServedModel]:
    return [
        ServedModel(model.id, model.family, model.max_encoder_tokens, model.max_decoder_tokens)
        for model in response.models
    ]
